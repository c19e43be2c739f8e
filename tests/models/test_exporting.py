"""Out to Hugging Face: what plain transformers loads gives the model's logits, ids and greedy text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2AudioProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
    WhisperFeatureExtractor,
)

from cornstarch import (
    ArgumentError,
    AveragePool,
    Chain,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    OutputHiddenStates,
    SelectFeatures,
    export_to_hf,
)
from cornstarch.models.multimodal_language_model import importing, shells
from tests import hub, parts, tiny
from tests.models.originals import ORIGINALS
from tests.zoo.table import LM_SIZES

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
SIZE = {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE}
PROCESSORS: dict[str, Any] = {
    "clip": lambda: parts.clip_processor(tiny.IMAGE_SIZE),
    "siglip": lambda: SiglipImageProcessor(size=SIZE),
    "dinov2": lambda: ViTImageProcessor(size=SIZE),
}


def pair(
    vision: str = "clip",
    lm: str = "llama",
    *,
    kind: str = "mlp",
    dtype: torch.dtype = torch.float64,
    vocabulary: int = parts.VOCABULARY,
    layers: tuple[int, ...] | None = None,
    skip_first: int = 0,
    mark: str = "<vision>",
    **changes: Any,
) -> tuple[MultimodalModel, MultimodalProcessor]:
    """A model whose image id is beyond its table (or in a spare row), and its processor."""
    chosen = {}
    if layers is not None or skip_first:
        chosen = {"postprocess_module_callback": SelectFeatures(layers=layers, skip_first=skip_first)}
        chosen |= {"preprocess_callback": OutputHiddenStates()} if layers is not None else {}
    encoder = ModalEncoderModule(tiny.encoder(vision, dtype), **chosen)
    language_model = tiny.language_model(lm, dtype, vocab_size=vocabulary, max_position_embeddings=256, **changes)
    encoder.make_projector(language_model.config.hidden_size, dtype, kind, "gelu")
    tiny.loud(encoder.projector, dtype)
    model = MultimodalModel({"vision": encoder}, language_model).eval()
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = TEMPLATE
    processor = MultimodalProcessor(
        {"vision": PROCESSORS[vision]()}, tokenizer, model, predefined_tokens={"vision": mark}
    )
    return model, processor


def batch(processor: MultimodalProcessor, side: str = "right") -> dict[str, torch.Tensor]:
    """Two images in one sample, none in another, one in a third."""
    mark = processor.tokens["vision"]
    images = [parts.image(seed=seed) for seed in range(3)]
    text = [f"{mark}and{mark}?", "no image here, but more words", f"a{mark}"]
    options = {"text": text, "padding": True, "padding_side": side}
    return processor({"vision": {"images": [images[:2], [], images[2:]]}}, options, return_tensors="pt")


def logits(model: Any, inputs: Any) -> torch.Tensor:
    dtype = next(parameter.dtype for parameter in model.parameters())
    placed = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        return model(**placed).logits[placed["attention_mask"].bool()]


def check(
    model: MultimodalModel, processor: MultimodalProcessor, folder: Path, tolerance: float = 1e-10, **options: Any
) -> LlavaForConditionalGeneration:
    """Export, load as anybody would, compare logits and greedy text; the model stays as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = model.training
    inputs = batch(processor)
    expected = logits(model.eval(), inputs)
    prompt = batch(processor, "left")
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=[2, 258])
    model.train(training)
    modes = [module.training for module in model.modules()]

    export_to_hf(model, processor, folder, **options)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())

    loaded, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(loaded) is LlavaForConditionalGeneration
    found = logits(loaded, inputs)
    tiny.assert_near(found[:, : expected.shape[1]].to(expected.dtype), expected, tolerance)
    pixels = prompt["pixel_values"].to(loaded.dtype)
    text = loaded.generate(**{**prompt, "pixel_values": pixels}, max_new_tokens=6, do_sample=False)
    assert torch.equal(text, answer)
    blind = logits(loaded, {**inputs, "pixel_values": inputs["pixel_values"].flip(0)})
    assert (blind - found).abs().max() > 1e-4, "the images do not reach the logits"
    return loaded


