"""Frozen parts cost nothing and change nothing: weights, memory for the backward pass, dropout."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments

from cornstarch import ModalEncoderModule, MultimodalModel
from tests import tiny
from tests.tiny import IMAGE, SOUND
from tests.zoo import making

# --- measuring --------------------------------------------------------------------------------------------------------


class Kept:
    """What a module's forward pass makes and somebody still holds afterwards.

    Attributes:
        packed: bytes of tensors that autograd saved inside the module, told by `saved_tensors_hooks`.
        outputs: bytes of what the module returned, which its caller may hold.
    """

    def __init__(self) -> None:
        self.packed = 0
        self.outputs = 0
        self.graph = False
        self.runs = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._returned: set[int] = set()

    @property
    def inside(self) -> int:
        """Bytes of storages made inside the module and alive now, without those it returned; checkpoints count too."""
        alive = {key: size for key, (ref, size) in self._made.items() if not ref.expired()}
        return sum(size for key, size in alive.items() if key not in self._returned)


class _Recorder(TorchDispatchMode):
    def __init__(self, kept: Kept, known: set[int]) -> None:
        super().__init__()
        self._kept, self._known = kept, known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._kept._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result


@contextmanager
def keeping(module: nn.Module) -> Iterator[Kept]:
    """Measure every forward pass of `module` that runs inside, and nothing else."""
    kept = Kept()
    running: list[Any] = []

    def storages(tensors: Any) -> set[int]:
        return {tensor.untyped_storage()._cdata for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor)}

    def start(_: nn.Module, args: Any, kwargs: Any) -> None:
        kept._made, kept._returned = {}, set()
        kept.packed, kept.runs = 0, kept.runs + 1
        known = storages((args, kwargs, list(module.parameters()), list(module.buffers())))

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in known:
                kept.packed += tensor.nbytes
            return tensor

        for context in (torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Recorder(kept, known)):
            context.__enter__()
            running.append(context)

    def stop(_: nn.Module, args: Any, output: Any) -> None:
        while running:
            running.pop().__exit__(None, None, None)
        values = list(output.values()) if isinstance(output, dict) else output
        kept._returned = storages(values)
        kept.outputs = sum(kept._made[key][1] for key in kept._returned if key in kept._made)
        kept.graph = any(t.grad_fn is not None for t in tree_leaves(values) if isinstance(t, Tensor))

    handles = [
        module.register_forward_pre_hook(start, with_kwargs=True, prepend=True),
        module.register_forward_hook(stop),
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def saved(module: nn.Module) -> Iterator[list[int]]:
    """Bytes saved for the backward pass while `module` runs, one number a run: weights and inputs count as well."""
    runs: list[int] = []
    running: list[Any] = []

    def pack(tensor: Tensor) -> Tensor:
        runs[-1] += tensor.nbytes
        return tensor

    def start(*_: Any) -> None:
        runs.append(0)
        running.append(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        running[-1].__enter__()

    def stop(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(start, prepend=True), module.register_forward_hook(stop)]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def saved_activations(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The loss of a forward pass, and the bytes saved in all of it, without those of weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    return loss, sum(sizes)


def assert_free(kept: Kept) -> None:
    assert kept.runs == 1
    assert not kept.graph, "the output of a frozen part hangs on a graph"
    assert kept.packed == 0
    assert kept.inside == 0


# --- parts ------------------------------------------------------------------------------------------------------------

LM_TARGETS = {"llama": ["q_proj", "v_proj"], "opt": ["q_proj", "v_proj"], "falcon": ["query_key_value"]}
# Whether a frozen encoder keeps anything for backward is asked of all in the zoo; here, whether any memory stays.
TOWERS = ["clip", "siglip", "dinov2", "sam", "convnext", "qwen2-vl", "qwen2.5-vl", "whisper", "wav2vec2"]
FAMILIES = ["llama", "opt", "gpt2", "falcon", "falcon-alibi"]


def composed(
    lm: str = "opt", vision: str = "clip", peft: bool = False, drop: float = 0.5, dtype: torch.dtype = torch.float32
) -> MultimodalModel:
    """A frozen encoder of each modality around one language model, dropout everywhere the configs know some."""
    language_model = tiny.language_model(lm, dtype, drop=drop)
    if peft:
        targets = LM_TARGETS.get(lm)
        language_model = get_peft_model(
            language_model, LoraConfig(r=2, init_lora_weights=False, target_modules=targets, lora_dropout=0.0)
        ).to(dtype)
    encoders = {
        "vision": ModalEncoderModule(tiny.encoder(vision, dtype, drop=drop)),
        "audio": ModalEncoderModule(tiny.encoder("whisper", dtype, drop=drop)),
    }
    torch.manual_seed(9)
    model = MultimodalModel(encoders, language_model, init_projector_type="mlp")
    model.set_modality_token_ids({"vision": IMAGE, "audio": SOUND})
    return model


def batch(vision: str = "clip", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two samples with an image and a sound each, left-padded."""
    rows = [[IMAGE] * tiny.ROWS[vision], [SOUND] * tiny.ROWS["whisper"]]
    made: dict[str, Tensor] = tiny.padded(
        [tiny.text(4) + rows[0] + rows[1] + tiny.text(4, 6), tiny.text(2, 7) + rows[1] + rows[0] + tiny.text(4, 8)],
        "left",
    )
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    return {**made, "labels": labels, "pixel_values": tiny.images(2, dtype), "input_features": tiny.sounds(2, dtype)}


