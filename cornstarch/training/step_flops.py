"""5b. How many floating-point operations the steps of a run take: measured where a shape is new, told where it is not.

A part's operations are linear in a few numbers of a micro-batch: samples, positions, squares of positions, labelled
rows, inputs. So a micro-batch whose numbers are a combination of those of others takes the same combination of their
operations. What is measured also shows whether that holds; for a part for which it does not (scans in chunks), every
new shape is measured.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cornstarch.models.multimodal_language_model import labelled_head
from cornstarch.models.multimodal_language_model.accounting import Meter, composition_in

_TEXT = "language_model"
_OF_TEXT = frozenset({"input_ids", "attention_mask", "labels", "position_ids", "shift_labels", "token_type_ids"})
_CONFIRMATIONS = 2  # measured combinations that must agree before others are trusted
_ALIKE = 1e-3  # of values: what is not linear is further off
_EXACT = 1e-8  # of places
_SMALL = 4  # numbers a row, of tensors that say sizes of inputs (grids)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations, by part.

    Attributes:
        needed: of forward and backward passes.
        again: of forward passes that backward passes computed again.
    """

    needed: Mapping[str, int]
    again: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.needed.values()) + sum(self.again.values())

    def __add__(self, other: "Work") -> "Work":
        needed = {part: number + other.needed[part] for part, number in self.needed.items()}
        again = {part: number + other.again[part] for part, number in self.again.items()}
        return Work(needed=needed, again=again)


class FlopsOfSteps:
    """Counts the operations of micro-batches of one model.

    Args:
        model: a `MultimodalModel`, wrapped or not.

    Raises:
        ArgumentError: if it holds none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._composition = composition_in(model)
        self._parts = tuple(self._composition.parts)
        self._known: dict[Any, _Line] = {}
        self.measured = 0  # micro-batches
        self._is_off = False

    @contextmanager
    def counting(self, micro: Mapping[str, Any], labelled: int) -> Iterator[list[Work]]:
        """Count what is done inside: the forward and backward pass of a micro-batch.

        Args:
            micro: the batch.
            labelled: tokens of it that carry loss.

        Yields:
            A list that holds the work afterwards; it stays empty if there was an error. If it is one of counting, what
            is done inside goes on, and nothing is counted any more.
        """
        found: list[Work] = []
        answers, meter = self._answers_or_meter(micro, labelled)
        with meter if meter is not None else nullcontext():
            yield found
        if answers is not None:
            found.append(self._work(answers))
        elif meter is not None:
            with self._giving_up():
                found.append(self._learned(micro, labelled, meter))

    def _answers_or_meter(
        self, micro: Mapping[str, Any], labelled: int
    ) -> tuple[list[np.ndarray] | None, Meter | None]:
        """What can be told, or else what measures it; neither if nothing is counted."""
        if self._is_off:
            return None, None
        with self._giving_up():
            told = [line.told(numbers) for line, numbers in self._questions(micro, labelled)]
            answers = [answer for answer in told if answer is not None]
            return (answers, None) if len(answers) == len(told) else (None, Meter(self._model, micro))
        return None, None

    def _learned(self, micro: Mapping[str, Any], labelled: int, meter: Meter) -> Work:
        if meter.failure is not None:
            raise meter.failure
        self.measured += 1
        rows = self._rows(meter)
        for (line, numbers), values in zip(self._questions(micro, labelled), rows, strict=True):
            line.learn(numbers, values)
        return self._work(rows)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """A run is worth more than the figures: what cannot be counted ends counting alone."""
        try:
            yield
        except Exception as error:
            self._is_off = True
            warnings.warn(
                f"floating-point operations of this run are not counted any more, so there is no MFU: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )

    def _questions(self, micro: Mapping[str, Any], labelled: int) -> list[tuple["_Line", np.ndarray]]:
        """What is known of the language model and of all else, and a micro-batch's numbers for each."""
        media = {name: value for name, value in sorted(micro.items()) if name not in _OF_TEXT}
        trained = bytes(parameter.requires_grad for parameter in self._model.parameters())
        how = (hash(trained), self._composition.is_gradient_checkpointing)
        kind = (how, tuple((name, _form(value)) for name, value in media.items()))
        inputs = [number for value in media.values() for number in _sizes(value)]
        samples, positions = micro["labels"].shape
        rows, again = labelled_head.rows_of(self._composition.language_model, labelled)
        text = [samples, samples * positions, samples * positions**2, rows, again]
        return [
            (self._known.setdefault((_TEXT, how, tuple(media)), _Line()), np.array(text, dtype=np.float64)),
            (self._known.setdefault(("media", kind), _Line()), np.array([1.0, *inputs])),
        ]

    def _rows(self, meter: Meter) -> list[np.ndarray]:
        """What was measured, as the answers to the two questions."""
        counts = (meter.forward + meter.backward, meter.recomputed)
        others = [part for part in self._parts if part != _TEXT]
        return [np.array([count[part] for count in counts for part in names]) for names in ([_TEXT], others)]

    def _work(self, rows: Sequence[np.ndarray]) -> Work:
        others = [part for part in self._parts if part != _TEXT]
        needed, again = dict[str, int](), dict[str, int]()
        for names, values in zip(([_TEXT], others), rows, strict=True):
            whole = [round(value) for value in values.tolist()]
            needed.update(zip(names, whole[: len(names)], strict=True))
            again.update(zip(names, whole[len(names) :], strict=True))
        return Work(
            needed={part: needed[part] for part in self._parts}, again={part: again[part] for part in self._parts}
        )