# --- what has a counterpart -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(
    "vision, lm, layers, skip_first",
    [
        ("clip", "llama", None, 0),
        ("clip", "llama", None, 1),
        ("clip", "llama", (-2,), 1),
        ("clip", "qwen2", (0,), 0),
        ("clip", "mistral", (-2, -1), 1),
        ("siglip", "qwen2", None, 0),
        ("siglip", "qwen3", (-1,), 0),
        ("dinov2", "mistral", (-1,), 1),
    ],
)
def test_llava(
    tmp_path: Path, vision: str, lm: str, layers: tuple[int, ...] | None, skip_first: int, kind: str
) -> None:
    """Logits of the loaded checkpoint equal the model's, fp64, 1e-10; greedy text is the same."""
    model, processor = pair(vision, lm, kind=kind, layers=layers, skip_first=skip_first)
    loaded = check(model, processor, tmp_path)
    assert loaded.config.projector_hidden_act == ("linear" if kind == "linear" else "gelu")
    assert loaded.generation_config.eos_token_id == [2, 258]  # the language model's own, and the template's


@pytest.mark.parametrize("vocabulary, rows", [(parts.VOCABULARY, 260), (320, 320)], ids=["beyond", "spare"])
@pytest.mark.parametrize("tie", [False, True])
def test_rows_for_the_mark(tmp_path: Path, tie: bool, vocabulary: int, rows: int) -> None:
    """The table grows by one row if it has none to spare; what was tied is, and what was added is never generated."""
    model, processor = pair(vocabulary=vocabulary, tie_word_embeddings=tie)
    loaded = check(model, processor, tmp_path)
    assert loaded.config.text_config.vocab_size == rows == loaded.lm_head.weight.shape[0]
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie
    assert loaded.generation_config.suppress_tokens == ([259] if rows == 260 else None)
    if rows == 260:  # a row of zeros would win over logits that are all negative
        with torch.no_grad():
            loaded.lm_head.weight[:259] = 0
            loaded.lm_head.weight[:259, 0] = -1
            loaded.model.language_model.norm.weight.zero_()[0] = 1
        prompt = batch(processor, "left")
        prompt["pixel_values"] = prompt["pixel_values"].double()
        new = loaded.generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)[:, -3:]
        assert not (new == 259).any()


@pytest.mark.parametrize("lm, tie", [("opt", True), ("gpt2", True), ("falcon", False)])
def test_tables_that_llava_cannot_tie(tmp_path: Path, lm: str, tie: bool) -> None:
    """Where the embedding table has another name than LLaVA ties the head to, the head is written beside it."""
    model, processor = pair("clip", lm, tie_word_embeddings=tie)
    loaded = check(model, processor, tmp_path)
    assert not loaded.config.tie_word_embeddings


def test_dtypes(tmp_path: Path) -> None:
    """Kept where all parts have one; cast on demand; parts of different dtypes need one said."""
    model, processor = pair(dtype=torch.bfloat16)
    export_to_hf(model, processor, tmp_path / "kept")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "kept").dtype is torch.bfloat16
    model, processor = pair(dtype=torch.float32)
    expected = logits(model, batch(processor))
    export_to_hf(model, processor, tmp_path / "cast", dtype="bfloat16")
    assert model.dtype is torch.float32
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "cast")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    tiny.assert_near(logits(loaded, batch(processor))[:, :259].float(), expected, 0.05)
    model.language_model.bfloat16()
    with pytest.raises(ArgumentError, match=r"different dtypes .*language_model bfloat16"):
        export_to_hf(model, processor, tmp_path / "mixed")
    export_to_hf(model, processor, tmp_path / "mixed", dtype=torch.float32)
    with pytest.raises(ArgumentError, match="dtype must be"):
        export_to_hf(model, processor, tmp_path / "odd", dtype="int8")