ALIGNMENT = {"vision": (False, True), "audio": (False, True)}  # projectors train, encoders do not


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- weights ----------------------------------------------------------------------------------------------------------

FROZEN: dict[str, tuple[dict[str, tuple[bool, bool]], bool, tuple[str, ...]]] = {
    "encoders": (ALIGNMENT, True, ("vision_encoder.module.", "audio_encoder.module.")),
    "encoders and language model": (
        ALIGNMENT,
        False,
        ("vision_encoder.module.", "audio_encoder.module.", "language_model."),
    ),
    "projector": ({"vision": (True, False), "audio": (True, True)}, True, ("vision_encoder.projector.",)),
    "one whole modality": ({"vision": (False, False), "audio": (True, True)}, True, ("vision_encoder.",)),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("case", FROZEN)
def test_frozen_weights_are_bit_identical_after_twenty_steps(case: str, set_to_none: bool) -> None:
    """AdamW with decay, gradients and moments left from before freezing: frozen weights equal bits, others move."""
    encoders_mode, llm_mode, prefixes = FROZEN[case]
    model, inputs = composed(), batch()
    model.train(llm_mode=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(**inputs).loss.backward()
    optimizer.step()  # moments for every weight; the gradients stay where they are

    model.train(encoders_mode, llm_mode=llm_mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(20):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        model.train()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in changed if name.startswith(prefixes)}
    unchanged = {name for name in set(before) - changed if not name.startswith(prefixes)}
    assert all("embed_positions" in name or "k_proj.bias" in name or "post_layernorm" in name for name in unchanged)


def test_frozen_weights_have_no_optimizer_state() -> None:
    """An optimizer over all parameters keeps state for those that train, and for no other."""
    model = composed().train(ALIGNMENT, llm_mode=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(**batch()).loss.backward()
    optimizer.step()
    assert {id(parameter) for parameter in optimizer.state} == {
        id(parameter) for name, parameter in model.named_parameters() if ".projector." in name
    }


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_gradients_left_over_from_before_freezing_move_nothing(peft: bool) -> None:
    """A gradient everywhere, no step yet, then frozen: 20 decaying AdamW steps leave bits equal and no state."""
    model, inputs = composed(peft=peft), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(**inputs).loss.backward()
    assert {name.split(".")[0] for name in gradients(model)} == {"vision_encoder", "audio_encoder", "language_model"}
    model.train(ALIGNMENT, llm_mode=False)
    frozen = {name: value for name, value in model.named_parameters() if ".projector." not in name}
    assert all(value.grad is None for value in frozen.values())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        model(**inputs).loss.backward()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before) - set(frozen)
    assert not any(value in optimizer.state for value in frozen.values())
    assert all(value.grad is None for value in frozen.values())


def test_running_statistics_of_a_frozen_encoder_stand_still() -> None:
    """A plain encoder with batch norm: its buffers are bit-identical after five steps, and move when it trains."""

    model = tiny.model(tiny.Normed()).train({"vision": (False, True)})
    inputs = tiny.vision_batch(4)
    before = copy.deepcopy(model.vision_encoder.module.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        model(**inputs).loss.backward()
        optimizer.step()
        model.train()
    for name, value in model.vision_encoder.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.train({"vision": (True, True)})(**inputs)
    assert not torch.equal(model.vision_encoder.module.layers[1].running_mean, before["layers.1.running_mean"])


# --- memory -----------------------------------------------------------------------------------------------------------


def input_gradients_everywhere(model: MultimodalModel) -> None:
    """What gradient checkpointing with adapters calls, here on every part and on the whole."""
    model.enable_input_require_grads()
    for encoder in model.encoders.values():
        encoder.module.enable_input_require_grads()
    model.language_model.enable_input_require_grads()


SETUPS: dict[str, Callable[[MultimodalModel], None]] = {
    "plain": lambda model: None,
    "checkpointing": lambda model: model.gradient_checkpointing_enable(),
    "checkpointing, as Trainer asks": lambda model: model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    ),
    "Hugging Face's checkpointing on the parts": lambda model: [
        part.gradient_checkpointing_enable({"use_reentrant": False})
        for part in (model.vision_encoder.module, model.audio_encoder.module, model.language_model)
    ],
    "input gradients": input_gradients_everywhere,
    "checkpointing and input gradients": lambda model: [
        model.gradient_checkpointing_enable(),
        input_gradients_everywhere(model),
    ],
}


@pytest.mark.parametrize("projectors", [True, False], ids=["projectors-train", "projectors-frozen"])
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_frozen_encoder_keeps_nothing(setup: str, peft: bool, projectors: bool) -> None:
    """0 bytes packed inside, 0 bytes alive but what it returned, no graph behind that; exact."""
    model, inputs = composed(peft=peft), batch()
    SETUPS[setup](model)
    model.train({"vision": (False, projectors), "audio": (False, projectors)})
    with keeping(model.vision_encoder.module) as vision, keeping(model.audio_encoder.module) as audio:
        output = model(**inputs)
        for kept in (vision, audio):
            assert_free(kept)
        assert output.loss.requires_grad
        output.loss.backward()
    trained = {name.split(".")[0] for name in gradients(model)}
    assert trained == ({"vision_encoder", "audio_encoder"} if projectors else set()) | {"language_model"}
    assert all(".projector." in name or name.startswith("language_model") for name in gradients(model))


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_frozen_encoder_saves_nothing_where_a_trained_one_does(setup: str, peft: bool) -> None:
    """By the same hooks, weights and inputs counted: 0 bytes saved in a frozen encoder, more than 0 in a trained."""
    model, inputs = composed(peft=peft), batch()
    SETUPS[setup](model)
    for trains in (False, True, False):
        model.train({"vision": (trains, True), "audio": (trains, True)})
        with saved(model.vision_encoder.module) as vision, saved(model.audio_encoder.module) as audio:
            assert model(**inputs).loss.requires_grad
        assert len(vision) == len(audio) == 1
        assert (vision[0] > 0) is trains
        assert (audio[0] > 0) is trains


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_every_frozen_tower_keeps_nothing_and_a_trained_one_does(vision: str) -> None:
    """The measure itself: 0 bytes when frozen; when it trains, bytes packed and alive, fewer with checkpointing."""
    model, inputs = composed(vision=vision), batch(vision)
    tower = model.vision_encoder.module

    def measured() -> tuple[int, int]:
        with keeping(tower) as kept:
            output = model(**inputs)
            found = kept.packed, kept.inside
            assert output.loss.requires_grad
        return found

    model.train(ALIGNMENT)
    assert measured() == (0, 0)
    model.train({"vision": (True, True)})
    packed, inside = measured()
    assert packed > 10_000
    assert inside > 10_000
    model.gradient_checkpointing_enable()
    assert 0 < measured()[1] < inside / 2


@pytest.mark.parametrize("family", TOWERS)
def test_encoders_of_every_family_keep_nothing_and_drop_nothing(family: str) -> None:
    """Rates 0.5, masked features, input gradients: frozen, two passes are bit-equal to eval mode and keep 0 bytes."""
    changes = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 2} if family == "wav2vec2" else {}
    tower = tiny.encoder(family, drop=0.5, **changes)
    inputs = making.media(family, torch.float32)
    model = tiny.model(tower)
    model.gradient_checkpointing_enable()
    with suppress(AttributeError, NotImplementedError):  # towers without an embedding to hook
        tower.enable_input_require_grads()
    expected = model.train({"vision": (False, True)}, mode=False).vision_encoder(**inputs)
    model.train()
    assert model.vision_encoder.projector.training
    for _ in range(2):
        with keeping(tower) as kept:
            features = model.vision_encoder(**inputs)
            assert_free(kept)
        assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


def test_a_frozen_projector_saves_nothing_either() -> None:
    """Nothing up to the language model trains: a frozen projector packs 0 bytes and leaves no graph; exact."""
    model = composed().train({"vision": (False, False), "audio": (False, False)})
    with keeping(model.vision_encoder) as kept:
        model(**batch())
    assert_free(kept)


def test_nothing_is_saved_when_all_is_frozen() -> None:
    """With every part frozen a forward pass packs nothing at all, in training mode too; exact."""
    model, packed = composed().train(llm_mode=False), []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert not model(**batch()).loss.requires_grad
    assert sum(packed) == 0


def test_a_frozen_encoder_passes_a_gradient_on_when_asked() -> None:
    """Inputs that require a gradient get it through a frozen encoder; equal to the trained one's, 1e-10 in fp64."""
    model = composed(drop=0.0, dtype=torch.float64)
    inputs = batch(dtype=torch.float64)
    found = []
    for encoder_trains in (True, False):
        model.train({"vision": (encoder_trains, True)})
        pixels = inputs["pixel_values"].clone().requires_grad_()
        model(**{**inputs, "pixel_values": pixels}).loss.backward()
        found.append(pixels.grad)
    assert found[0].abs().max() > 1e-6
    tiny.assert_near(found[1], found[0])


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_trainer(tmp_path: Path, checkpointing: bool, peft: bool) -> None:
    """Two steps of `Trainer`: a frozen encoder keeps 0 bytes while the loss is alive, and its weights equal bits."""
    model = composed(peft=peft).train(ALIGNMENT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = batch()
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] >= IMAGE, -100)  # `Trainer` counts the others
    samples = [{name: value[index] for name, value in inputs.items()} for index in (0, 1, 0, 1)]
    measured: list[bool] = []

    class Measuring(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, **kwargs: Any) -> Any:
            with keeping(model.vision_encoder.module) as vision, keeping(model.audio_encoder.module) as audio:
                loss = super().compute_loss(model, inputs, **kwargs)
                assert_free(vision)
                assert_free(audio)
            measured.append(model.training)
            return loss

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=checkpointing,
        weight_decay=0.1,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    Measuring(model, arguments, train_dataset=samples).train()
    assert measured == [True, True]
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in changed if "encoder.module" in name}
    assert {name for name in changed if ".projector." in name}
    assert {name for name in changed if name.startswith("language_model.")}
    assert not peft or all("lora_" in name for name in changed if name.startswith("language_model."))


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("peft, checkpointing", [(False, False), (False, True), (True, True)])
def test_bytes_saved_in_trainer(tmp_path: Path, trains: bool, peft: bool, checkpointing: bool) -> None:
    """Two steps of `Trainer`, encoders' saved bytes by hooks: 0 in each step if frozen, more than 0 if trained."""
    model = composed(peft=peft).train({"vision": (trains, True), "audio": (trains, True)})
    inputs = batch()
    inputs["labels"] = inputs["labels"].masked_fill(
        (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == SOUND), -100
    )
    samples = [{name: value[index] for name, value in inputs.items()} for index in (0, 1, 0, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=checkpointing,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=samples)
    with saved(model.vision_encoder.module) as vision, saved(model.audio_encoder.module) as audio:
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(vision) == len(audio) == 2
    assert [size > 0 for size in vision + audio] == [trains] * 4


# --- dropout ----------------------------------------------------------------------------------------------------------


def logits(model: MultimodalModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs, output_logits=True).logits.detach()


@pytest.mark.parametrize("setup", ["plain", "checkpointing", "checkpointing and input gradients"])
@pytest.mark.parametrize("vision", ["clip", "dinov2"])
@pytest.mark.parametrize("lm", FAMILIES)
def test_no_dropout_in_frozen_parts(lm: str, vision: str, setup: str) -> None:
    """All rates 0.5, all but projectors frozen: training mode twice and eval mode give bit-equal logits."""
    model, inputs = composed(lm, vision), batch(vision)
    SETUPS[setup](model)
    model.train(ALIGNMENT, llm_mode=False)
    first, second = logits(model, inputs), logits(model, inputs)
    assert torch.equal(first, second)
    assert torch.equal(first, logits(model.train(), inputs))
    assert torch.equal(first, logits(model.eval(), inputs))


def vit() -> Any:
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    return tiny.loud(transformers.ViTModel(tiny.with_drop(config, 0.5), add_pooling_layer=False))


def wav2vec2() -> Any:
    masks = {"mask_time_prob": 0.5, "mask_time_length": 2, "mask_feature_prob": 0.5, "mask_feature_length": 2}
    return tiny.encoder("wav2vec2", drop=0.5, apply_spec_augment=True, **masks)


# An encoder, with the name and values of its input, and its rows.
NOISY: dict[str, tuple[Callable[[], Any], str, Callable[[], Tensor], int]] = {
    "vit": (vit, "pixel_values", lambda: tiny.images(2), 5),
    "whisper": (lambda: tiny.encoder("whisper", drop=0.5), "input_features", lambda: tiny.sounds(2), 6),
    "wav2vec2": (wav2vec2, "input_values", lambda: torch.randn(2, 100), 9),
}


@pytest.mark.parametrize("encoder", NOISY)
@pytest.mark.parametrize("lm", ["opt", "falcon", "gpt2"])
def test_no_dropout_or_layerdrop_in_frozen_encoders(encoder: str, lm: str) -> None:
    """All rates 0.5, layerdrop and masks too: losses of two training passes and of eval equal bits; trained differ."""
    make, name, values, rows = NOISY[encoder]
    part = make()
    rates = {key: value for key, value in vars(part.config).items() if "drop" in key and isinstance(value, float)}
    assert rates
    assert set(rates.values()) == {0.5}
    model = tiny.model(part, tiny.language_model(lm, drop=0.5))
    inputs = {**tiny.vision_batch(rows), name: values()}
    del inputs["pixel_values" if name != "pixel_values" else "attention_mask"]
    model.train({"vision": (False, True)}, llm_mode=False)
    losses = [model(**inputs).loss for _ in range(2)]
    assert all(loss.requires_grad for loss in losses)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], model.eval()(**inputs).loss)
    model.train({"vision": (True, True)})
    assert not torch.equal(model(**inputs).loss, model(**inputs).loss)
    model.train({"vision": (False, True)}, llm_mode=True)
    assert not torch.equal(model(**inputs).loss, model(**inputs).loss)


