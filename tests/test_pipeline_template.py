"""Pipeline templates: names in the order modules run, stages as data."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from cornstarch import ArgumentError, ModalEncoderModule, MultimodalModel, PipelineTemplate
from tests import parts

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
LANGUAGE_MODELS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "gpt_neox", "gpt2", "olmo2"]
LANGUAGE_MODELS += ["granite", "falcon", "mixtral", "bloom", "smollm3", "opt"]
LLAMA = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]


def run_order(module: nn.Module, names: list[str], **inputs: torch.Tensor) -> list[str]:
    """The names in the order in which their modules are first called."""
    called: list[str] = []
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name in names
    ]
    with torch.no_grad():
        module.eval()(**inputs)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(called))


def test_llama_names() -> None:
    """The documented names."""
    assert PipelineTemplate.get_modules(parts.llama()) == LLAMA
    assert PipelineTemplate.get_model_name(parts.llama()).endswith("LlamaForCausalLM")


@pytest.mark.parametrize(
    "model_type",
    LANGUAGE_MODELS,
)
def test_names_stand_in_the_order_in_which_modules_run(model_type: str) -> None:
    """Against hooks in a real forward pass; every weight of the model belongs to a name."""
    sizes = {name: size for name, size in SIZES.items() if (model_type, name) != ("falcon", "head_dim")}
    config = AutoConfig.for_model(model_type, **sizes)
    if model_type == "opt":
        config = OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=8)
    model = AutoModelForCausalLM.from_config(config)
    names = PipelineTemplate.get_modules(model)
    assert run_order(model, names, input_ids=torch.ones(1, 4, dtype=torch.long)) == names
    covered = {id(p) for name in names for p in model.get_submodule(name).parameters()}
    assert covered == {id(p) for p in model.parameters()}
    template = PipelineTemplate(PipelineTemplate.get_model_name(model), [names])
    assert template.num_layers == config.num_hidden_layers


@pytest.mark.parametrize("make", [parts.clip, parts.whisper, parts.wav2vec2])
def test_encoder_names_stand_in_the_order_in_which_modules_run(make: object) -> None:
    """`module.` first, `projector.` last; every weight that a forward pass uses belongs to a name."""
    encoder = ModalEncoderModule(make())
    MultimodalModel({"x": encoder}, parts.llama())
    names = PipelineTemplate.get_modules(encoder)
    assert names[-1] == "projector.projection"
    assert all(name.startswith("module.") for name in names[:-1])
    shape = {"clip": (1, 3, 16, 16), "whisper": (1, 8, 100), "wav2vec2": (1, 400)}[make.__name__]
    main = {"clip": "pixel_values", "whisper": "input_features", "wav2vec2": "input_values"}[make.__name__]
    ran = run_order(encoder, names, **{main: torch.zeros(shape)})
    assert ran == [name for name in names if name in ran]


def test_opt_with_projections() -> None:
    """Modules that stand before the layers in the file and run after them."""
    model = OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=8))
    names = PipelineTemplate.get_modules(model)
    assert names.index("model.decoder.layers.2") < names.index("model.decoder.project_out") < names.index("lm_head")


def test_peft_changes_no_name() -> None:
    wrapped = get_peft_model(parts.llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert PipelineTemplate.get_modules(wrapped) == LLAMA
    assert PipelineTemplate.get_model_name(wrapped) == PipelineTemplate.get_model_name(parts.llama())


def test_counts_equality_and_hash() -> None:
    first = PipelineTemplate("llama", [LLAMA[:2], LLAMA[2:]])
    assert (first.num_stages, first.num_layers, first.get_num_layers_per_stage()) == (2, 2, [1, 1])
    assert first == PipelineTemplate("llama", (tuple(LLAMA[:2]), tuple(LLAMA[2:])))
    assert hash(first) == hash(PipelineTemplate("llama", [LLAMA[:2], LLAMA[2:]]))
    assert first != PipelineTemplate("llama", [LLAMA[:3], LLAMA[3:]])
    assert first != PipelineTemplate("other", [LLAMA[:2], LLAMA[2:]])
    assert first != "llama"
    first.modules_per_stage[0].append("x")
    assert first.modules_per_stage[0] == LLAMA[:2], "what is handed out is a copy"


@pytest.mark.parametrize(
    "names, named",
    [
        (LLAMA[:-1], "lm_head"),
        (LLAMA[:2] + LLAMA[3:], "model.layers.1"),
        ([*LLAMA, "extra"], "extra"),
        ([*LLAMA[:2], "extra", *LLAMA[2:]], "extra"),
        ([LLAMA[0], LLAMA[2], LLAMA[1], *LLAMA[3:]], "model.layers.1"),
    ],
)
def test_a_template_that_does_not_fit_is_named(names: list[str], named: str) -> None:
    """The first module that is missing, unknown or out of order."""
    with pytest.raises(ArgumentError, match=repr(named)):
        PipelineTemplate("llama", [names]).check(parts.llama())
    PipelineTemplate("llama", [LLAMA[:1], LLAMA[1:]]).check(parts.llama())


@pytest.mark.parametrize("stages", [[], [[]], [LLAMA, []], [LLAMA, LLAMA], ["lm_head"]])
def test_stages_that_make_no_template(stages: list) -> None:
    with pytest.raises(ArgumentError):
        PipelineTemplate("llama", stages)