def test_projectors_of_the_callers_own(tmp_path: Path) -> None:
    """Two linears with one bias or none, around an activation that transformers has under another class."""
    for bias in ((True, False), (False, False)):
        inner = nn.Sequential(nn.Linear(24, 32, bias=bias[0]), nn.SiLU(), nn.Linear(32, 32, bias=bias[1]))
        model, processor = pair()
        model._modal_encoders["vision"].projector = MultimodalProjector(None, tiny.loud(inner, torch.float64))
        loaded = check(model, processor, tmp_path / str(bias))
        assert loaded.config.projector_hidden_act in ("silu", "swish")
        assert loaded.config.multimodal_projector_bias == any(bias)


def test_training_mode_compiled_and_frozen_parts(tmp_path: Path) -> None:
    """Neither the mode nor what trains matters, nor what torch.compile puts around a part."""
    model, processor = pair()
    model.train(encoders_mode={"vision": (False, True)}, llm_mode=False)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    check(model, processor, tmp_path / "frozen")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trains
    model._modal_encoders["vision"].module = torch.compile(model._modal_encoders["vision"].module, backend="eager")
    check(model.eval(), processor, tmp_path / "compiled")


def test_what_a_part_was_made_without(tmp_path: Path) -> None:
    """A tower without its pooling layer is written with one of zeros, so that nothing is missing."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    tower = tiny.loud(ViTModel(config, add_pooling_layer=False), torch.float64)
    tokenizer = parts.tokenizer()
    language_model = tiny.language_model(dtype=torch.float64, vocab_size=parts.VOCABULARY)
    encoder = ModalEncoderModule(
        tower, preprocess_callback=OutputHiddenStates(), postprocess_module_callback=SelectFeatures(layers=(-2,))
    )
    model = MultimodalModel({"vision": encoder}, language_model).eval()
    processor = MultimodalProcessor({"vision": PROCESSORS["dinov2"]()}, tokenizer, model)
    loaded = check(model, processor, tmp_path)
    assert loaded.model.vision_tower.pooler.dense.weight.abs().max() == 0
    assert "made without `pooler`" in (tmp_path / "README.md").read_text()


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(part: Any, **options: Any) -> Any:
    """A part with an adapter that changes what it computes."""
    wrapped = peft.get_peft_model(part, peft.LoraConfig(r=2, init_lora_weights=False, **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".modules_to_save." in name or "trainable_tokens" in name:
                parameter += 0.1  # as if it had been trained
    return wrapped.to(torch.float64)


ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "copies": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 7]}},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
}


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("options", ADAPTERS.values(), ids=list(ADAPTERS))
def test_adapters_are_merged_into_a_copy(tmp_path: Path, options: dict[str, Any], tie: bool) -> None:
    """Logits equal those of the adapted model, 1e-10; without leave to merge they are refused."""
    model, processor = pair(tie_word_embeddings=tie)
    model.language_model = adapted(model.language_model, **options)
    model._modal_encoders["vision"].module = adapted(
        model._modal_encoders["vision"].module, target_modules=["q_proj", "fc1"]
    )
    model.eval()
    with pytest.raises(ArgumentError, match=r"has adapters .*--merge-adapters"):
        export_to_hf(model, processor, tmp_path)
    loaded = check(model, processor, tmp_path, merge_adapters=True)
    still_tied = tie and "lm_head" not in [*options["target_modules"], *options.get("modules_to_save", [])]
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == still_tied


def test_adapters_inside_a_part(tmp_path: Path) -> None:
    """Those of transformers' own `add_adapter`."""
    model, processor = pair()
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    parts.add_adapter(model.language_model, config)
    model.double().eval()
    check(model, processor, tmp_path, merge_adapters=True)


def test_adapters_injected_into_a_part(tmp_path: Path) -> None:
    """Those that PEFT puts into a part without a model around it."""
    model, processor = pair()
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "init_lora_weights": False}
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, **options), model.language_model)
    model.double().eval()
    with pytest.raises(ArgumentError, match="language_model has adapters"):
        export_to_hf(model, processor, tmp_path)
    check(model, processor, tmp_path, merge_adapters=True)


