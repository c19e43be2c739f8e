"""Odd parts and odd inputs: what works anyway, and what is refused with the reason."""

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlamaModel,
    PixtralVisionConfig,
    PixtralVisionModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTImageProcessor,
)

from cornstarch import (
    ArgumentError,
    CheckpointError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    OutputHiddenStates,
    SelectFeatures,
    UnknownArgumentError,
)
from tests import parts, tiny

MARK = 300
SIZES = {**parts.SMALL, "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}


def ids(positions: int) -> torch.Tensor:
    return torch.tensor([[5, *[MARK] * positions, 6]])


def composed(encoder: nn.Module | ModalEncoderModule, **kwargs: Any) -> MultimodalModel:
    modal = encoder if isinstance(encoder, ModalEncoderModule) else ModalEncoderModule(encoder)
    model = MultimodalModel({"x": modal}, parts.llama(), **kwargs)
    model.set_modality_token_ids({"x": MARK})
    return model.eval()


# --- language models --------------------------------------------------------------------------------------------------

TEXT_MODELS = ["llama", "gpt2", "opt", "falcon", "gemma", "gemma2", "gpt_neox", "bloom", "mixtral", "qwen3"]
TEXT_MODELS += ["roberta", "mamba2", "phi3"]


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("masked", [False, True])
def test_text_alone_is_the_language_model_alone(name: str, masked: bool) -> None:
    """Logits equal the language model's own on the same ids, all weights random; fp32, 1e-5 of the largest."""
    torch.manual_seed(0)
    skipped = {"falcon": ("head_dim",), "mamba2": tuple(SIZES)}.get(name, ())
    sizes = {key: value for key, value in SIZES.items() if key not in skipped}
    if name == "mamba2":
        sizes = {
            "hidden_size": 16,
            "num_heads": 4,
            "head_dim": 8,
            "vocab_size": 64,
            "num_hidden_layers": 2,
            "n_groups": 1,
        }
    config = AutoConfig.for_model(name, **sizes)
    if name == "roberta":
        config.is_decoder = True
    language_model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in language_model.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(3, 60, (2, 7))
    mask = {"attention_mask": torch.ones_like(tokens)} if masked else {}
    with torch.no_grad():
        expected = language_model(input_ids=tokens).logits
        found = MultimodalModel({}, language_model)(input_ids=tokens, **mask).logits
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(scale, 1))


def test_language_models_that_embeddings_cannot_drive_are_refused() -> None:
    """Ids looked up in every layer, an encoder-decoder, a backbone without a head: the reason, when it is built."""
    looks_up = parts.llama()
    looks_up.config.hidden_size_per_layer_input = 8
    with pytest.raises(ArgumentError, match="embeddings of their own"):
        MultimodalModel({}, looks_up)
    small = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)
    with pytest.raises(ArgumentError, match="encoder-decoder"):
        MultimodalModel({}, T5ForConditionalGeneration(small))
    with pytest.raises(ArgumentError, match="AutoModelForCausalLM"):
        MultimodalModel({}, LlamaModel(parts.llama().config))