def _form(value: Any) -> Any:
    """What makes inputs of another kind: the shape of one."""
    return (str(value.dtype), tuple(value.shape[1:])) if isinstance(value, Tensor) else type(value).__name__


def _sizes(value: Any) -> list[float]:
    """Numbers in which the work on inputs is linear: how many, and of grids their cells and the squares of these."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return []
    if value.is_floating_point() or value.numel() > _SMALL * max(1, len(value)) or value.dim() > 2:
        return [float(len(value))]
    cells = value.to(torch.float64).reshape(len(value), -1).prod(-1)
    return [float(len(value)), float(cells.sum()), float(cells.square().sum())]


class _Line:
    """Values that are linear in some numbers, known at a few places; or known place by place, if they are not."""

    def __init__(self) -> None:
        self._places: dict[bytes, np.ndarray] = {}
        self._basis: list[tuple[np.ndarray, np.ndarray]] = []
        self._agreed = 0
        self._is_linear = True

    def told(self, numbers: np.ndarray) -> np.ndarray | None:
        """The values at a place; None if they must be measured."""
        known = self._places.get(numbers.tobytes())
        if known is not None:
            return known
        if not self._is_linear or self._agreed < _CONFIRMATIONS:
            return None
        return self._combined(numbers)

    def learn(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Take in what was measured at a place."""
        combined = self._combined(numbers)
        if combined is None:
            self._basis.append((numbers, values))
        elif numbers.tobytes() not in self._places:
            agrees = np.all(np.abs(combined - values) <= _ALIKE * np.abs(values))
            self._is_linear &= bool(agrees)
            self._agreed += 1
        self._places[numbers.tobytes()] = values

    def _combined(self, numbers: np.ndarray) -> np.ndarray | None:
        """The values at a place that is a combination of known ones; None if it is none."""
        if not self._basis:
            return None
        places = np.array([place for place, _ in self._basis]).T
        scale = np.maximum(np.abs(places).max(axis=1), 1.0)
        places, wanted = places / scale[:, None], numbers / scale
        shares, *_ = np.linalg.lstsq(places, wanted, rcond=None)
        if np.abs(places @ shares - wanted).max() > _EXACT * max(1.0, np.abs(wanted).max()):
            return None
        combined: np.ndarray = shares @ np.array([values for _, values in self._basis])
        return combined
