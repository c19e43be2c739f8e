"""3b. Batches of one sample each -> the batch of all of them, without decoding anything again where that can be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchFeature

from cornstarch.data.collation import Collated, Collator
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX

_Tensors = dict[str, Any]


class Joiner:
    """Puts batches together: the encoders' tensors of one sample behind those of the other.

    That is what most processors do with several inputs. Where one brings them to a common size (sounds to the longest),
    shapes differ, and the samples are collated anew. Where one arranges them in a way of its own, that is seen: what is
    put together the first time is compared with what the collator makes of the samples; and again, as long as they are
    so alike that another order would not be seen.

    Args:
        collator: that makes the batches, right-padded.
    """

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._is_right: dict[tuple[tuple[str, ...], bool], bool] = {}

    def __call__(self, parts: Sequence[Collated]) -> BatchFeature:
        """The batch of several samples.

        Args:
            parts: at least one, all with labels.

        Returns:
            The batch, equal to `collator([part.sample for part in parts])`.
        """
        batches = [part.batch for part in parts if part.batch is not None]
        if len(batches) == 1:
            return batches[0]
        tokenizer = self._collator.processor.llm_tokenizer
        text = [name for name in batches[0] if name in (*tokenizer.model_input_names, "labels")]
        media = [{name: value for name, value in batch.items() if name not in text} for batch in batches]
        names = tuple(dict.fromkeys(name for tensors in media for name in tensors))
        arrangement = (names, all(len(tensors) == len(names) for tensors in media))
        together = _one_behind_the_other(media, names) if self._is_right.get(arrangement, True) else None
        if together is None:
            return self._collated(parts)
        fill = {"input_ids": tokenizer.pad_token_id, "labels": IGNORE_INDEX}
        fill["token_type_ids"] = tokenizer.pad_token_type_id
        rows = {name: _padded([batch[name] for batch in batches], fill.get(name, 0)) for name in text}
        found = BatchFeature({**rows, **together})
        if arrangement in self._is_right:
            return found
        expected = self._collated(parts)
        is_right = _equal(found, expected)
        if not is_right or _differ_backwards(media):
            self._is_right[arrangement] = is_right
        return expected

    def _collated(self, parts: Sequence[Collated]) -> BatchFeature:
        return self._collator([part.sample for part in parts])


def _one_behind_the_other(media: Sequence[_Tensors], names: Sequence[str]) -> dict[str, Tensor] | None:
    """Tensors of all samples by name; None if their shapes do not let them be put together."""
    together: dict[str, Tensor] = {}
    for name in names:
        found = [tensors[name] for tensors in media if name in tensors]
        if not all(isinstance(value, Tensor) and value.dim() for value in found):
            return None
        if any(value.shape[1:] != found[0].shape[1:] for value in found):
            return None
        together[name] = torch.cat(found)
    return together


def _padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    longest = max(row.shape[1] for row in rows)
    return torch.cat([pad(row, (0, longest - row.shape[1]), value=fill) for row in rows])


def _differ_backwards(media: Sequence[_Tensors]) -> bool:
    """Whether samples in the opposite order would have been seen; those without media take no part."""
    there = [tensors for tensors in media if tensors]
    return not there or any(
        one.keys() != other.keys() or any(not torch.equal(value, other[name]) for name, value in one.items())
        for one, other in zip(there, reversed(there), strict=True)
    )


def _equal(found: BatchFeature, expected: BatchFeature) -> bool:
    return found.keys() == expected.keys() and all(
        isinstance(value, Tensor) and value.dtype == found[name].dtype and torch.equal(value, found[name])
        for name, value in expected.items()
    )
