"""Pipeline templates: names in the order modules run, stages as data."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, OPTConfig, OPTForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from cornstarch import ArgumentError, ModalEncoderModule, MultimodalModel, PipelineTemplate
from tests import parts, tiny

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
LANGUAGE_MODELS += ["granite", "falcon", "mixtral", "bloom", "smollm3", "opt", "bart", "rwkv", "mamba2"]
LANGUAGE_MODELS += ["jamba", "bamba", "nemotron_h", "big_bird"]  # layers of several classes; a method between
ARGUMENTS = {
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 8},
    "bart": {"d_model": 16, "decoder_layers": 3, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
    "mamba2": {"num_heads": 4, "state_size": 4, "n_groups": 1},
    "jamba": {"num_experts": 2, "mamba_dt_rank": 2, "use_mamba_kernels": False, "attn_layer_period": 2},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "attn_layer_indices": [1]},
}
ARGUMENTS["jamba"]["attn_layer_offset"] = 1
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
    config = AutoConfig.for_model(model_type, **{**sizes, **ARGUMENTS.get(model_type, {})})
    model = AutoModelForCausalLM.from_config(config)
    names = PipelineTemplate.get_modules(model)
    assert run_order(model, names, input_ids=torch.ones(1, 4, dtype=torch.long)) == names
    covered = {id(p) for name in names for p in model.get_submodule(name).parameters()}
    assert covered == {id(p) for p in model.parameters()}
    template = PipelineTemplate(PipelineTemplate.get_model_name(model), [names])
    assert template.num_layers == config.num_hidden_layers


IMAGE = {"pixel_values": torch.zeros(1, 3, 16, 16)}
TOWER = {**SIZES, "image_size": 16, "patch_size": 8}
SOUND = {"input_values": torch.zeros(1, 400)}
SPEECH = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8}
SPEECH |= {**SIZES, "num_conv_pos_embedding_groups": 2}
TILES = {
    "pixel_values": torch.zeros(1, 1, 2, 3, 16, 16),
    "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
    "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
}


def tower(model_type: str, **arguments: object) -> Callable[[], nn.Module]:
    return lambda: AutoModel.from_config(AutoConfig.for_model(model_type, **arguments))


def mllama() -> nn.Module:
    sizes = {"hidden_size": 16, "attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    more = {"num_hidden_layers": 2, "num_global_layers": 1, "vision_output_dim": 32, "max_num_tiles": 2}
    lists = {"intermediate_layers_indices": [1], "supported_aspect_ratios": [[1, 1], [1, 2]]}
    return MllamaVisionModel(MllamaVisionConfig(**sizes, **more, **lists))


# What makes an encoder, inputs for it, and how many layers it has.
ENCODERS: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor], int]] = {
    "clip": (parts.clip, IMAGE, 2),
    "siglip": (tower("siglip_vision_model", **TOWER), IMAGE, 3),
    "siglip2": (
        tower("siglip2_vision_model", **TOWER, num_patches=4),
        {
            "pixel_values": torch.zeros(1, 4, 192),
            "pixel_attention_mask": torch.ones(1, 4, dtype=torch.long),
            "spatial_shapes": torch.tensor([[2, 2]]),
        },
        3,
    ),
    "vit": (tower("vit", **TOWER), IMAGE, 3),
    "deit": (tower("deit", **TOWER), IMAGE, 3),
    "dinov2": (tower("dinov2", **TOWER), IMAGE, 3),
    "sam": (lambda: tiny.encoder("sam"), {"pixel_values": tiny.images(1)}, 2),
    "mllama": (mllama, TILES, 3),
    "resnet": (tower("resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), IMAGE, 2),
    "qwen2-vl": (
        lambda: tiny.encoder("qwen2-vl"),
        {"hidden_states": torch.zeros(4, 96), "grid_thw": torch.tensor([[1, 2, 2]])},
        2,
    ),
    "whisper": (parts.whisper, {"input_features": torch.zeros(1, 8, 100)}, 1),
    **{
        f"{name}{'-stable' * stable}": (tower(name, **SPEECH, do_stable_layer_norm=stable), SOUND, 3)
        for name in ("wav2vec2", "hubert", "wavlm")
        for stable in (False, True)
    },
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_names_stand_in_the_order_in_which_modules_run(name: str) -> None:
    """Against hooks: `module.` first, `projector.` last; transformer layers alone are counted as layers."""
    make, inputs, layers = ENCODERS[name]
    encoder = ModalEncoderModule(make())
    MultimodalModel({"x": encoder}, parts.llama())
    names = PipelineTemplate.get_modules(encoder)
    assert names[-1] == "projector.projection"
    assert all(name.startswith("module.") for name in names[:-1])
    assert run_order(encoder, names, **inputs) == names
    assert PipelineTemplate("x", [names]).num_layers == layers


@pytest.mark.parametrize("name", [*ENCODERS, *tiny.ENCODERS, *tiny.LANGUAGE_MODELS])
def test_every_parameter_belongs_to_one_module(name: str) -> None:
    """By the parameters' own names; those inside a module of the template belong to it."""
    if name in tiny.LANGUAGE_MODELS:
        part = tiny.language_model(name)
    else:
        part = ENCODERS[name][0]() if name in ENCODERS else tiny.encoder(name)
    names, owners = PipelineTemplate.get_modules(part), PipelineTemplate.get_owners(part)
    inside = {f"{n}.{p}": n for n in names for p, _ in part.get_submodule(n).named_parameters(remove_duplicate=False)}
    assert owners.keys() == {name for name, _ in part.named_parameters(remove_duplicate=False)}
    assert set(owners.values()) == set(names)
    assert inside.items() <= owners.items()


