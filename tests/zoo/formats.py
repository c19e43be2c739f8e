"""Finished models: taken apart, compared with the original, changed, put back, and compared with what is loaded."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cornstarch import MultimodalModel
from cornstarch.models.multimodal_language_model import returning
from tests.models.originals import ORIGINALS
from tests.models.test_importing import GREEDY, padded


class Measured(NamedTuple):
    """What one format came to.

    Attributes:
        name: a key of `ORIGINALS`.
        imported: the largest difference of logits from the original's, fp64, of dense and of padded batches.
        exported: the same between a composition whose weights were changed and what transformers loads of it.
        texts: whether greedy texts were the same, of a left-padded batch, with and without beams.
    """

    name: str
    imported: float
    exported: float
    texts: bool


def measure(name: str) -> Measured:
    """Import a tiny original, change every weight, save, load and export, in fp64."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(name, Path(folder))


@torch.no_grad()
def _measure(name: str, folder: Path) -> Measured:
    row = ORIGINALS[name]
    made = row.make()
    made.save_pretrained(folder / "original")
    original = type(made).from_pretrained(folder / "original", dtype=torch.float64)
    model = MultimodalModel.from_pretrained_multimodal_model(folder / "original", dtype=torch.float64)
    dense = row.inputs(original)
    batches = [dense, padded(dense, "left"), padded(dense, "right")]
    imported = max(_difference(original, model, batch) for batch in batches)
    texts = _same_texts(original, model, batches[1])

    for parameter in model.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder / "saved")
    again = MultimodalModel.from_pretrained(folder / "saved")
    returning.original_of(again).save_pretrained(folder / "back")
    loaded = type(made).from_pretrained(folder / "back", dtype=torch.float64)
    exported = max(_difference(loaded, model, batch) for batch in batches)
    return Measured(name, imported, exported, texts and _same_texts(loaded, model, batches[1]))


def _difference(original: Any, model: MultimodalModel, batch: dict[str, Any]) -> float:
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    known = {} if "mm_token_type_ids" in batch else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    expected: Tensor = original(**batch, **known).logits[mask.bool()]
    return float((model(**batch).logits[mask.bool()] - expected).abs().max())


def _same_texts(original: Any, model: MultimodalModel, batch: dict[str, Any]) -> bool:
    one = {key: value[-1:] for key, value in batch.items()} if "input_features" in batch else batch
    return all(
        torch.equal(
            model.generate(**some, **GREEDY, num_beams=beams), original.generate(**some, **GREEDY, num_beams=beams)
        )
        for some, beams in ((batch, 1), (one, 3))
    )