_DEEPSEEK = {"head_dim": 16, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK |= {"q_lora_rank": 8, "o_lora_rank": 8, "o_groups": 2, "qk_rope_head_dim": 8}
_DEEPSEEK |= {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "name, sizes, reason",
    [
        ("deepseek_v4", _DEEPSEEK, "routed by token ids"),
        ("cpmant", {"dim_head": 8, "dim_ff": 16, "num_attention_heads": 2}, "takes no inputs_embeds"),
    ],
)
def test_language_models_that_read_ids_are_refused(name: str, sizes: dict[str, Any], reason: str) -> None:
    pytest.importorskip(f"transformers.models.{name}")  # not in every release
    config = AutoConfig.for_model(name, vocab_size=64, hidden_size=16, num_hidden_layers=2, pad_token_id=0, **sizes)
    with pytest.raises(ArgumentError, match=f"cannot be composed.*{reason}"):
        MultimodalModel({}, AutoModelForCausalLM.from_config(config))


def test_a_config_without_output_classes_is_refused() -> None:
    language_model = parts.llama()
    language_model.config.return_dict = False
    with pytest.raises(ArgumentError, match="return_dict"):
        MultimodalModel({}, language_model)


def test_a_compiled_part_is_seen_through() -> None:
    """Arguments reach a language model and an encoder that torch.compile wrapped; saved names are those underneath."""
    model = composed(parts.clip())
    names = set(model.state_dict())
    model.language_model = torch.compile(model.language_model, backend="eager")
    model.x_encoder.module = torch.compile(model.x_encoder.module, backend="eager")
    output = model(input_ids=ids(5), pixel_values=torch.randn(1, 3, 16, 16), logits_to_keep=1)
    assert output.logits.shape[1] == 1
    assert model.accepts_loss_kwargs
    assert {name.replace("_orig_mod.", "") for name in model.state_dict()} == names


def test_none_overrules_the_generation_config() -> None:
    """`eos_token_id=None` generates on, as with the language model alone."""
    model = composed(parts.clip())
    tokens = torch.tensor([[5, 6, 7]])
    first = model.generate(tokens, max_new_tokens=1, do_sample=False)[0, -1].item()
    model.generation_config.eos_token_id = first
    assert model.generate(tokens, max_new_tokens=6, do_sample=False).shape[1] == 4
    assert model.generate(tokens, max_new_tokens=6, do_sample=False, eos_token_id=None).shape[1] == 9


def test_right_padded_prompts_are_warned_about() -> None:
    model = composed(parts.clip())
    with pytest.warns(UserWarning, match="right-padded"):
        model.generate(torch.tensor([[5, 0]]), torch.tensor([[1, 0]]), max_new_tokens=1)


# --- encoders ---------------------------------------------------------------------------------------------------------


def test_pixtral_packs_images_of_several_sizes() -> None:
    """One sequence for all images: each sample takes its own image's rows, wherever it stands."""
    torch.manual_seed(0)
    config = PixtralVisionConfig(**parts.SMALL, head_dim=8, image_size=32, patch_size=8)
    model = composed(PixtralVisionModel(config))
    pixels = torch.randn(2, 3, 32, 32)
    sizes = torch.tensor([[16, 16], [32, 24]])
    features = model.x_encoder(pixel_values=pixels, image_sizes=sizes)
    assert [len(rows) for rows in features] == [4, 12]
    batch = torch.full((2, 14), 5)
    batch[0, 1:5], batch[1, 1:13] = MARK, MARK
    model(input_ids=batch, pixel_values=pixels, image_sizes=sizes)
    with pytest.raises(ValueError, match="first sample that disagrees is 0"):
        model(input_ids=batch.flip(0), pixel_values=pixels, image_sizes=sizes)


def test_whisper_with_a_mask() -> None:
    """Processor and model trim alike: half a second of a one-second window is half the positions."""
    model = MultimodalModel({"audio": ModalEncoderModule(parts.whisper())}, parts.llama()).eval()
    extractor = parts.whisper_processor()
    processor = MultimodalProcessor({"audio": extractor}, parts.tokenizer(), model)
    audio = {"raw_speech": [parts.sound(8000)], "sampling_rate": 16000, "return_attention_mask": True}
    batch = processor({"audio": audio}, {"text": "<audio>"}, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 25)
    model(**batch)


class WithoutClassToken(CLIPVisionModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state[:, 1:]
        return output


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = parts.clip()
        self.config = self.tower.config
        self.lock = threading.Lock()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.kept = self.tower(pixel_values).last_hidden_state[:, 2:]
        return self.kept * 1.0


class Pooling(ModalEncoderModule):
    def forward(self, **inputs: Any) -> Any:
        return super().forward(**inputs).mean(1, keepdim=True)


@pytest.mark.parametrize("kind, positions", [("subclass", 4), ("wrapper", 3), ("module", 1), ("hook", 4)])
def test_own_classes_are_asked_and_not_computed(kind: str, positions: int) -> None:
    """Whatever their config says; also those that hold a lock or a tensor from a training step."""
    encoder = {
        "subclass": lambda: ModalEncoderModule(WithoutClassToken(parts.clip().config)),
        "wrapper": lambda: ModalEncoderModule(Wrapper()),
        "module": lambda: Pooling(parts.clip()),
        "hook": lambda: ModalEncoderModule(parts.clip()),
    }[kind]()
    if kind == "hook":
        encoder.register_forward_hook(lambda module, inputs, output: output[:, 1:])
    model = MultimodalModel({"vision": encoder}, parts.llama()).train()
    encoder(pixel_values=torch.randn(1, 3, 16, 16)).sum().backward()
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), model)
    batch = processor({"vision": {"images": [parts.image()]}}, {"text": "<vision>"}, return_tensors="pt")
    assert batch["input_ids"].shape == (1, positions)
    model(**batch)


