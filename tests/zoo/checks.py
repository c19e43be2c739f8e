"""What every pair must do, each against the composition by hand; a check that returns is passed."""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from cornstarch import MultimodalModel
from cornstarch.models.multimodal_language_model import freezing
from tests.tiny import assert_near
from tests.zoo import making
from tests.zoo.making import KEY, MARK
from tests.zoo.table import ENCODERS, LANGUAGE_MODELS, PAD

F32 = torch.float32
NEW = 4  # tokens to generate


def forward(encoder: str, language_model: str) -> None:
    """Loss, and logits where there is no padding; fp64, 1e-10."""
    compare_forward(encoder, making.pair(encoder, language_model), language_model)


def compare_forward(encoder: str, model: MultimodalModel, language_model: str) -> None:
    """Loss and logits of a pair that is made already."""
    given = making.batch(encoder)
    with torch.no_grad():
        expected, found = making.by_hand(encoder, model, given), model(**given)
    assert type(found) is type(expected), f"{type(found).__name__} for {type(expected).__name__}"
    own = given["attention_mask"].bool()
    tolerance = LANGUAGE_MODELS[language_model].tolerance
    assert_near(found.logits[own], expected.logits[own], tolerance, "logits")
    assert_near(found.loss, expected.loss, tolerance, "loss")


def backward(encoder: str, language_model: str) -> None:
    """The gradient of every parameter, in training mode; fp64, 1e-10 of the largest."""
    model = making.pair(encoder, language_model).train()
    expected, found = _gradients(encoder, model)
    _compare(found, expected, language_model)
    _assert_reached(found)


def frozen(encoder: str, language_model: str) -> None:
    """Projector alone: its gradient, nothing kept in the encoder, no other gradient. Then the encoder too, behind a
    language model that stays frozen."""
    model = making.pair(encoder, language_model)
    model.train({KEY: (False, True)}, llm_mode=False)
    with _counting(model.encoders[KEY].module) as kept:
        expected, found = _gradients(encoder, model)
    assert kept[0] == 0, f"a frozen encoder keeps {kept[0]} bytes"
    assert found.keys() == {name for name, _ in model.named_parameters() if ".projector." in name}
    _compare(found, expected, language_model)
    _assert_reached(found)
    model.train({KEY: (True, True)}, llm_mode=False)
    expected, found = _gradients(encoder, model)
    assert not any(name.startswith("language_model.") for name in found)
    _compare(found, expected, language_model)


def checkpointed(encoder: str, language_model: str) -> None:
    """The same gradients, and every layer that transformers marks as one runs twice if it has a gradient."""
    model = making.pair(encoder, language_model).train()
    given = making.batch(encoder)
    model(**given)  # a language model is asked before its first loss what its head may be given
    runs = _count_runs(model)
    expected = _backward(model, model(**given).loss)
    once = dict(runs)
    model.gradient_checkpointing_enable()
    found = _backward(model, model(**given).loss)
    _compare(found, expected, language_model)
    for name, layer in model.named_modules():
        if isinstance(layer, GradientCheckpointingLayer) and any(place.startswith(f"{name}.") for place in found):
            inside = [module for module in layer.modules() if once.get(module)]
            assert any(runs[module] >= 3 * once[module] for module in inside), f"{name} runs once"