def test_adapters_that_cannot_be_merged(tmp_path: Path) -> None:
    model, processor = pair()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model.language_model = peft.get_peft_model(model.language_model, config)
    with pytest.raises(ArgumentError, match="language_model: its adapter puts learnt vectors before the text"):
        export_to_hf(model, processor, tmp_path, merge_adapters=True)


# --- the processor ----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, image = sys.argv[1:]
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": "What?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}, {"role": "assistant", "content": "A picture."}],
    tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
)
ids = inputs["input_ids"].tolist()
out = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=5, do_sample=False).tolist()
assert not [name for name in sys.modules if name.startswith("cornstarch")]
print(json.dumps([ids, out]))
"""


def test_in_a_process_that_knows_nothing_of_us(tmp_path: Path) -> None:
    """Ids of a conversation and the greedy answer to it equal the model's."""
    model, processor = pair("siglip", "qwen3")
    export_to_hf(model, processor, tmp_path / "out")
    image = parts.image()
    image.save(tmp_path / "image.png")
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A picture."}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor({"vision": {"images": [image]}}, {"text": [text]}, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=[2, 258])
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(tmp_path / "image.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, answer = json.loads(done.stdout.splitlines()[-1])
    assert ids == inputs["input_ids"].tolist()
    assert answer == expected.tolist()


@pytest.mark.parametrize(
    "template",
    [
        "\n{{ bos_token }}{%- for m in messages %}\n<{{ m.role }}> {{ m.content | trim }}{% endfor %}\n",
        "{% set ns = namespace(n=0) %}{% for m in messages if m['content'] is string %}{% set ns.n = ns.n + 1 %}"
        "{{ ns.n }}: {{ m['content'] }}{% endfor %}",
        "{% macro show(m) %}{{ m['role'] }}={{ m['content'] }};{% endmacro %}{{ messages | length }}"
        "{% for m in messages %}{{ show(m) }}{% endfor %}{{ messages[-1]['role'] }}",
    ],
    ids=["blanks", "namespace", "macro"],
)
def test_templates_take_content_in_parts(tmp_path: Path, template: str) -> None:
    """What the written template makes of parts equals what ours makes of them, and of strings what it always made."""
    model, processor = pair(mark="<im'age\">")
    processor.llm_tokenizer.chat_template = template
    export_to_hf(model, processor, tmp_path)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    turns = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": " b"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ]
    assert theirs.apply_chat_template(turns) == processor.apply_chat_template(turns)
    assert theirs.apply_chat_template(turns[:1]) == processor.llm_tokenizer.apply_chat_template(
        turns[:1], tokenize=False
    )
    with pytest.raises(Exception, match="known types are text, vision, image"):
        theirs.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])
    assert processor.llm_tokenizer.chat_template == template


def test_names_of_models_inputs(tmp_path: Path) -> None:
    """A tokenizer that gives more than the language model takes gives no more than that in the checkpoint."""
    model, processor = pair()
    names = ["input_ids", "token_type_ids", "attention_mask"]
    processor.llm_tokenizer.model_input_names = processor.llm_tokenizer.init_kwargs["model_input_names"] = names
    export_to_hf(model, processor, tmp_path)
    found = AutoProcessor.from_pretrained(tmp_path)(text=["a"], return_tensors="pt")
    assert sorted(found) == ["attention_mask", "input_ids"]


def test_special_tokens_around_a_template(tmp_path: Path) -> None:
    """A template that begins with bos is fine; else AutoProcessor would put one there that the model never saw."""
    model, processor = pair()
    processor.llm_tokenizer = parts.tokenizer(with_bos_and_eos=True)
    processor.llm_tokenizer.add_special_tokens({"extra_special_tokens": ["<vision>"]})
    processor.llm_tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    export_to_hf(model, processor, tmp_path / "begins")
    processor.llm_tokenizer.chat_template = TEMPLATE
    with pytest.raises(
        ArgumentError, match=r"other ids of a conversation .* must begin with the tokenizer's bos_token"
    ):
        export_to_hf(model, processor, tmp_path / "without")
    assert not list((tmp_path / "without").iterdir())


