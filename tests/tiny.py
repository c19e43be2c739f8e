"""Tiny Hugging Face parts of every family the tests use, built from configs: seeded, any dtype, loud weights.

Weights are spread wider than Hugging Face initialises them, biases and norms included, so that a wrong position, a lost
bias or an image that does not arrive shows in the logits.
"""

import importlib
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cornstarch import ModalEncoderModule, MultimodalModel
from cornstarch.models.multimodal_language_model.backbone import is_backbone, with_head
from tests.zoo.table import ENCODERS, IMAGE_SIZE, LANGUAGE_MODELS, LM_SIZES, PAD, VOCABULARY

IMAGE, SOUND = 200, 201  # ids beyond every embedding table


def find(name: str) -> Any:
    """A class by the name that a row of the zoo's table has for it."""
    module, _, leaf = name.rpartition(".")
    if module.startswith("tests."):
        return getattr(importlib.import_module(module), leaf)
    owner = importlib.import_module(f"transformers.models.{module}.modeling_{module}") if module else transformers
    return getattr(owner, leaf)


# --- language models --------------------------------------------------------------------------------------------------


def language_model_config(family: str = "llama", drop: float = 0.0, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny causal language model.

    Args:
        family: a row of the zoo's table.
        drop: every rate of dropout the config knows.
        **changes: other arguments of the config.
    """
    row = LANGUAGE_MODELS[family]
    return with_drop(find(row.cls).config_class(**{**LM_SIZES, **row.arguments, **changes}), drop)


def language_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, drop: float = 0.0, **changes: Any
) -> Any:
    """A tiny causal language model: width 32, two layers, 96 tokens, in training mode."""
    torch.manual_seed(seed)
    cls = find(LANGUAGE_MODELS[family].cls)
    cls = with_head(cls) if is_backbone(cls) else cls
    return loud(cls(language_model_config(family, drop, **changes)), dtype)


# --- encoders ---------------------------------------------------------------------------------------------------------

# Rows that an image of `images()` or a sound of `sounds()` yields.
ROWS = {name: row.features[0] for name, row in ENCODERS.items()}


def encoder_config(family: str = "clip", drop: float = 0.0, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny encoder: a row of the zoo's table, every rate of dropout it knows, other arguments."""
    row = ENCODERS[family]
    return with_drop(find(row.cls).config_class(**{**row.arguments, **changes}), drop)


def encoder(
    family: str = "clip", dtype: torch.dtype = torch.float32, seed: int = 1, drop: float = 0.0, **changes: Any
) -> Any:
    """A tiny encoder of images or sounds: width 24, two layers, in training mode."""
    torch.manual_seed(seed)
    cls = find(ENCODERS[family].cls)
    config = [encoder_config(family, drop, **changes)] if hasattr(cls, "config_class") else []
    return loud(cls(*config), dtype)


class Normed(nn.Module):
    """A plain encoder of images with running statistics and dropout: four rows an image."""

    hidden_size = 24

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 4, 4), nn.BatchNorm2d(24), nn.Dropout(0.5))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layers(pixel_values)


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


def ask(model: Any) -> Any:
    """Take one loss, after which a language model is not asked again what its head may be given, and hooks count."""
    model.train()(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]]))
    return model


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-10, what: str = "") -> None:
    """Differences of at most `tolerance` times the largest entry expected (or 1, where that is smaller)."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)} for {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{what}: {found.dtype} for {expected.dtype}"
    if expected.numel() == 0:
        return
    error = (found - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: off by {error:.3g}"