def test_a_width_that_a_callback_changed() -> None:
    """Two layers side by side before a projector for one: both widths in the error; a callback that says so fits."""
    stated = SelectFeatures(layers=(-2, -1))
    own = ModalEncoderModule(
        parts.clip(),
        preprocess_callback=OutputHiddenStates(),
        postprocess_module_callback=lambda inputs, output: stated(inputs, output),
    )
    given = {"preprocess_callback": OutputHiddenStates(), "postprocess_module_callback": stated}
    assert composed(ModalEncoderModule(parts.clip(), **given)).x_encoder.projector.widths == (32, 24)
    model = composed(own)
    with pytest.raises(ArgumentError, match=r"width 16.*width 32"):
        model(input_ids=ids(5), pixel_values=torch.randn(1, 3, 16, 16))


# --- arguments --------------------------------------------------------------------------------------------------------


def test_two_names_for_one_argument(tmp_path: Path) -> None:
    from tests.models.test_feature_counts import qwen_tower

    model = composed(qwen_tower())
    grid = torch.tensor([[1, 4, 4]])
    pixels = torch.randn(16, 96)
    with pytest.raises(ArgumentError, match="two names for one argument"):
        model(input_ids=ids(4), pixel_values=pixels, pixel_values_videos=pixels, image_grid_thw=grid)
    expected = model(input_ids=ids(4), pixel_values=pixels, image_grid_thw=grid).logits
    hidden = model.x_encoder.module(pixels, grid).pooler_output
    found = model(input_ids=ids(4), encoder_outputs={"x": hidden}, image_grid_thw=grid).logits
    assert torch.equal(found, expected)
    with pytest.raises(ArgumentError, match="both its input and its encoder_outputs"):
        model(input_ids=ids(4), encoder_outputs={"x": hidden}, pixel_values=pixels, image_grid_thw=grid)