# --- what has none ----------------------------------------------------------------------------------------------------


def double(inputs: Any, output: Any) -> Any:
    return output.last_hidden_state * 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pooled": ({"postprocess_module_callback": AveragePool(size=2, square=False)}, "AveragePool has no counterpart"),
    "chained": (
        {"postprocess_module_callback": Chain(callbacks=(SelectFeatures(skip_first=1), AveragePool(size=2)))},
        "AveragePool has no counterpart",
    ),
    "own": ({"postprocess_module_callback": double}, "a callback of the caller's own has no counterpart"),
    "behind": ({"postprocess_projector_callback": lambda inputs, output: output}, "postprocess_projector_callback"),
    "two-rows": (
        {"postprocess_module_callback": SelectFeatures(skip_first=2)},
        r"SelectFeatures\(skip_first=2\) has no counterpart",
    ),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=list(REFUSED))
def test_callbacks_without_counterpart(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    model = MultimodalModel(
        {"vision": ModalEncoderModule(tiny.encoder("clip"), **options)}, tiny.language_model(vocab_size=300)
    )
    processor = MultimodalProcessor({"vision": PROCESSORS["clip"]()}, parts.tokenizer(), model)
    refuse(model, processor, tmp_path, message)


def refuse(model: Any, processor: Any, folder: Path, message: str, **options: Any) -> None:
    """An export is refused with the reason, and leaves nothing."""
    with pytest.raises(ArgumentError, match=message):
        export_to_hf(model, processor, folder / "refused", **options)
    assert not (folder / "refused").exists() or not list((folder / "refused").iterdir())


def test_models_without_counterpart(tmp_path: Path) -> None:
    model, processor = parts.three_modalities()
    refuse(model, processor, tmp_path, "has one encoder, of images; this model has 3")
    model = MultimodalModel({"audio": ModalEncoderModule(parts.whisper())}, parts.llama())
    processor = MultimodalProcessor({"audio": parts.whisper_processor()}, parts.tokenizer(), model)
    refuse(model, processor, tmp_path, "takes input_features, the one of a LLaVA takes pixel_values")
    model, processor = pair("dinov2")
    refuse(model, processor, tmp_path, "the last is not the output .*SelectFeatures")
    model, processor = pair()
    model.preprocess_llm_callback = lambda inputs: inputs
    refuse(model, processor, tmp_path, "preprocess_llm_callback has no counterpart")
    model.preprocess_llm_callback = None
    refuse(model, processor, tmp_path, "unknown format 'x'; known formats: llava, original", format="x")
    model.set_modality_token_ids({"vision": 17})
    refuse(model, processor, tmp_path, "the processor that was made for this model")


def test_projectors_without_counterpart(tmp_path: Path) -> None:
    own = [
        (nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 32)), "a Sequential of LayerNorm, Linear"),
        (nn.Sequential(nn.Linear(24, 32), nn.PReLU(), nn.Linear(32, 32)), "activation PReLU is none"),
        (nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 32)), r"linear_1.weight \(48, 24\), where it has"),
    ]
    for inner, message in own:
        model, processor = pair(dtype=torch.float32)
        model._modal_encoders["vision"].projector = MultimodalProjector(None, inner)
        refuse(model, processor, tmp_path, message)


def test_heads_without_counterpart(tmp_path: Path) -> None:
    """Found by comparing: soft-caps and scales; and a bias by looking."""
    from transformers import (
        Cohere2Config,
        Cohere2ForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        PhiConfig,
        PhiForCausalLM,
    )

    sizes = {**LM_SIZES, "num_key_value_heads": 2, "vocab_size": 300}
    language_models = [
        (Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=0.5)), "does more to them"),
        (Cohere2ForCausalLM(Cohere2Config(**sizes, logit_scale=0.5)), "does more to them"),
        (PhiForCausalLM(PhiConfig(**sizes)), "has a bias"),
    ]
    for language_model, message in language_models:
        model = MultimodalModel(
            {"vision": ModalEncoderModule(tiny.encoder("clip"))}, tiny.loud(language_model, torch.float32)
        )
        processor = MultimodalProcessor({"vision": PROCESSORS["clip"]()}, parts.tokenizer(), model.eval())
        refuse(model, processor, tmp_path, message)


