"""Tiny Hugging Face parts of every family the tests use, built from configs: seeded, any dtype, loud weights.

Weights are spread wider than Hugging Face initialises them, biases and norms included, so that a wrong position, a lost
bias or an image that does not arrive shows in the logits.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from cornstarch import ModalEncoderModule, MultimodalModel

VOCABULARY, PAD = 96, 0
IMAGE, SOUND = 200, 201  # ids beyond every embedding table
IMAGE_SIZE, PATCH = 8, 4  # four patches an image

# --- language models --------------------------------------------------------------------------------------------------

_LM_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _GROUPED),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", _GROUPED),
    "mistral": ("MistralForCausalLM", {**_GROUPED, "sliding_window": None}),
    # Those whose positions are learned, counted from the mask, or biases on the attention.
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "falcon": ("FalconForCausalLM", {"alibi": False, "multi_query": False, "bias": True}),
    "falcon-alibi": ("FalconForCausalLM", {"alibi": True, "multi_query": False, "bias": True}),
    "bloom": ("BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
}


def language_model_config(family: str = "llama", drop: float = 0.0, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny causal language model.

    Args:
        family: a key of `LANGUAGE_MODELS`.
        drop: every rate of dropout the config knows.
        **changes: other arguments of the config.
    """
    class_name, arguments = LANGUAGE_MODELS[family]
    config = getattr(transformers, class_name).config_class(**{**_LM_SIZES, **arguments, **changes})
    return with_drop(config, drop)


def language_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, drop: float = 0.0, **changes: Any
) -> Any:
    """A tiny causal language model: width 32, two layers, 96 tokens, in training mode."""
    torch.manual_seed(seed)
    cls = getattr(transformers, LANGUAGE_MODELS[family][0])
    return loud(cls(language_model_config(family, drop, **changes)), dtype)


# --- encoders ---------------------------------------------------------------------------------------------------------

_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
}
_WAV2VEC2 = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "apply_spec_augment": False,
}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": PATCH, "temporal_patch_size": 2}
ENCODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, _TOWER),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, _TOWER),
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config, {**_TOWER, "mlp_ratio": 2}),
    "sam": (
        transformers.models.sam.modeling_sam.SamVisionModel,
        transformers.SamVisionConfig,
        {**_TOWER, "output_channels": 16, "mlp_dim": 40, "window_size": 2, "global_attn_indexes": [1]},
    ),
    "convnext": (
        transformers.ConvNextModel,
        transformers.ConvNextConfig,
        {"hidden_sizes": [8, 24], "depths": [1, 1], "num_stages": 2, "patch_size": PATCH},
    ),
    "qwen2-vl": (
        Qwen2VisionTransformerPretrainedModel,
        Qwen2VisionTransformerPretrainedModel.config_class,
        {**_QWEN_TOWER, "embed_dim": 24, "hidden_size": 40, "mlp_ratio": 2},
    ),
    "qwen2.5-vl": (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VisionTransformerPretrainedModel.config_class,
        {**_QWEN_TOWER, "hidden_size": 24, "out_hidden_size": 40, "intermediate_size": 40, "window_size": 16},
    ),
    "whisper": (
        WhisperEncoder,
        transformers.WhisperConfig,
        {
            "d_model": 24,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 40,
            "num_mel_bins": 8,
            "max_source_positions": 6,
        },
    ),
    "wav2vec2": (transformers.Wav2Vec2Model, transformers.Wav2Vec2Config, _WAV2VEC2),
}
# Rows that an image of `images()` or a sound of `sounds()` yields.
ROWS = {"clip": 5, "siglip": 4, "dinov2": 5, "sam": 4, "convnext": 1, "whisper": 6}


def encoder_config(family: str = "clip", drop: float = 0.0, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny encoder: a key of `ENCODERS`, every rate of dropout it knows, other arguments."""
    _, config_class, arguments = ENCODERS[family]
    return with_drop(config_class(**{**arguments, **changes}), drop)


def encoder(
    family: str = "clip", dtype: torch.dtype = torch.float32, seed: int = 1, drop: float = 0.0, **changes: Any
) -> Any:
    """A tiny encoder of images or sounds: width 24, two layers, in training mode."""
    torch.manual_seed(seed)
    return loud(ENCODERS[family][0](encoder_config(family, drop, **changes)), dtype)


# --- inputs -----------------------------------------------------------------------------------------------------------


def images(count: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    """(count, 3, 8, 8) pixel values."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sounds(count: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    """(count, 8, 12) mel frames for the Whisper encoder, which yields six rows for each."""
    return torch.randn(count, 8, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)


def text(length: int, seed: int = 4) -> list[int]:
    """Token ids that stand for no padding, begin or end."""
    return torch.randint(3, VOCABULARY - 8, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows: list[list[int]], side: str = "right") -> dict[str, Tensor]:
    """Rows of ids as `input_ids` and `attention_mask`, padded on one side."""
    width = max(map(len, rows))
    gaps = [[PAD] * (width - len(row)) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    ids = [gap + row if side == "left" else row + gap for row, gap in pairs]
    ones = [
        [0] * len(gap) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(gap) for row, gap in pairs
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(ones)}


# --- whole models -----------------------------------------------------------------------------------------------------


def model(
    vision: Any = None, lm: Any = None, dtype: torch.dtype = torch.float32, init_projector_type: str = "linear"
) -> MultimodalModel:
    """A CLIP tower (or any encoder of images) and a Llama (or any language model), the id of an image being `IMAGE`."""
    vision = encoder(dtype=dtype) if vision is None else vision
    vision = vision if isinstance(vision, ModalEncoderModule) else ModalEncoderModule(vision)
    torch.manual_seed(5)
    made = MultimodalModel(
        {"vision": vision},
        language_model(dtype=dtype) if lm is None else lm,
        init_projector_type=init_projector_type,
    )
    made.set_modality_token_ids({"vision": IMAGE})
    return made


def vision_batch(rows: int = 5, dtype: torch.dtype = torch.float32, labels: bool = True) -> dict[str, Tensor]:
    """Two samples with an image each, of `rows` positions, left-padded; labels everywhere but at padding."""
    batch = padded([text(3) + [IMAGE] * rows + text(4, 6), text(1, 7) + [IMAGE] * rows + text(3, 8)], "left")
    if labels:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "pixel_values": images(2, dtype)}


# --- helpers ----------------------------------------------------------------------------------------------------------


def loud(part: nn.Module, dtype: torch.dtype = torch.float32, scale: float = 0.1) -> Any:
    """Noise on every weight, so that nothing is zero, one, or too small to show."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return part.to(dtype).train()


def with_drop(config: PreTrainedConfig, rate: float) -> PreTrainedConfig:
    """Every rate of dropout, layer drop and stochastic depth a config knows, set to one value."""
    for name, value in list(vars(config).items()):
        if (
            ("drop" in name or name.endswith("_pdrop"))
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ):
            setattr(config, name, rate)
    return config


def trainable(part: nn.Module) -> set[str]:
    """Names of the parameters that require a gradient."""
    return {name for name, parameter in part.named_parameters() if parameter.requires_grad}


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-10, what: str = "") -> None:
    """Differences of at most `tolerance` times the largest entry expected (or 1, where that is smaller)."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)} for {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{what}: {found.dtype} for {expected.dtype}"
    if expected.numel() == 0:
        return
    error = (found - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: off by {error:.3g}"
