"""One LLaVA twice: Hugging Face's, and ours of a copy of its weights; batches for both, and what a step must cost.

Shapes: B samples, S positions (features of the image first, then text), D width, V vocabulary.
"""

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from cornstarch import MultimodalModel

PATCH, TAKEN = 14, -2  # side of a patch; which hidden states of the tower are taken, as LLaVA does
# What trains: the encoder, the language model. The projector always does.
REGIMES = {"projector only": (False, False), "encoder frozen": (False, True), "all train": (True, True)}


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model and its batch.

    Attributes:
        name: of the size.
        width: of the language model; its feed-forward layers are four times as wide.
        layers: of the language model.
        tower_width: of the encoder.
        tower_layers: of the encoder; the last one's output is not used.
        side: patches along a side of the image.
        text: tokens of a sample.
        samples: of a batch.
        vocabulary: of the language model.
        labelled: share of the text's tokens that is labelled.
        attention: the implementation of both models.
    """

    name: str = ""
    width: int
    layers: int
    tower_width: int
    tower_layers: int
    side: int = 8
    text: int = 192
    samples: int = 2
    vocabulary: int = 8_000
    labelled: float = 0.25
    attention: str = "sdpa"

    @property
    def features(self) -> int:
        """Of an image."""
        return self.side**2

    @property
    def positions(self) -> int:
        """Of a sample."""
        return self.features + self.text

    @property
    def rows(self) -> int:
        """Labels of a batch."""
        return self.samples * round(self.labelled * self.text)


def pair(size: Size) -> tuple[Any, MultimodalModel]:
    """Hugging Face's model, and ours with a copy of its weights; both in training mode.

    Args:
        size: of them.

    Returns:
        Theirs and ours.
    """
    torch.manual_seed(0)
    theirs = transformers.LlavaForConditionalGeneration(_config(size)).float()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = MultimodalModel.from_pretrained_multimodal_model(folder, attn_implementation=size.attention)
    return theirs.train(), ours.train()


def _config(size: Size) -> Any:
    tower = transformers.CLIPVisionConfig(
        hidden_size=size.tower_width,
        intermediate_size=4 * size.tower_width,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=max(1, size.tower_width // 64),
        image_size=size.side * PATCH,
        patch_size=PATCH,
    )
    text = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64,
        max_position_embeddings=size.positions,
        use_cache=False,
    )
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=size.vocabulary - 1,
        vision_feature_layer=TAKEN,
        image_seq_length=size.features,
        attn_implementation=size.attention,
    )
    config.use_cache = False
    return config


def batch(size: Size) -> dict[str, Tensor]:
    """Samples with an image and text each, whose last tokens are labelled, as answers are."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, size.vocabulary - 1, (size.samples, size.positions), generator=generator)
    ids[:, : size.features] = size.vocabulary - 1
    labels = ids.clone()
    labels[:, : size.positions - size.rows // size.samples] = -100
    pixels = torch.randn(size.samples, 3, size.side * PATCH, size.side * PATCH, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def choose(model: nn.Module, regime: str) -> nn.Module:
    """Freeze what does not train, which is in evaluation mode then.

    Args:
        model: Hugging Face's or ours.
        regime: of `REGIMES`.

    Returns:
        The model.
    """
    encoder, text = REGIMES[regime]
    if isinstance(model, MultimodalModel):
        return model.train({"vision": (encoder, True)}, llm_mode=text)
    model.requires_grad_(True).train()
    inner: Any = model.model
    for part, trains in ((inner.vision_tower, encoder), (inner.language_model, text), (model.lm_head, text)):
        part.requires_grad_(trains).train(trains)
    return model


def optimizer(model: nn.Module, rate: float = 1e-4) -> torch.optim.Optimizer:
    """Fused AdamW over what trains, which is what `transformers.Trainer` uses."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0, fused=True)


class Step:
    """A whole step, called again and again: forward, backward, update.

    Args:
        model: whose training parts are chosen.
        given: a batch.

    Attributes:
        losses: of each call.
        updates: seconds of each call that the optimizer took.
    """

    def __init__(self, model: nn.Module, given: dict[str, Tensor]) -> None:
        self._model, self._given, self._adam = model, given, optimizer(model)
        self.losses: list[float] = []
        self.updates: list[float] = []

    def __call__(self) -> None:
        """Take it."""
        loss = self._model(**self._given).loss
        loss.backward()
        started = time.perf_counter()
        self._adam.step()
        self.updates.append(time.perf_counter() - started)
        self._adam.zero_grad(set_to_none=True)
        self.losses.append(float(loss.detach()))


def check_equal(theirs: nn.Module, ours: nn.Module, given: dict[str, Tensor]) -> None:
    """Fail if loss, or the length of the gradient, are not the same for both, within 1e-4 of it."""
    found = []
    for model in (theirs, ours):
        loss = model(**given).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((float(loss.detach()), float(torch.nn.utils.get_total_norm(gradients))))
        model.zero_grad(set_to_none=True)
    for what, a, b in zip(("losses", "gradients"), *found, strict=True):
        assert abs(a - b) <= 1e-4 * abs(a), f"{what} differ: Hugging Face's {a}, ours {b}"


# --- what a step must cost --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step, by part."""

    encoder: float
    projector: float
    layers: float
    head: float

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.encoder + self.projector + self.layers + self.head


def flops(size: Size, regime: str, rows: int | None = None) -> Flops:
    """By theory: 2N a token forward, 2N for the gradient of inputs, 2N for that of weights, where each is needed.

    Attention's products are counted whole, though a causal mask leaves half of them unread.

    Args:
        size: of model and batch.
        regime: of `REGIMES`.
        rows: positions that the head is given; all, if nothing is said.

    Returns:
        Multiplications and additions, as `torch.utils.flop_counter` counts them.
    """
    encoder, text = REGIMES[regime]
    images, tokens = size.samples * size.features, size.samples * size.positions
    tower_tokens = size.samples * (size.features + 1)
    layer = 12 * size.tower_width**2 * tower_tokens + 2 * (size.features + 1) * size.tower_width * tower_tokens
    used = size.tower_layers + 1 + TAKEN
    patches = 3 * PATCH**2 * size.tower_width * images
    # The tower runs to its end; backward begins at the layer that is taken and ends at patches, which pass nothing on.
    tower = 2 * layer * (size.tower_layers + 2 * used * encoder) + 2 * patches * (1 + encoder)
    first, second = size.tower_width * size.width * images, size.width**2 * images
    projector = 2 * first * (2 + encoder) + 2 * second * 3
    linear, attention = 16 * size.width**2 * tokens, 2 * size.positions * size.width * tokens
    layers = 2 * size.layers * (linear * (2 + text) + attention * 3)
    head = 2 * size.width * size.vocabulary * (tokens if rows is None else rows) * (2 + text)
    return Flops(tower, projector, layers, head)


def bound(size: Size, regime: str) -> float:
    """Operations of ours over Hugging Face's: the head on labelled positions alone, everything else the same."""
    return flops(size, regime, size.rows).total / flops(size, regime).total