def test_encoders_without_counterpart(tmp_path: Path) -> None:
    """Maps instead of rows, packed images, a class that AutoModel does not make, and no AutoProcessor."""
    from transformers import Qwen2VLImageProcessor
    from transformers.models.siglip.modeling_siglip import SiglipVisionModel

    class Own(SiglipVisionModel):
        pass

    found = {
        "qwen2-vl": (tiny.encoder("qwen2-vl"), Qwen2VLImageProcessor(patch_size=4), "takes hidden_states"),
        "sam": (tiny.encoder("sam"), PROCESSORS["dinov2"](), "SamVisionModel yields maps"),
        "own": (
            Own(tiny.encoder_config("siglip")),
            PROCESSORS["siglip"](),
            "is a Own; by its config .* SiglipVisionModel",
        ),
    }
    for encoder, image_processor, message in found.values():
        model = MultimodalModel({"vision": ModalEncoderModule(encoder)}, tiny.language_model(vocab_size=300)).eval()
        processor = MultimodalProcessor({"vision": image_processor}, parts.tokenizer(), model)
        refuse(model, processor, tmp_path, message)

    def plain(images: Any, return_tensors: str | None = None) -> Any:
        return PROCESSORS["clip"]()(images, return_tensors=return_tensors)

    model, _ = pair()
    processor = MultimodalProcessor({"vision": plain}, parts.tokenizer(), model)
    refuse(model, processor, tmp_path, "its processor is a function; AutoProcessor")


def test_quantised_parts_and_parts_without_values(tmp_path: Path) -> None:
    model, processor = pair()
    model.language_model.is_quantized = True
    refuse(model, processor, tmp_path, "language_model holds its weights in fewer bits")
    model.language_model.is_quantized = False
    model.language_model.to("meta")
    refuse(model, processor, tmp_path, "has no values")


# --- it verifies itself -----------------------------------------------------------------------------------------------


def test_what_would_differ_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault anywhere in the format is found by comparing; the former export stays."""
    from cornstarch.models.multimodal_language_model import export_two_linears

    model, processor = pair()
    export_to_hf(model, processor, tmp_path)
    former = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    monkeypatch.setattr(export_two_linears, "_activation_name", lambda *_: "relu")
    with pytest.raises(ArgumentError, match=r"would differ .* The features of the images differ already, by"):
        export_to_hf(model, processor, tmp_path)
    monkeypatch.undo()
    identity = export_two_linears.chat_templates.with_typed_content
    monkeypatch.setattr(
        export_two_linears.chat_templates, "with_typed_content", lambda template, *rest: "?" + identity(template, *rest)
    )
    with pytest.raises(ArgumentError, match="other ids of a conversation"):
        export_to_hf(model, processor, tmp_path)
    monkeypatch.undo()
    original = export_two_linears._head

    def shifted(language_model: Any) -> Any:
        head = original(language_model)
        head.weight = nn.Parameter(head.weight * 1.001)
        return head

    monkeypatch.setattr(export_two_linears, "_head", shifted)
    with pytest.raises(ArgumentError, match=r"differ from the model's on images and text, by 0.001"):
        export_to_hf(model, processor, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == former
    assert export_to_hf(model, processor, tmp_path, verify=False).difference is None
    assert "not compared" in (tmp_path / "README.md").read_text()


def test_no_weight_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is the model's own tensors, but for the table and the head that grew."""
    model, processor = pair()
    own = {value.data_ptr() for value in model.state_dict().values()}
    saved: dict[str, int] = {}

    def look(shell: Any, *args: Any, **kwargs: Any) -> None:
        saved.update({name: value.data_ptr() for name, value in shell.state_dict().items()})
        raise ValueError("enough was seen")

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", look)
    with pytest.raises(ArgumentError, match="enough was seen"):
        export_to_hf(model, processor, tmp_path)
    made = {name for name, place in saved.items() if place not in own}
    assert made == {"lm_head.weight", "model.language_model.embed_tokens.weight"}
    assert len(saved) == len(model.state_dict())