@pytest.mark.parametrize(
    "name, parameter, owner",
    [
        ("sam", "vision_encoder.pos_embed", "vision_encoder.patch_embed"),
        ("mllama", "class_embedding", "pre_tile_positional_embedding"),
        ("wav2vec2", "masked_spec_embed", "feature_projection"),
    ],
)
def test_who_owns_a_parameter_beside_the_layers(name: str, parameter: str, owner: str) -> None:
    """What runs before it is used, as the models' sources say."""
    encoder = ModalEncoderModule(ENCODERS[name][0](), nn.Linear(16, 24))
    owners = PipelineTemplate.get_owners(encoder)
    assert owners[f"module.{parameter}"] == f"module.{owner}"
    assert owners["projector.projection.weight"] == "projector.projection"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(self.query(hidden))


class Recurrence(Attention):
    """A layer of another class."""


class Hybrid(nn.Module):
    """Declared in another order than it runs in; what follows the layers is called by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Conv1d(4, 2, 1)])
        self.norm = parametrizations.weight_norm(nn.Linear(4, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList([Attention(), Recurrence(), nn.Identity(), Attention()])
        self.embed = nn.Linear(4, 4)
        self.dtype_of = self.layers[0].query.weight.dtype

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        if self.norm is None or self.layers[0].query.weight.dtype != self.dtype_of:
            raise ValueError
        return self.finish(self.run(self.embed(x)))

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def finish(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        hidden = self.norm(hidden * self.scale)
        return [self.heads[0](hidden), self.heads[1](hidden.unsqueeze(-1))]


class Subclass(Hybrid):
    """Whose forward is its parent's."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return super().forward(x)


@pytest.mark.parametrize("cls", [Hybrid, Subclass])
def test_a_module_nobody_knows(cls: type[nn.Module]) -> None:
    """Layers of several classes are layers, unlike heads and parametrizations are not; a layer taken out stays one."""
    model = cls()
    names = ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "norm", "heads"]
    assert PipelineTemplate.get_modules(model) == names
    assert run_order(model, names, x=torch.ones(1, 4)) == names[:-1], "a list is never called"
    assert PipelineTemplate.get_owners(model)["scale"] == "layers.3"
    assert PipelineTemplate("x", [names]).num_layers == 4


def test_modules_without_anything_to_cut() -> None:
    """Lists of one class are layers where there are no others; a leaf is one piece; without source, as declared."""
    made: dict = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x): return self.second(self.first(x))", made)
    model = made["Made"]()
    model.first, model.second = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 4)
    assert PipelineTemplate.get_modules(model) == ["first.0", "first.1", "second"]
    assert PipelineTemplate.get_modules(ModalEncoderModule(nn.Linear(4, 4))) == ["module"]


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
