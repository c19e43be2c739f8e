"""What a class does by itself: what it cannot do alone, no composition can ask of it."""

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import assert_near
from tests.zoo import making
from tests.zoo.checks import NEW, assert_near_largest, greedy, wrapped

F32 = torch.float32
Alone = Callable[[str, bool], None]  # a row's name, and whether it is an encoder's


def backward(name: str, encodes: bool) -> None:
    """Runs, and every number of every gradient is one."""
    for place, value in _gradients(_made(name, encodes).train(), name, encodes).items():
        assert value.isfinite().all(), f"the gradient of {place} is not finite"


def checkpointed(name: str, encodes: bool) -> None:
    """Transformers' own checkpointing gives the same gradients."""
    part = _made(name, encodes).train()
    expected = _gradients(part, name, encodes)
    part.gradient_checkpointing_enable()
    for place, value in _gradients(part, name, encodes).items():
        assert_near(value, expected[place], what=place)


def padded(name: str, encodes: bool) -> None:
    """Logits of embeddings padded on either side are those of the embeddings alone."""
    part = _made(name, encodes, F32)
    embeds = _embeds(part, F32)
    with torch.no_grad():
        alone = part(inputs_embeds=embeds[1:, 3:]).logits[0]
        for side in ("left", "right"):
            given, mask = _padded(embeds, side)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            more = {"position_ids": positions} if "position_ids" in inspect.signature(part.forward).parameters else {}
            found = part(inputs_embeds=given, attention_mask=mask, **more).logits[1, mask[1].bool()]
            assert_near_largest(found, alone, side)


def generates(name: str, encodes: bool) -> None:
    """Its own `generate` from left-padded embeddings gives the greedy tokens of each sample alone."""
    part = _made(name, encodes, F32)
    embeds = _embeds(part, F32)
    given, mask = _padded(embeds, "left")
    found = part.generate(
        inputs_embeds=given, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    for index, own in enumerate((embeds[:1], embeds[1:, 3:])):
        assert found[index].tolist() == greedy(part, own), f"sample {index}"


def adapted(name: str, encodes: bool) -> None:
    """LoRA on its linear layers trains."""
    pytest.importorskip("peft")
    part = wrapped(_made(name, encodes)).train()
    assert all("lora" in place for place in _gradients(part, name, encodes))


def saved(name: str, encodes: bool) -> None:
    """Saved and loaded by transformers, it has the same weights."""
    part = _made(name, encodes)
    if not hasattr(part, "save_pretrained"):
        return
    with tempfile.TemporaryDirectory() as folder:
        part.save_pretrained(folder)
        again = type(part).from_pretrained(folder)
    state = again.state_dict()
    for place, value in part.state_dict().items():
        assert_near(state[place].double(), value.double(), 1e-12, place)


# What of it a language model alone is asked for.
TEXT_ONLY = ("padded", "generates")
ALONE: dict[str, Alone] = {
    "backward": backward,
    "checkpointed": checkpointed,
    "padded": padded,
    "generates": generates,
    "adapted": adapted,
    "saved": saved,
}


def _made(name: str, encodes: bool, dtype: torch.dtype = torch.float64) -> Any:
    return making.encoder(name, dtype) if encodes else making.language_model(name, dtype)


def _embeds(part: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """(2, 9, D) embeddings that are no token's."""
    width = part.get_input_embeddings().weight.shape[-1]
    return torch.randn(2, 9, width, generator=torch.Generator().manual_seed(3)).to(dtype)


def _padded(embeds: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """The second sample three positions shorter than the first."""
    short, gap = embeds[1, 3:], torch.full_like(embeds[1, :3], 0.5)
    row = torch.cat([gap, short] if side == "left" else [short, gap])
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    mask[1, slice(None, 3) if side == "left" else slice(-3, None)] = 0
    return torch.stack([embeds[0], row]), mask


def _gradients(part: nn.Module, name: str, encodes: bool) -> dict[str, Tensor]:
    part.zero_grad()
    if encodes:
        inner = part.get_base_model() if hasattr(part, "get_base_model") else part
        loss = (making.features_by_hand(name, inner, making.media(name)) ** 2).mean()
    else:
        ids = torch.arange(3, 12).repeat(2, 1)
        loss = part(inputs_embeds=_embeds(part), labels=ids).loss
    loss.backward()
    return {place: value.grad.clone() for place, value in part.named_parameters() if value.grad is not None}