def test_sharded_and_replaced(tmp_path: Path) -> None:
    """Shards of a former export are gone; files of others stay, and are never overwritten."""
    model, processor = pair()
    export_to_hf(model, processor, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "notes.txt").write_text("mine")
    expected = logits(model, batch(processor))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    tiny.assert_near(logits(loaded, batch(processor))[:, :259], expected)
    export_to_hf(model, processor, tmp_path)
    assert not list(tmp_path.glob("model-*"))
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    model.save_pretrained(tmp_path / "saved")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir() if path.is_file()}
    with pytest.raises(ArgumentError, match=r"would be lost: config.json"):
        export_to_hf(model, processor, tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir() if path.is_file()} == saved
    with pytest.raises(ArgumentError, match="is a file"):
        export_to_hf(model, processor, tmp_path / "notes.txt")


def test_the_card(tmp_path: Path) -> None:
    model, processor = pair()
    options: dict[str, Any] = {"license": "apache-2.0", "base_model": ["a/b", "c/d"], "datasets": ["e/f"]}
    export_to_hf(model, processor, tmp_path, training="By hand.", **options)
    import yaml

    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "image-text-to-text"
    assert (values["license"], values["base_model"], values["datasets"]) == ("apache-2.0", ["a/b", "c/d"], ["e/f"])
    rows = {"vision_encoder": model._modal_encoders["vision"].module, "language_model": model.language_model}
    for name, part in rows.items():
        assert f"| {name} | {type(part).__name__} | {sum(p.numel() for p in part.parameters()):,} |" in body
    assert "By hand." in body
    code = body.split("```python\n")[1].split("```")[0]
    Image.new("RGB", (30, 20), "red").save(tmp_path / "photo.jpg")
    code = code.replace("path/to/this/folder", str(tmp_path)).replace("photo.jpg", str(tmp_path / "photo.jpg"))
    exec(compile(code.replace("max_new_tokens=64", "max_new_tokens=2"), "card", "exec"), {})


def test_origins(tmp_path: Path) -> None:
    """Where parts came from is the model's word, else their configs'; folders on this machine are no names."""
    model, processor = pair()
    model.language_model.config._name_or_path = "someone/llama"
    model._modal_encoders["vision"].module.config._name_or_path = str(tmp_path)
    export_to_hf(model, processor, tmp_path / "a")
    assert "base_model:\n- someone/llama" in (tmp_path / "a" / "README.md").read_text()
    model.origin = {"path": "someone/llava", "config": {"model_type": "llava"}}
    export_to_hf(model, processor, tmp_path / "b")
    assert "base_model:\n- someone/llava\n- someone/llama" in (tmp_path / "b" / "README.md").read_text()


def test_round_trip(tmp_path: Path) -> None:
    """What was exported can be imported again; logits are the same, 1e-10."""
    model, processor = pair(layers=(-2,), skip_first=1)
    export_to_hf(model, processor, tmp_path)
    again = MultimodalModel.from_pretrained_multimodal_model(tmp_path)
    again_processor = MultimodalProcessor({"vision": PROCESSORS["clip"]()}, processor.llm_tokenizer, again)
    export_to_hf(again, again_processor, tmp_path / "again")
    inputs = batch(processor)
    tiny.assert_near(logits(again, inputs)[:, :259], logits(model, inputs))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    tiny.assert_near(logits(loaded, inputs)[:, :259], logits(model, inputs))
    again.origin = {**again.origin, "config": {"model_type": "qwen2_vl"}}
    refuse(again, again_processor, tmp_path, "the processor was not made of the original's, whose files")


# --- back into the format it came from --------------------------------------------------------------------------------