@pytest.mark.parametrize("lm", FAMILIES)
def test_dropout_in_parts_that_train(lm: str) -> None:
    """The measure itself: once a part trains, two forward passes in training mode differ, in eval mode they do not."""
    model, inputs = composed(lm), batch()
    for encoders_mode, llm_mode in (
        ({"vision": (True, True)}, False),
        ({"audio": (True, True)}, False),
        (ALIGNMENT, True),
    ):
        if lm == "llama" and llm_mode:
            continue  # its only dropout is on attention weights
        model.train({**ALIGNMENT, **encoders_mode}, llm_mode=llm_mode)
        assert not torch.equal(logits(model, inputs), logits(model, inputs))
        model.eval()
        assert torch.equal(logits(model, inputs), logits(model, inputs))


def test_no_dropout_in_a_frozen_encoder_beside_adapters() -> None:
    """A language model with adapters trains with dropout; the frozen encoders' features stay bit-equal."""
    model, inputs = composed(peft=True).train(ALIGNMENT), batch()
    model.gradient_checkpointing_enable()
    assert model.language_model.training
    features = [
        (
            model.vision_encoder(pixel_values=inputs["pixel_values"]),
            model.audio_encoder(input_features=inputs["input_features"]),
        )
        for _ in range(3)
    ]
    for vision, audio in features[1:]:
        assert torch.equal(vision, features[0][0])
        assert torch.equal(audio, features[0][1])


