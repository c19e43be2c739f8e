"""4. Samples in an order that a seed decides, a step's worth at a time; where it stands is two numbers."""

import functools
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature

from cornstarch.data.collation import Collator, labelled_batch
from cornstarch.data.samples import Sample, Source
from cornstarch.errors import ArgumentError, CornstarchError

Place = tuple[int, int]  # an epoch, and a sample's index


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one optimizer step is taken on.

    Attributes:
        micro_batches: what the model is called with, one after the other; empty if no sample has a labelled token.
        names: where the samples come from, for messages.
        samples: how many there are in the micro-batches.
        unlabelled: names of samples that are in none, as no token of theirs is labelled, perhaps since they were cut.
    """

    micro_batches: tuple[BatchFeature, ...]
    names: tuple[str, ...]
    samples: int
    unlabelled: tuple[str, ...] = ()

    def pin_memory(self) -> "StepBatch":
        """The same in memory from which an accelerator copies while it computes; PyTorch's loader calls this."""
        pinned = ({name: tensor.pin_memory() for name, tensor in micro.items()} for micro in self.micro_batches)
        return replace(self, micro_batches=tuple(BatchFeature(micro) for micro in pinned))


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

    Raises:
        ArgumentError: for an empty source or a size below 1.
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
    ) -> None:
        if not len(source):
            raise ArgumentError("the source has no samples")
        if batch_size < 1 or (micro_batch_size is not None and micro_batch_size < 1):
            raise ArgumentError(f"a batch has at least one sample, found {batch_size} and {micro_batch_size}")
        self._source, self._collator = source, collator
        self._batch_size = batch_size
        self._micro_batch_size = micro_batch_size or batch_size
        self._seed, self._shuffle, self._workers = seed, shuffle, workers
        self._epoch, self._step = 0, 0
        self._ahead: Iterator[StepBatch | CornstarchError] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """How many steps an epoch has."""
        return -(-len(self._source) // self._batch_size)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> StepBatch:
        if self._ahead is None:
            self._ahead = self._prepare()
        batch = next(self._ahead)
        if isinstance(batch, CornstarchError):
            self._ahead = None  # the same samples come again
            raise batch
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
            if state[name] != value:
                raise ArgumentError(
                    f"cannot go on in the data: {name} was {state[name]} and is {value}, so its order is another"
                )
        self._epoch, self._step = state["epoch"], state["step"]
        self._ahead = None

    @property
    def _made_of(self) -> dict[str, Any]:
        samples, size = len(self._source), self._batch_size
        return {"samples": samples, "batch_size": size, "seed": self._seed, "shuffle": self._shuffle}

    def _prepare(self) -> Iterator[StepBatch | CornstarchError]:
        loader: Any = DataLoader(
            _Samples(self._source, self._seed),
            # Neither refers to this object: a circle would keep the workers alive after it.
            batch_sampler=_places(**self._made_of, epoch=self._epoch, step=self._step),
            collate_fn=functools.partial(_collate, self._collator, self._micro_batch_size),
            num_workers=self._workers,
            worker_init_fn=_leave_interrupts_alone,
            pin_memory=torch.accelerator.is_available(),
            # Left alone, the loader would draw its workers' seed from the random numbers that training uses.
            generator=torch.Generator().manual_seed(self._seed),
        )
        return iter(loader)

    def close(self) -> None:
        """End the workers; the next step would start others."""
        self._ahead = None


def _places(samples: int, batch_size: int, seed: int, shuffle: bool, epoch: int, step: int) -> Iterator[list[Place]]:
    """(epoch, index) of the samples of every step from here on."""
    while True:
        order = list(range(samples))
        if shuffle:
            random.Random(f"order {seed} {epoch}").shuffle(order)
        for start in range(step * batch_size, len(order), batch_size):
            yield [(epoch, index) for index in order[start : start + batch_size]]
        epoch, step = epoch + 1, 0


def _collate(collator: Collator, size: int, samples: Sequence[Sample | CornstarchError]) -> StepBatch | CornstarchError:
    """A step's batch; or what is wrong with a sample, since a worker's exceptions lose their form on the way."""
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    wrong = next((sample for sample in samples if isinstance(sample, CornstarchError)), None)
    if wrong is not None:
        return wrong
    try:
        made = [labelled_batch(collator, whole[i : i + size]) for i in range(0, len(whole), size)]
    except CornstarchError as error:
        return error
    unlabelled = tuple(sample.name for _, left_out in made for sample in left_out)
    return StepBatch(
        micro_batches=tuple(batch for batch, _ in made if batch is not None),
        names=tuple(sample.name for sample in whole),
        samples=len(whole) - len(unlabelled),
        unlabelled=unlabelled,
    )


class _Samples(Dataset[Sample | CornstarchError]):
    """A source as PyTorch's loader wants it: by (epoch, index), so that workers need no state."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed

    def __getitem__(self, place: Place) -> Sample | CornstarchError:
        epoch, index = place
        try:
            return self._source.sample(index, chance_at(self._seed, epoch, index))
        except CornstarchError as error:
            return error


def _leave_interrupts_alone(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; what it does is the training process's business.

    SIGTERM ends a worker as always, or nobody could; its handler would be the training process's otherwise.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def chance_at(seed: int, epoch: int, index: int) -> random.Random:
    """The random numbers that belong to one sample in one epoch."""
    return random.Random(f"sample {seed} {epoch} {index}")


def first_samples(source: Source, number: int | None = None, seed: int = 0) -> list[Sample]:
    """The first samples of a source in its own order, all without a number; varied ones as in the first epoch."""
    count = len(source) if number is None else min(number, len(source))
    return [source.sample(index, chance_at(seed, 0, index)) for index in range(count)]
