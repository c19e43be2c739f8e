"""2e. What a sample takes to train on, told from the shapes of one: what a forecast is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cornstarch.models.multimodal_language_model import MultimodalModel, StepCost, forecast_step
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX
from cornstarch.training.forecast import SampleWork
from cornstarch.training.loop import labelled_tokens

_LONGER = 96  # positions of text that a sample is made longer by, to see how work grows with its length
_MORE = 16  # labels that it is given more


def sample_work(model: MultimodalModel, batches: Sequence[Mapping[str, Tensor]]) -> SampleWork:
    """What samples take, from shapes alone.

    Args:
        model: with what trains chosen, and as it is trained; perhaps on the meta device.
        batches: of one sample each, with labels, that have an input of each modality among them.

    Returns:
        The work.

    Raises:
        ArgumentError: if shapes alone do not tell.
    """
    marks = model.modality_token_ids
    counts = [{key: int((batch["input_ids"] == mark).sum()) for key, mark in marks.items()} for batch in batches]
    costs = [forecast_step(model, batch) for batch in batches]
    inputs = {}
    for name in model.parts:
        key = name.removesuffix("_encoder").removesuffix("_projector")
        found = next((place for place, count in enumerate(counts) if count.get(key)), None)
        if name != "language_model" and found is not None:
            inputs[name] = (key, costs[found].parts[name].flops / counts[found][key])
    # Of a batch with inputs, as a gradient may have to go as far as these.
    fullest = max(range(len(batches)), key=lambda place: sum(counts[place].values()))
    return SampleWork(text=_text(model, dict(batches[fullest]), costs[fullest]), inputs=inputs)


def _text(model: MultimodalModel, batch: dict[str, Tensor], cost: StepCost) -> tuple[float, float, float]:
    """The language model's operations for a position, a square of positions, a row of logits."""
    longer = _longer(batch, _LONGER)
    variants = [batch, longer, _more_labelled(longer)]
    costs = [cost, *(forecast_step(model, variant) for variant in variants[1:])]
    marks = model.modality_token_ids.values()
    lengths = [variant["labels"].shape[1] for variant in variants]
    rows = [labelled_tokens(variant, marks) + 1 for variant in variants]
    places = [[length, length**2, row] for length, row in zip(lengths, rows, strict=True)]
    values = [found.parts["language_model"].flops for found in costs]
    each = np.linalg.solve(np.array(places, dtype=np.float64), np.array(values, dtype=np.float64))
    position, square, row = each.tolist()
    return position, square, row


def _longer(batch: Mapping[str, Tensor], more: int) -> dict[str, Tensor]:
    """A batch with more text behind it, without labels."""
    shape: Any = (batch["labels"].shape[0], more)
    added = {"input_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": torch.ones(shape, dtype=torch.long)}
    added["labels"] = torch.full(shape, IGNORE_INDEX)
    joined = {name: torch.cat([batch[name], rows.to(batch[name])], 1) for name, rows in added.items() if name in batch}
    return {**batch, **joined}


def _more_labelled(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    labels = batch["labels"].clone()
    labels[:, -_MORE:] = 0
    return {**batch, "labels": labels}
