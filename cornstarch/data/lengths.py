"""4d. Steps whose samples are put together by length: within a step for the device, and over several steps."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset
from transformers import BatchFeature

from cornstarch.data.budgets import Budget, Size, steps_of_like_length
from cornstarch.data.collation import Collated, Collator
from cornstarch.data.joining import Joiner
from cornstarch.data.samples import Sample
from cornstarch.data.steps import BadSample, Policy, Reading, StepBatch, Steps
from cornstarch.errors import CornstarchError, SampleError

_Tried = tuple[list[Collated], list[BadSample]]  # what there is at a place: one sample or none, and what was wrong


class Window(NamedTuple):
    """Steps that are made together.

    Attributes:
        places: of all their samples.
        seed: of the order of the steps.
        done: so many of them are not needed.
    """

    places: Sequence[Any]
    seed: str = ""
    done: int = 0


class StepsByLength(Steps):
    """Makes the steps of places; the samples of a step are put into micro-batches by length.

    Every sample is prepared by itself, so that its length is known, and those of a micro-batch are then joined.

    Args:
        reading: place to sample.
        collator: samples to a batch.
        budget: of a micro-batch. A sample that is above it by itself cannot be used.
        bad_samples: as in `Steps`.
    """

    def __init__(self, reading: Reading, collator: Collator, budget: Budget, bad_samples: Policy = "stop") -> None:
        super().__init__(reading, collator, 1, bad_samples)
        self._budget, self._join = budget, Joiner(collator)

    def __getitem__(self, places: Sequence[Any]) -> StepBatch | CornstarchError:
        """The step of some places, or what is wrong with a sample."""
        try:
            return self.step([self.tried(place) for place in places])
        except CornstarchError as error:
            return error

    def tried(self, place: Any) -> _Tried:
        """What there is at a place.

        Args:
            place: what the reading knows.

        Returns:
            The sample, if it or another in its place can be used; and what is wrong with it, if something is.

        Raises:
            CornstarchError: if it cannot be used, and bad samples stop the run.
        """
        bad: list[BadSample] = []
        return list(self.usable(place, bad)), bad

    def step(self, tried: Sequence[_Tried]) -> StepBatch:
        """The step of samples that were prepared.

        Args:
            tried: what there is at each place.

        Returns:
            The step, its longest micro-batch first.
        """
        found = [one for samples, _ in tried for one in samples]
        labelled = [one for one in found if one.batch is not None]
        groups = self._budget.groups([size_of(one) for one in labelled])
        return StepBatch(
            micro_batches=tuple(batch for group in groups for batch in self._batches([labelled[i] for i in group])),
            names=tuple(one.sample.name for one in found),
            samples=len(labelled),
            unlabelled=tuple(one.sample.name for one in found if one.batch is None),
            bad=tuple(entry for _, entries in tried for entry in entries),
        )

    def _batches(self, group: Sequence[Collated]) -> list[BatchFeature]:
        """The batch of a group; of halves of it, where samples are longer beside others than they are alone.

        Where nothing masks what sounds are padded with, it takes positions too: more than the budget has, or so many
        that the label of a sample is cut off, or its end is beyond the language model's table. By itself each can be
        used.
        """
        limit = self._budget.positions
        try:
            batch = self._join(group)
        except CornstarchError:
            if len(group) == 1:
                raise
        else:
            if limit is None or len(group) == 1 or batch["input_ids"].numel() <= limit:
                return [batch]
        half = len(group) // 2
        return [*self._batches(group[:half]), *self._batches(group[half:])]

    def _check(self, sample: Sample, batch: BatchFeature | None) -> None:
        size = size_of(Collated(sample, batch))
        refusal = self._budget.refusal(sample.name, size) if batch is not None else None
        if refusal is not None:
            raise SampleError(refusal, sample.name)


class Windows(Dataset[Any]):
    """Makes the steps of a window.

    Args:
        steps: makes one.
        size: samples of it.
    """

    def __init__(self, steps: Steps, size: int) -> None:
        self._steps, self._size = steps, size

    def __getitem__(self, window: Window) -> list[StepBatch] | CornstarchError:
        """The steps, or what is wrong with a sample."""
        if len(window.places) > self._size:
            return self._of_like_length(window)
        step = self._steps[window.places]
        return step if isinstance(step, CornstarchError) else [step]

    def _of_like_length(self, window: Window) -> list[StepBatch] | CornstarchError:
        assert isinstance(self._steps, StepsByLength), "whoever made the window"
        try:
            tried = {index: self._steps.tried(place) for index, place in enumerate(window.places)}
            lengths = [max((size_of(one).positions for one in found), default=0) for found, _ in tried.values()]
            order = steps_of_like_length(lengths, self._size, random.Random(window.seed))
            # What is in a step is let go of: a window is not there twice.
            taken = ([tried.pop(index) for index in indices] for indices in order)
            return [self._steps.step(found) for number, found in enumerate(taken) if number >= window.done]
        except CornstarchError as error:
            return error


def windows(
    reading: Reading, collator: Collator, size: int, budget: Budget, width: int, bad_samples: Policy
) -> Windows:
    """What makes the steps of windows.

    Args:
        reading: place to sample.
        collator: samples to a batch.
        size: samples of a step.
        budget: of a micro-batch.
        width: steps of a window; in those of one, samples keep their steps.
        bad_samples: as in `Steps`.

    Returns:
        The map.
    """
    if width > 1 or budget.is_by_length:
        return Windows(StepsByLength(reading, collator, budget, bad_samples), size)
    return Windows(Steps(reading, collator, budget.samples or size, bad_samples), size)


def size_of(one: Collated) -> Size:
    """What a sample takes by itself; nothing if no token of it is labelled."""
    positions = 0 if one.batch is None else one.batch["input_ids"].shape[1]
    return Size(positions=positions, media=sum(1 for _ in one.sample.media))