def test_a_callback_may_set_what_the_caller_gave_as_none() -> None:
    seen = {}

    def shift(inputs: dict) -> dict:
        return {**inputs, "position_ids": torch.arange(3)[None] + 7}

    model = composed(parts.clip(), preprocess_llm_callback=shift)
    model.language_model.register_forward_pre_hook(lambda m, a, kwargs: seen.update(kwargs), with_kwargs=True)
    model(input_ids=torch.tensor([[1, 2, 3]]), position_ids=None)
    assert seen["position_ids"].tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"input_ids": [[1, 2]]}, "tensor, found list"),
        ({"input_ids": torch.tensor([1, 2])}, "batch, positions"),
        ({"input_ids": torch.ones(1, 2)}, "whole numbers"),
        ({"input_ids": torch.ones(1, 2, dtype=torch.long), "labels": torch.ones(2, 1, dtype=torch.long)}, "labels"),
        ({"input_ids": torch.ones(1, 2, dtype=torch.long), "inputs_embeds": torch.ones(1, 3, 24)}, "inputs_embeds"),
        ({"input_ids": torch.ones(1, 2, dtype=torch.long), "encoder_outputs": torch.ones(1)}, "encoder_outputs"),
    ],
)
def test_shapes_that_make_no_batch(inputs: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        composed(parts.clip())(**inputs)


def test_an_unknown_argument_is_refused_even_if_it_is_none() -> None:
    with pytest.raises(UnknownArgumentError, match="pixel_values"):
        composed(parts.clip())(input_ids=torch.tensor([[1]]), pixle_values=None)


# --- the processor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode(mode: str) -> None:
    """As the same image converted to RGB; also with a processor that does not convert; exact."""
    model = parts.vision_model()
    plain = ViTImageProcessor(size={"height": 16, "width": 16})
    processor = MultimodalProcessor({"vision": plain}, parts.tokenizer(), model)
    picture = Image.new("RGB", (16, 16), "red").convert(mode)
    first, second = (
        processor({"vision": {"images": [image]}}, {"text": "<vision>"}, return_tensors="pt")["pixel_values"]
        for image in (picture, picture.convert("RGB"))
    )
    assert torch.equal(first, second)


def test_empty_text_is_whole_numbers() -> None:
    _, processor = parts.vision_pair()
    assert processor(llm_inputs={"text": [""]}, return_tensors="pt")["input_ids"].dtype == torch.long
    with pytest.raises(ArgumentError, match="empty list"):
        processor(llm_inputs={"text": []})
    with pytest.raises(ArgumentError, match="max_length"):
        processor(llm_inputs={"text": "a", "truncation": True, "max_length": 0})


def test_arguments_at_the_wrong_place() -> None:
    """Media as keywords, a misspelt tokenizer option, lists where dicts belong, return_tensors twice."""
    _, processor = parts.vision_pair()
    with pytest.raises(UnknownArgumentError, match=r"encoder_inputs=\{'vision'"):
        processor(images=[parts.image()], llm_inputs={"text": "a"})
    with pytest.raises(UnknownArgumentError, match="Did you mean 'padding'"):
        processor(llm_inputs={"text": "a", "paddding": True})
    with pytest.raises(ArgumentError, match="such as"):
        processor(encoder_inputs={"vision": [parts.image()]}, llm_inputs={"text": "<vision>"})
    with pytest.raises(ArgumentError, match="such as"):
        processor(llm_inputs=["<vision>"])
    options = {"text": ["<vision>", "ab"], "return_tensors": "np", "padding": True}
    batch = processor({"vision": {"images": [parts.image()]}}, options, return_tensors="pt")
    assert isinstance(batch["input_ids"], torch.Tensor)


def test_truncation_that_leaves_inputs_out_warns() -> None:
    _, processor = parts.vision_pair()
    with pytest.warns(UserWarning, match="1 of modality 'vision'"):
        processor(
            {"vision": {"images": [parts.image()] * 2}},
            {"text": "<vision><vision>", "truncation": True, "max_length": 7},
        )


@pytest.mark.parametrize("token", ["", "  ", "<pad>", "<eos>"])
def test_tokens_that_cannot_be_marks(token: str) -> None:
    with pytest.raises(ArgumentError, match="predefined_tokens"):
        MultimodalProcessor({}, parts.tokenizer(), parts.vision_model(), predefined_tokens={"vision": token})


# --- saving -----------------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A wrapper with a prefix, as DistributedDataParallel is one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def test_a_wrapped_encoder_is_saved_under_its_own_name(tmp_path: Path) -> None:
    model = composed(parts.clip())
    inputs = {"input_ids": ids(5), "pixel_values": torch.randn(1, 3, 16, 16)}
    expected = model(**inputs).logits
    model.x_encoder = Around(model.x_encoder)
    assert torch.equal(model(**inputs).logits, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(MultimodalModel.from_pretrained(tmp_path)(**inputs).logits, expected)


def test_a_reader_never_gets_two_saves_mixed(tmp_path: Path) -> None:
    """One thread saves models of all-equal weights again and again; what is loaded meanwhile has one value."""
    model = composed(parts.clip())
    done = threading.Event()

    def save() -> None:
        value = 0
        while not done.is_set():
            value += 1
            for parameter in model.parameters():
                parameter.data.fill_(value)
            model.save_pretrained(tmp_path, max_shard_size="10KB")
            done.wait(0.05 * (value % 5))  # now and then a save lasts long enough to be read

    model.save_pretrained(tmp_path, max_shard_size="10KB")
    for parameter in model.parameters():
        parameter.data.fill_(0)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(10):
            loaded = MultimodalModel.from_pretrained(tmp_path)
            assert len({parameter.unique().item() for parameter in loaded.parameters()}) == 1
    finally:
        done.set()
        thread.join()


def test_loading_and_saving_touch_no_other_thread(tmp_path: Path) -> None:
    """New layers made meanwhile and afterwards have ordinary weights."""
    model = composed(parts.clip())
    model.save_pretrained(tmp_path)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            MultimodalModel.from_pretrained(tmp_path)
            model.save_pretrained(tmp_path / "other")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            assert 0 < nn.Linear(64, 64).weight.abs().max() <= 1 / 8
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert 0 < nn.Linear(64, 64).weight.abs().max() <= 1 / 8


def test_savers_wait_for_each_other(tmp_path: Path) -> None:
    models = [composed(parts.clip()) for _ in range(3)]
    errors: list[Exception] = []

    def save(model: MultimodalModel) -> None:
        try:
            for _ in range(5):
                model.save_pretrained(tmp_path, max_shard_size="10KB")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    MultimodalModel.from_pretrained(tmp_path)


def test_files_of_others_between_ours_stay(tmp_path: Path) -> None:
    notes = [
        tmp_path / "my_encoder" / "notes.txt",
        tmp_path / "x_encoder" / "mine.md",
        tmp_path / "tokenizer" / "a.model",
    ]
    model, processor = parts.vision_pair()
    for note in notes:
        note.parent.mkdir(parents=True)
        note.write_text("mine")
    for _ in range(2):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    assert all(note.read_text() == "mine" for note in notes)


def test_names_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    """An adapter with a path for a name, and a listing of files elsewhere."""
    wrapped = get_peft_model(parts.llama(), LoraConfig(target_modules=["q_proj"]), adapter_name="/tmp/elsewhere")
    with pytest.raises(CheckpointError, match="adapter name"):
        MultimodalModel({}, wrapped).save_pretrained(tmp_path / "saved")
    assert not Path("/tmp/elsewhere").exists()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    model = composed(parts.clip())
    model.save_pretrained(tmp_path / "saved")
    for listing in (["../precious"], 5, None, [""], ["."], ["\x00"], [str(precious)]):
        (tmp_path / "saved" / ".model-files.json").write_text(json.dumps(listing))
        model.save_pretrained(tmp_path / "saved")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("change", [{"encoders": 3}, {"language_model": {}}, {"aliases": None}, {"weight_files": None}])
def test_damaged_descriptions_are_checkpoint_errors(tmp_path: Path, change: dict) -> None:
    composed(parts.clip()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match="damaged"):
        MultimodalModel.from_pretrained(tmp_path)


class Own(MultimodalModel):
    pass


def test_a_subclass_comes_back_as_itself(tmp_path: Path) -> None:
    composed(parts.clip()).save_pretrained(tmp_path)
    assert type(Own.from_pretrained(tmp_path)) is Own
    with pytest.raises(ArgumentError, match="dtype"):
        Own.from_pretrained(tmp_path, dtype="half of it")


def test_a_layer_that_somebody_patched_stays_patched() -> None:
    """Checkpointing calls a layer's instance-level forward, and puts it back when it is disabled."""
    model = tiny.ask(composed(parts.clip()))
    layer, calls = model.language_model.model.layers[0], []
    plain = layer.forward

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    layer.forward = patched
    model.gradient_checkpointing_enable()
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    assert len(calls) == 2, "once forward, once recomputed"
    model.gradient_checkpointing_disable()
    assert layer.forward is patched
    assert copy.deepcopy(model).language_model is not model.language_model


@pytest.mark.parametrize("name", ["rembert", "roformer", "llama"])
def test_a_cache_in_any_place_is_not_written_twice(name: str) -> None:
    """Evaluation mode with a cache: gradients with checkpointing equal those without, 1e-6; layers get it anyhow."""
    torch.manual_seed(0)
    widths = {"rembert": {"input_embedding_size": 16, "output_embedding_size": 16}}.get(name, {})
    sizes = {**SIZES, **widths, "is_decoder": True, "max_position_embeddings": 32}
    model = MultimodalModel({}, AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))).eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    found = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-6, atol=1e-6)
