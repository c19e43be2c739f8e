"""1i. What became of each input of a sample: what its encoder gets of it, and how many positions it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature


@dataclass(frozen=True, kw_only=True)
class ProcessedInput:
    """One input, as it went into a batch.

    Attributes:
        key: the modality.
        place: which of the modality's inputs it is, counted from 0 with those that truncation left out.
        item: as the modality's processor was given it: an image opened, a sound at its rate, the frames of a video.
        runs: how many positions each of its runs takes, in order; most inputs have one run.
        tensors: what the encoder gets of this input, under the processor's names, without an axis for inputs. A tensor
            of which nobody can say which part is whose is left out.
    """

    key: str
    place: int
    item: Any
    runs: tuple[int, ...]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Processed:
    """A batch and what became of its inputs.

    Attributes:
        batch: what `MultimodalProcessor` returns.
        inputs: modality key to its inputs that are in the batch, in the order of their marks.
    """

    batch: BatchFeature
    inputs: dict[str, list[ProcessedInput]]


def own_tensors(tensors: Mapping[str, Any], runs: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
    """What an encoder gets of each input of one sample.

    Args:
        tensors: the encoder's arguments. Along the first axis are inputs, or their pictures, or their patches where a
            grid (inputs, 3) says how many there are; or along the second, where the first has one entry for the sample.
        runs: of each input.

    Returns:
        For each input its part of every tensor that can be told apart.
    """
    number, pictures = len(runs), [len(own) for own in runs]
    grids = [value for name, value in tensors.items() if name.endswith("grid_thw") and isinstance(value, Tensor)]
    patches = [int(grid.prod()) for grid in grids[0]] if grids else []
    found: list[dict[str, Tensor]] = [{} for _ in runs]
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.dim():
            continue
        parts = _parts(value, number, pictures, patches)
        for own, part in zip(found, parts or [], strict=bool(parts)):
            own[name] = part
    return found


def _parts(value: Tensor, number: int, pictures: Sequence[int], patches: Sequence[int]) -> Sequence[Tensor] | None:
    length = value.shape[0]
    if number == 1 and length != 1:
        return [value]
    if length == number:
        return list(value)
    if length == 1 and value.dim() > 1 and value.shape[1] == sum(pictures):
        return list(torch.split(value[0], list(pictures)))
    for sizes in (pictures, patches):
        if length == sum(sizes):
            return list(torch.split(value, list(sizes)))
    return None
