"""4. Samples in an order that a seed decides, a step's worth at a time; where it stands is two numbers."""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cornstarch.data.budgets import Budget, budget_of
from cornstarch.data.collation import Collator
from cornstarch.data.lengths import Window, windows
from cornstarch.data.loader import prepared
from cornstarch.data.mixtures import MixtureSource
from cornstarch.data.samples import Source
from cornstarch.data.steps import Numbered, Order, Policy, StepBatch, broken_files, order_of
from cornstarch.errors import ArgumentError, CornstarchError

_BEFORE = {"length_window": 1}  # what states of earlier versions do not say


class Batches:
    """An endless iterator over a source, `batch_size` samples a step; the last step of an epoch may have fewer.

    What comes is a function of the source, the seed and how far the iterator is. So its whole state is the epoch and
    the step in it, whatever workers have prepared ahead.

    Args:
        source: samples by number.
        collator: makes a batch of samples.
        batch_size: samples a step.
        micro_batch_size: samples that are in one batch; fewer than `batch_size` where a step's do not fit in memory.
        seed: of the order, and of what sources vary.
        shuffle: a new order every epoch; otherwise the source's own.
        workers: processes that prepare batches ahead; 0 prepares them here, when they are asked for.
        bad_samples: what happens to a sample that cannot be used: `stop` raises its error, `skip` goes on without it,
            `replace` puts the next good one of its source in its place. Other samples stay as they are. Damaged files
            of the source are named in the first step.
        budget: instead of `micro_batch_size`, of a micro-batch. If it is of positions or media, the samples of a step
            are put into micro-batches by length; which samples a step has, and so its loss, stays the same.
        length_window: steps that share out their samples by length, for less padding. Which samples meet in a step is
            another then; which are in the window is not.

    Raises:
        ArgumentError: for an empty source, a size below 1, or both a `micro_batch_size` and a `budget`.
    """

    def __init__(
        self,
        source: Source,
        collator: Collator,
        batch_size: int,
        *,
        micro_batch_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
        bad_samples: Policy = "stop",
        budget: Budget | None = None,
        length_window: int = 1,
    ) -> None:
        if not len(source):
            raise ArgumentError("the source has no samples")
        budget = budget_of(micro_batch_size, budget)
        if batch_size < 1 or length_window < 1:
            raise ArgumentError(f"a step has a sample and a window a step, found {batch_size} and {length_window}")
        self._source = source
        self._steps = windows(Numbered(source, seed), collator, batch_size, budget, length_window, bad_samples)
        self._batch_size, self._window = batch_size, length_window
        self._seed, self._shuffle, self._workers = seed, shuffle, workers
        self._epoch, self._step = 0, 0
        self._ahead: Iterator[list[StepBatch] | CornstarchError] | None = None
        self._here: deque[StepBatch] = deque()

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""
        return -(-len(self._source) // self._batch_size)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> StepBatch:
        if not self._here:
            if self._ahead is None:
                self._ahead = self._prepare()
            found = next(self._ahead)
            if isinstance(found, CornstarchError):
                self._ahead = None  # the same samples come again
                raise found
            self._here.extend(found)
        batch = self._here.popleft()
        if self._step == self._epoch == 0:
            batch = replace(batch, bad=(*broken_files(self._source), *batch.bad))
        self._step += 1
        if self._step == self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where the iterator stands: `epoch` and `step` in it, both from 0; and what that depends on."""
        return {"epoch": self._epoch, "step": self._step, **self._made_of}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where another iterator over the same source stood.

        Args:
            state: of `state_dict`.

        Raises:
            ArgumentError: if the other had another number of samples, batch size, seed or order.
        """
        for name, value in self._made_of.items():
            former = state.get(name, _BEFORE.get(name))
            if former != value:
                raise ArgumentError(
                    f"cannot go on in the data: {name} was {former} and is {value}, so its order is another"
                )
        self._epoch, self._step = state["epoch"], state["step"]
        self.close()

    @property
    def _made_of(self) -> dict[str, Any]:
        samples, size = len(self._source), self._batch_size
        made_of = {"samples": samples, "batch_size": size, "seed": self._seed, "shuffle": self._shuffle}
        made_of["length_window"] = self._window
        return {**made_of, "mixture": self._source.counts} if isinstance(self._source, MixtureSource) else made_of

    def _prepare(self) -> Iterator[list[StepBatch] | CornstarchError]:
        # Neither refers to this object: a circle would keep the workers alive after it.
        order = functools.partial(order_of, self._source, self._seed, shuffle=self._shuffle)
        steps = self._batch_size, self._window, self.steps_per_epoch
        ahead = _windows(order, steps, self._seed, self._epoch, self._step)
        return prepared(self._steps, ahead, workers=self._workers, seed=self._seed)

    def close(self) -> None:
        """End the workers; the next step would start others."""
        self._ahead = None
        self._here.clear()


def _windows(
    order: Callable[[int], Order], steps: tuple[int, int, int], seed: int, epoch: int, step: int
) -> Iterator[Window]:
    """Every window from the one in which a step is; of that, the steps from there on."""
    size, width, per_epoch = steps
    while True:
        places = order(epoch)
        for first in range(step - step % width, per_epoch, width):
            here = places[first * size : (first + width) * size]
            yield Window(here, (seed, epoch, first), max(0, step - first))
        epoch, step = epoch + 1, 0