MARK = 259  # the first id behind the tokenizer's own


def came_with(name: str) -> tuple[MultimodalModel, Any]:
    """An import whose weights were changed since, and the processor that belongs to the original."""
    row = ORIGINALS[name]
    changed = {**row.config, row.id_name: MARK}
    changed["text_config"] = {**row.config["text_config"], "vocab_size": 320}
    changed["max_position_embeddings"] = 512
    model = importing.take_apart(row._replace(config=changed).make())
    model.origin = {**model.origin, "path": "someone/original"}
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"extra_special_tokens": ["<mark>"]})
    if name == "qwen2-audio":
        listener = WhisperFeatureExtractor(feature_size=8, hop_length=400, chunk_length=1, n_fft=400)
        processor: Any = Qwen2AudioProcessor(listener, tokenizer, chat_template=TEMPLATE, audio_token="<mark>")
    elif name == "llava-next":
        sees: Any = LlavaNextImageProcessor(
            image_grid_pinpoints=row.config["image_grid_pinpoints"],
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
        )
        processor = LlavaNextProcessor(
            sees, tokenizer, 4, "default", image_token="<mark>", num_additional_image_tokens=1
        )
    else:
        processor = LlavaProcessor(
            parts.clip_processor(16), tokenizer, 4, "default", image_token="<mark>", num_additional_image_tokens=1
        )
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, processor


@pytest.mark.parametrize("name", ["llava", "llava-next", "qwen2-audio"])
def test_imports_go_out_as_they_came(tmp_path: Path, name: str) -> None:
    """With the original's own processor; logits of what is loaded equal the model's, fp64, 1e-10."""
    model, processor = came_with(name)
    made = export_to_hf(model, processor, tmp_path)
    assert made.format == "original"
    assert made.difference is not None
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == model.origin["config"]["model_type"]
    loaded = shells.auto_class(config).from_pretrained(tmp_path)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    if name == "qwen2-audio":
        media: dict[str, Any] = {"audio": [parts.sound(16000)], "sampling_rate": 16000}
    else:
        media = {"images": [parts.image(), parts.image(40, 20)]}
    inputs = theirs(text=["a" + "<mark>" * len(next(iter(media.values()))) + "b"], return_tensors="pt", **media)
    inputs = inputs.to(torch.float64)
    with torch.no_grad():
        tiny.assert_near(loaded(**inputs).logits, model(**inputs).logits)
    card = (tmp_path / "README.md").read_text()
    assert "base_model:\n- someone/original" in card
    assert f"pipeline_tag: {'audio' if name == 'qwen2-audio' else 'image'}-text-to-text" in card
    assert f"exported from, on {'sounds' if name == 'qwen2-audio' else 'images'} and text, with" in card


def test_which_processor_a_format_takes(tmp_path: Path) -> None:
    model, processor = pair()
    refuse(model, processor, tmp_path, "the model was not imported", format="original")
    imported, theirs = came_with("llava")
    refuse(imported, theirs, tmp_path, "needs a MultimodalProcessor, found LlavaProcessor", format="llava")
    refuse(model, theirs, tmp_path, "the model was not imported")
    imported.vision_encoder.postprocess_projector_callback = AveragePool(size=2)
    refuse(imported, theirs, tmp_path, "vision_encoder.postprocess_projector_callback is AveragePool")


def test_a_template_that_takes_parts_goes_out_as_it_is(tmp_path: Path) -> None:
    """An import in LLaVA's format, whose tokenizer's template writes marks by itself; the export compares the ids."""
    folder = tmp_path / "original"
    hub.llava(folder)
    model = MultimodalModel.from_pretrained_multimodal_model(folder)
    processor = MultimodalProcessor.from_pretrained_multimodal_model(folder, model)
    made = export_to_hf(model, processor, tmp_path / "out", format="llava")
    assert made.format == "llava"
    theirs = AutoProcessor.from_pretrained(tmp_path / "out")
    assert theirs.chat_template == processor.llm_tokenizer.chat_template