def generates(encoder: str, language_model: str) -> None:
    """A left-padded batch with a cache: each sample's greedy tokens are those of the composition by hand, alone,
    without padding or a cache; fp32."""
    model = making.pair(encoder, language_model, F32)
    given = making.batch(encoder, F32, "left")
    del given["labels"]
    found = model.generate(**given, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    for index, (ids, embeds) in enumerate(_samples(encoder, model)):
        expected = greedy(model.language_model, embeds)
        assert found[index, -NEW - len(ids) :].tolist() == ids + expected, f"sample {index}"


def padded(encoder: str, language_model: str) -> None:
    """Logits of samples padded on either side are those of each sample alone, and so is the loss that balances
    experts; fp32, 1e-5 of the largest."""
    model = making.pair(encoder, language_model, F32)
    for side in ("left", "right"):
        given = making.batch(encoder, F32, side)
        del given["labels"]
        with torch.no_grad():
            found = model(**given)
            for index, (ids, embeds) in enumerate(_samples(encoder, model)):
                expected = model.language_model(inputs_embeds=embeds).logits[0]
                own = given["attention_mask"][index].bool()
                assert_near_largest(found.logits[index, own], expected, f"{side}, sample {index} of {len(ids)}")
    if getattr(found, "aux_loss", None) is not None:
        _compare_balance(encoder, model)


def _compare_balance(encoder: str, model: MultimodalModel) -> None:
    rows = _rows(encoder, model)[1]
    ids = torch.tensor([making.rows_of(encoder)[1]])
    with torch.no_grad():
        losses = []
        for pad in ((0, 0), (3, 0), (0, 3)):
            padded_ids, mask = (
                functional.pad(value, pad, value=fill) for value, fill in ((ids, 7), (torch.ones_like(ids), 0))
            )
            output = model(input_ids=padded_ids, attention_mask=mask, encoder_outputs={KEY: [rows]})
            losses.append(output.aux_loss)
    for loss in losses[1:]:
        assert_near_largest(loss, losses[0], "loss that balances experts")


def adapted(encoder: str, language_model: str) -> None:
    """LoRA on both parts: logits, loss and gradients by hand; adapters and projector train, and nothing else."""
    pytest.importorskip("peft")
    text = wrapped(making.language_model(language_model))
    model = making.compose(wrapped(making.encoder(encoder)), text)
    compare_forward(encoder, model, language_model)
    model.train()
    expected, found = _gradients(encoder, model)
    _compare(found, expected, language_model)
    others = [name for name in found if "lora" not in name and ".projector." not in name]
    assert not others, f"{others[0]} trains"
    adapters = {name for name, _ in model.named_parameters() if "lora" in name}
    for part in (f"{KEY}_encoder", "language_model"):
        assert any(name.startswith(part) for name in adapters & found.keys()), f"no adapter of {part} trains"


def saved(encoder: str, language_model: str) -> None:
    """Saved and loaded: the same logits; fp32, 1e-6."""
    model, given = making.pair(encoder, language_model, F32), making.batch(encoder, F32)
    module = model.encoders[KEY].module
    own = (
        {} if type(module).__module__.startswith("transformers.") else {f"{KEY}_encoder.module": copy.deepcopy(module)}
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = MultimodalModel.from_pretrained(folder, custom_objects=own)
        if again.language_model._can_set_experts_implementation():
            again.language_model.set_experts_implementation("eager")
        assert_near(again(**given).logits, model(**given).logits, 1e-6, "logits")


CHECKS: dict[str, Callable[[str, str], None]] = {
    "forward": forward,
    "backward": backward,
    "frozen": frozen,
    "checkpointed": checkpointed,
    "padded": padded,
    "generates": generates,
    "adapted": adapted,
    "saved": saved,
}

# --- helpers ----------------------------------------------------------------------------------------------------------


def greedy(language_model: Any, embeds: Tensor) -> list[int]:
    """Token by token, each time on the whole sequence, (1, S, D) of embeddings, without a cache or a mask."""
    new: list[int] = []
    with torch.no_grad():
        for _ in range(NEW):
            logits = language_model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
            logits[language_model.generation_config.eos_token_id] = -torch.inf
            new.append(int(logits.argmax()))
            embeds = torch.cat([embeds, language_model.get_input_embeddings()(torch.tensor([[new[-1]]]))], dim=1)
    return new


def wrapped(part: nn.Module) -> Any:
    """A part with LoRA on every linear layer but the head, drawn at random so that it changes something."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    head = part.get_output_embeddings() if hasattr(part, "get_output_embeddings") else None
    linear = [(name, layer) for name, layer in part.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    # PEFT refuses the output projection of state spaces, whose kernel reads its weight, and fails on Llama 4's routers.
    kept = [(name, layer) for name, layer in linear if not name.endswith(("mixer.out_proj", "router"))]
    names = [name for name, layer in kept if layer is not head]
    transposed = any(isinstance(layer, Conv1D) for _, layer in linear)
    torch.manual_seed(6)
    config = LoraConfig(r=2, target_modules=names, init_lora_weights=False, fan_in_fan_out=transposed)
    dtype = next(part.parameters()).dtype
    return get_peft_model(part, config).to(dtype).eval()


def assert_near_largest(found: Tensor, expected: Tensor, what: str) -> None:
    error, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= 1e-5 * largest, f"{what}: off by {error:.3g} of {largest:.3g}"


def _rows(encoder: str, model: MultimodalModel) -> list[Tensor]:
    """(T_i, E) of each of the two inputs, by hand."""
    module: Any = freezing.unwrap(model.encoders[KEY].module)
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        rows = making.features_by_hand(encoder, module, making.media(encoder, dtype))
    return list(rows.split(ENCODERS[encoder].features))


def _samples(encoder: str, model: MultimodalModel) -> list[tuple[list[int], Tensor]]:
    """Ids and embeddings (1, S, D) of each of the two samples alone, by hand."""
    projection = model.encoders[KEY].projector.projection
    made = []
    for ids, rows in zip(making.rows_of(encoder), _rows(encoder, model), strict=True):
        with torch.no_grad():
            text = model.get_input_embeddings()(torch.tensor([[PAD if token == MARK else token for token in ids]]))
            features = functional.linear(rows, projection.weight, projection.bias)
        at = ids.index(MARK)
        made.append((ids, torch.cat([text[:, :at], features[None], text[:, at + len(rows) :]], dim=1)))
    return made


def _backward(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def _gradients(encoder: str, model: MultimodalModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Name to gradient, by hand and as the model has it."""
    given = making.batch(encoder)
    expected = _backward(model, making.by_hand(encoder, model, given).loss)
    return expected, _backward(model, model(**given).loss)


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], language_model: str) -> None:
    assert found.keys() == expected.keys(), (
        f"gradients of other parameters: {sorted(found.keys() ^ expected.keys())[:3]}"
    )
    for name, value in expected.items():
        assert_near(found[name], value, LANGUAGE_MODELS[language_model].tolerance, name)