# --- a frozen language model that passes the gradient on --------------------------------------------------------------


def backward(
    model: MultimodalModel, inputs: dict[str, Tensor], part: nn.Module
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and the bytes that `part` keeps between forward and backward."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with keeping(part) as kept:
        loss = model(**inputs).loss
        inside = kept.inside
    loss.backward()
    return loss.detach(), gradients(model), inside


@pytest.mark.parametrize("lm", FAMILIES)
def test_gradients_through_a_frozen_language_model_with_checkpointing(lm: str) -> None:
    """Projector gradients equal those without checkpointing, 1e-10 in fp64, from less memory; dropout 0.5 is off."""
    model, inputs = composed(lm, dtype=torch.float64), batch(dtype=torch.float64)
    model.train(ALIGNMENT, llm_mode=False)
    loss, expected, plain = backward(model, inputs, model.language_model)
    assert {name.split(".")[1] for name in expected} == {"projector"}
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-4

    model.gradient_checkpointing_enable()
    assert not model.language_model.training
    again, found, checkpointed = backward(model, inputs, model.language_model)
    assert torch.equal(again, loss)
    assert found.keys() == expected.keys()
    for name in expected:
        tiny.assert_near(found[name], expected[name], what=name)
    assert checkpointed < 0.7 * plain

    model.gradient_checkpointing_disable()
    _, _, after = backward(model, inputs, model.language_model)
    assert after == plain


@pytest.mark.parametrize("lm", ["llama", "opt", "falcon"])
def test_a_frozen_language_model_saves_less_with_checkpointing(lm: str) -> None:
    """Bytes saved in the whole forward fall, disabling restores them exactly; gradients equal, 1e-10 in fp64."""
    model, inputs = composed(lm, dtype=torch.float64), batch(dtype=torch.float64)
    model.train(ALIGNMENT, llm_mode=False)

    def measured() -> tuple[dict[str, Tensor], int]:
        model.zero_grad(set_to_none=True)
        loss, size = saved_activations(model, inputs)
        loss.backward()
        assert all(parameter.grad is None for parameter in model.language_model.parameters())
        return gradients(model), size

    plain, everything = measured()
    assert set(plain) == {name for name, _ in model.named_parameters() if ".projector." in name}
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    checkpointed, few = measured()
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    restored, again = measured()
    assert 0 < few < everything
    assert again == everything
    for name, gradient in plain.items():
        tiny.assert_near(checkpointed[name], gradient, what=name)
        assert torch.equal(restored[name], gradient)


@pytest.mark.parametrize("lm", FAMILIES)
def test_gradients_through_a_trained_model_with_checkpointing(lm: str) -> None:
    """All parts train, dropout 0.5: the recomputation draws the same masks; equal gradients, 1e-10 in fp64."""
    model, inputs = composed(lm, dtype=torch.float64), batch(dtype=torch.float64)
    model.train(llm_mode=True)
    _, expected, plain = backward(model, inputs, model.language_model)
    model.gradient_checkpointing_enable()
    _, found, checkpointed = backward(model, inputs, model.language_model)
    assert found.keys() == expected.keys()
    for name in expected:
        tiny.assert_near(found[name], expected[name], what=name)
    assert checkpointed < plain


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_gradients_of_trained_encoders_with_checkpointing(vision: str) -> None:
    """Encoders train behind a frozen language model: equal gradients, 1e-10 in fp64, from less memory in each."""
    model, inputs = composed("opt", vision, drop=0.0, dtype=torch.float64), batch(vision, torch.float64)
    model.train({"vision": (True, True), "audio": (True, True)}, llm_mode=False)
    parts = (model.vision_encoder.module, model.audio_encoder.module)
    before = [backward(model, inputs, part) for part in parts]
    model.gradient_checkpointing_enable()
    after = [backward(model, inputs, part) for part in parts]
    for (_, expected, plain), (_, found, checkpointed) in zip(before, after, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            tiny.assert_near(found[name], expected[name], what=name)
        assert checkpointed < 0.7 * plain


@pytest.mark.parametrize("lm", ["llama", "opt", "falcon"])
@pytest.mark.parametrize("setup", ["checkpointing", "checkpointing and input gradients"])
def test_gradients_of_adapters_with_checkpointing(lm: str, setup: str) -> None:
    """Adapters and projectors: gradients equal those without checkpointing, 1e-10 in fp64, from less memory."""
    model = composed(lm, peft=True, drop=0.0, dtype=torch.float64).train(ALIGNMENT)
    inputs = batch(dtype=torch.float64)
    _, expected, plain = backward(model, inputs, model.language_model)
    assert any("lora_" in name for name in expected)
    SETUPS[setup](model)
    _, found, checkpointed = backward(model, inputs, model.language_model)
    assert found.keys() == expected.keys()
    for name in expected:
        tiny.assert_near(found[name], expected[name], what=name)
    assert checkpointed < 0.7 * plain
