"""4d. Steps whose samples are put together by length: within a step for the device, and over several steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset
from transformers import BatchFeature

from cornstarch.data.budgets import Budget, Size, chance_of_window, steps_of_like_length
from cornstarch.data.collation import Collated, Collator
from cornstarch.data.joining import Joiner
from cornstarch.data.steps import OneByOne, Policy, Reading, StepBatch, Steps, Tried
from cornstarch.errors import CornstarchError, SampleError


class Window(NamedTuple):
    """Steps that are made together.

    Attributes:
        places: of all their samples.
        number: seed, epoch, and the first step's number in it, which decide the order of the steps.
        done: so many of them are not needed.
    """

    places: Sequence[Any]
    number: tuple[int, int, int] = (0, 0, 0)
    done: int = 0


class StepsOfWindows(Dataset[Any]):
    """Makes the steps of a window of one, whose samples stay in their order.

    Args:
        steps: makes a step.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __getitem__(self, window: Window) -> list[StepBatch] | CornstarchError:
        """The step, or what is wrong with a sample."""
        step = self._steps[window.places]
        return step if isinstance(step, CornstarchError) else [step]


class StepsByLength(Dataset[Any]):
    """Makes the steps of a window; samples are put into steps, and those of a step into micro-batches, by length.

    Every sample is prepared by itself, so that its length is known, and those of a micro-batch are then joined.

    Args:
        reading: place to sample.
        collator: samples to a batch.
        size: samples of a step.
        budget: of a micro-batch. A sample that is above it by itself cannot be used.
        bad_samples: as in `Steps`.
    """

    def __init__(
        self, reading: Reading, collator: Collator, size: int, budget: Budget, bad_samples: Policy = "stop"
    ) -> None:
        self.tried = OneByOne(reading, collator, bad_samples, self._check)
        self._size, self._budget, self._join = size, budget, Joiner(collator)

    def __getitem__(self, window: Window) -> list[StepBatch] | CornstarchError:
        """The steps, or what is wrong with a sample."""
        try:
            tried = {index: self.tried(place) for index, place in enumerate(window.places)}
            lengths = [_size_of(one.found).positions if one.found is not None else 0 for one in tried.values()]
            order = steps_of_like_length(lengths, self._size, chance_of_window(*window.number))
            # What is in a step is let go of: a window is not there twice.
            taken = ([tried.pop(index) for index in indices] for indices in order)
            return [self.step(found) for number, found in enumerate(taken) if number >= window.done]
        except CornstarchError as error:
            return error

    def step(self, tried: Sequence[Tried]) -> StepBatch:
        """The step of samples that were prepared.

        Args:
            tried: what there is at each place.

        Returns:
            The step, its longest micro-batch first.
        """
        found = [one.found for one in tried if one.found is not None]
        labelled = [one for one in found if one.batch is not None]
        groups = self._budget.groups([_size_of(one) for one in labelled])
        return StepBatch(
            micro_batches=tuple(batch for group in groups for batch in self._batches([labelled[i] for i in group])),
            names=tuple(one.sample.name for one in found),
            samples=len(labelled),
            unlabelled=tuple(one.sample.name for one in found if one.batch is None),
            bad=tuple(one.bad for one in tried if one.bad is not None),
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

    def _check(self, one: Collated) -> None:
        refusal = self._budget.refusal(one.sample.name, _size_of(one)) if one.batch is not None else None
        if refusal is not None:
            raise SampleError(refusal, one.sample.name)


def windows(
    reading: Reading, collator: Collator, size: int, budget: Budget, width: int, bad_samples: Policy
) -> Dataset[Any]:
    """What makes the steps of windows.

    Args:
        reading: place to sample.
        collator: samples to a batch.
        size: samples of a step.
        budget: of a micro-batch.
        width: steps of a window; in those of one, samples keep their steps.
        bad_samples: as in `Steps`.

    Returns:
        Window to list of steps, or to what is wrong with a sample.
    """
    if width > 1 or budget.is_by_length:
        return StepsByLength(reading, collator, size, budget, bad_samples)
    return StepsOfWindows(Steps(reading, collator, budget.samples or size, bad_samples))


def _size_of(one: Collated) -> Size:
    """What a sample takes by itself; no position if no token of it is labelled."""
    return Size.of(one.sample, 0 if one.batch is None else one.batch["input_ids"].shape[1])