def _assert_reached(gradients: dict[str, Tensor]) -> None:
    weight = gradients[f"{KEY}_encoder.projector.projection.weight"]
    assert weight.abs().max() > 1e-8, "the input does not reach the loss"


class _counting:
    """Counts bytes that are kept for backward while a module runs."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._kept, self._inside = module, [0], False

    def __enter__(self) -> list[int]:
        def before(*_: Any) -> None:
            self._inside = True

        def after(*_: Any) -> None:
            self._inside = False

        def pack(tensor: Tensor) -> Tensor:
            self._kept[0] += tensor.numel() * tensor.element_size() if self._inside else 0
            return tensor

        # The composition by hand runs the encoder too, and may keep what it likes: its parameters need no gradient.
        self._hooks = [self._module.register_forward_pre_hook(before), self._module.register_forward_hook(after)]
        self._saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._saved.__enter__()
        return self._kept

    def __exit__(self, *error: Any) -> None:
        self._saved.__exit__(*error)
        for hook in self._hooks:
            hook.remove()


def _count_runs(model: nn.Module) -> dict[nn.Module, int]:
    """How often each innermost module ran from now on."""
    runs: dict[nn.Module, int] = {}

    def counted(module: nn.Module, _: Any) -> None:
        runs[module] = runs.get(module, 0) + 1

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(counted)
    return runs
