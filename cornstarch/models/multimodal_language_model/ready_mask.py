"""5d. Ready 4-D attention masks: the one form in which they are handed on, and which language models heed them.

Some language models ignore a ready mask, some fail on one, and nothing in their configs says so. So a model is asked
once, with a few positions: a position that is hidden must change nothing, one that is not hidden must.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy, compiling, freezing

_LENGTH = 4  # positions of the question
# Why each language model asked so far takes no ready mask (None if it does), for its way of computing attention.
_ANSWERS: WeakKeyDictionary[nn.Module, dict[str, str | None]] = WeakKeyDictionary()


def is_ready(mask: Any) -> TypeGuard[Tensor]:
    """Whether an attention mask says for every pair of positions whether one sees the other."""
    return isinstance(mask, Tensor) and mask.dim() == 4


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A ready mask (B, H or 1, S, T) as what is added to the attention's scores.

    Args:
        mask: of booleans or whole numbers, where true is visible; or what is added already.
        dtype: the language model's.

    Returns:
        The same shape: 0 where visible and the lowest number where hidden. Models read booleans in various ways.
    """
    lowest = torch.finfo(dtype).min
    if mask.is_floating_point():
        return mask.clamp(min=lowest).to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), lowest)


def check(language_model: nn.Module, embeds: Tensor) -> None:
    """Refuse ready masks for a language model that does not do what they say.

    Args:
        language_model: wrapped or not.
        embeds: (B, S, D) what it is about to run on, for width, dtype and device.

    Raises:
        ArgumentError: with the reason.
    """
    base = freezing.unwrap(language_model)
    if freezing.learns_prompt(language_model):
        raise ArgumentError(
            "a ready 4-D attention_mask has no place for the learned prompt of PEFT's prompt learning: pass a mask of "
            "shape (batch, positions), or use adapters of another kind, such as LoRA"
        )
    known = _ANSWERS.setdefault(base, {})
    kind = str(getattr(getattr(base, "config", None), "_attn_implementation", ""))
    if kind not in known:
        known[kind] = _why_not(language_model, embeds)
    if known[kind] is not None:
        raise ArgumentError(
            f"{type(base).__name__} takes no ready 4-D attention_mask: {known[kind]}. Pass a mask of shape "
            "(batch, positions), or use another language model"
        )


def _why_not(language_model: nn.Module, embeds: Tensor) -> str | None:
    first, other = torch.randn(2, 1, _LENGTH, embeds.shape[-1], generator=torch.Generator().manual_seed(0)).to(embeds)
    changed = torch.cat([other[:, :1], first[:, 1:]], dim=1)  # at position 0 only
    causal = torch.ones(1, 1, _LENGTH, _LENGTH, dtype=torch.bool, device=embeds.device).tril()
    hidden = causal.clone()
    hidden[..., 1:, 0] = False  # position 0 sees itself and nothing sees it
    with torch.no_grad(), freezing.evaluating(language_model), compiling.eagerly():
        try:
            seen, unseen = (
                (_logits(language_model, first, mask) - _logits(language_model, changed, mask)).abs().max().item()
                for mask in (causal, hidden)
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it fails with is the reason
            return f"it fails on one ({type(error).__name__}: {error})"
    # Not `unseen > ...`: a NaN is no answer either.
    return None if unseen <= 1e-3 * seen and seen > 0 else "it does not do what the mask says, and does not say so"


def _logits(language_model: nn.Module, embeds: Tensor, mask: Tensor) -> Tensor:
    """Logits (1, L - 1, V) behind the first position."""
    taken = anatomy.language_model_arguments(freezing.unwrap(language_model)).names
    optional: Mapping[str, Any] = {
        "position_ids": torch.arange(_LENGTH, device=embeds.device)[None],
        "use_cache": False,
    }
    arguments = {name: value for name, value in optional.items() if name in taken}
    output = language_model(inputs_embeds=embeds, attention_mask=additive(mask, embeds.dtype), **arguments)
    return output.logits[:, 1:].float()  # type: ignore[no-any-return]
