"""4b. The samples of one step -> its micro-batches; what becomes of samples that cannot be used."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

from torch.utils.data import Dataset
from transformers import BatchFeature

from cornstarch.data.collation import Collated, Collator, labelled_batch
from cornstarch.data.files import RowSource
from cornstarch.data.mixtures import MixtureSource
from cornstarch.data.rows import BrokenFile
from cornstarch.data.samples import Place, Sample, Source
from cornstarch.data.streams import StreamSource
from cornstarch.errors import ArgumentError, CornstarchError, MediaError, ModalityMismatchError

Policy = Literal["stop", "skip", "replace"]
POLICIES = ("stop", "skip", "replace")
_MOST_REPLACED = 100  # bad samples in a row, after which nothing takes the place of the first
_NAMED = (ArgumentError, MediaError, ModalityMismatchError)  # errors that are made of a message alone
_Made = tuple[BatchFeature | None, list[Sample]]  # a batch, and the samples that it has nothing to learn of
_NOT_THE_SAMPLES_FAULT = (ImportError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that could not be used.

    Attributes:
        name: of the sample.
        kind: the error's class.
        reason: the error's message.
        replaced_by: the name of the sample in its place; None if there is none.
    """

    name: str
    kind: str
    reason: str
    replaced_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one optimizer step is taken on.

    Attributes:
        micro_batches: what the model is called with, one after the other; empty if no sample has a labelled token.
        names: where the samples come from, for messages.
        samples: how many there are in the micro-batches.
        unlabelled: names of samples that are in none, as no token of theirs is labelled, perhaps since they were cut.
        bad: samples that are left out, or that others have the places of.
    """

    micro_batches: tuple[BatchFeature, ...]
    names: tuple[str, ...]
    samples: int
    unlabelled: tuple[str, ...] = ()
    bad: tuple[BadSample, ...] = ()

    def pin_memory(self) -> "StepBatch":
        """The same in memory from which an accelerator copies while it computes; PyTorch's loader calls this."""
        pinned = ({name: tensor.pin_memory() for name, tensor in micro.items()} for micro in self.micro_batches)
        return replace(self, micro_batches=tuple(BatchFeature(micro) for micro in pinned))


class Reading(Protocol):
    """How a sample comes of what an order says."""

    def sample(self, place: Any) -> Sample:
        """The sample at a place."""

    def called(self, place: Any) -> str:
        """What the sample at a place is called, before it is read."""

    def following(self, place: Any) -> Any:
        """The place whose sample may stand in for another's; None if there is none."""


class Numbered:
    """Samples of a source by (pass, index), so that workers need no state.

    Args:
        source: the source.
        seed: of what it varies.
    """

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed

    def sample(self, place: Place) -> Sample:
        """The sample at a place."""
        number, index = place
        return self._source.sample(index, chance_at(self._seed, number, index))

    def called(self, place: Place) -> str:
        """By its number; a source's own messages know better."""
        return f"sample {place[1]}"

    def following(self, place: Place) -> Place:
        """The next one in the source's own order."""
        number, index = place
        if isinstance(self._source, MixtureSource):
            return number, self._source.following(index)
        return number, (index + 1) % len(self._source)


class Tried(NamedTuple):
    """What there is at a place.

    Attributes:
        found: the sample, or the one that stands in for it; None if there is none.
        bad: what is wrong with the sample; None if nothing is.
    """

    found: Collated | None
    bad: BadSample | None = None


class OneByOne:
    """Samples at places, each prepared by itself; what becomes of those that cannot be used.

    Args:
        reading: place to sample.
        collator: samples to a batch.
        bad_samples: `stop` raises the error; `skip` finds nothing; `replace` finds the next good one of the source.
        check: is given a sample and the batch of it alone, and raises an error if it is to be refused for that.

    Raises:
        ArgumentError: for a policy that is none.
    """

    def __init__(
        self,
        reading: Reading,
        collator: Collator,
        bad_samples: Policy = "stop",
        check: Callable[[Collated], None] | None = None,
    ) -> None:
        if bad_samples not in POLICIES:
            raise ArgumentError(f"bad_samples is {', '.join(POLICIES)}, found {bad_samples!r}")
        self._reading, self._collator, self._policy, self._check = reading, collator, bad_samples, check

    def __call__(self, place: Any) -> Tried:
        """What there is at a place.

        Args:
            place: what the reading knows.

        Returns:
            The sample, if it or another in its place can be used; and what is wrong with it, if something is.

        Raises:
            CornstarchError: if it cannot be used and bad samples stop the run, or if nothing can stand in for it.
        """
        found = self._try(place)
        if isinstance(found, Collated):
            return Tried(found)
        name, error = found
        if self._policy == "stop":
            raise named(error, name)
        other = self._stand_in(place) if self._policy == "replace" else None
        if self._policy == "replace" and other is None:
            raise named(error, f"{name} (and nothing can take its place, {_MOST_REPLACED} that follow are bad too)")
        replaced_by = other.sample.name if other is not None else None
        return Tried(other, BadSample(name=name, kind=type(error).__name__, reason=str(error), replaced_by=replaced_by))

    def _stand_in(self, place: Any) -> Collated | None:
        for _ in range(_MOST_REPLACED):
            place = self._reading.following(place)
            found = self._try(place) if place is not None else None
            if found is None or isinstance(found, Collated):
                return found
        return None

    def _try(self, place: Any) -> Collated | tuple[str, Exception]:
        """The sample at a place and the batch of it alone, or its name and what is wrong with it."""
        name = self._reading.called(place)
        try:
            sample = self._reading.sample(place)
            name = sample.name
            found = Collated(sample, labelled_batch(self._collator, [sample])[0])
            if self._check is not None:
                self._check(found)
        except _NOT_THE_SAMPLES_FAULT:
            raise
        except Exception as error:
            if self._policy == "stop" and not isinstance(error, CornstarchError):
                raise
            return name_in(error, name), error
        return found


class Steps(Dataset[Any]):
    """Makes the step of several places. What one sample is and does depends on its own place alone.

    Args:
        reading: place to sample.
        collator: samples to a batch.
        micro_batch_size: places in one batch.
        bad_samples: `stop` yields the error; `skip` leaves the sample out of its micro-batch; `replace` takes the next
            good one of the source.

    Raises:
        ArgumentError: for a policy that is none.
    """

    def __init__(
        self, reading: Reading, collator: Collator, micro_batch_size: int, bad_samples: Policy = "stop"
    ) -> None:
        self._reading, self._collator, self._size, self._policy = reading, collator, micro_batch_size, bad_samples
        self._one_by_one = OneByOne(reading, collator, bad_samples)

    def __getitem__(self, places: Sequence[Any]) -> StepBatch | CornstarchError:
        """The step of some places; or what is wrong with a sample, since a worker's exceptions lose their form."""
        micro_batches, samples, unlabelled, bad = [], list[Sample](), list[Sample](), list[BadSample]()
        try:
            for start in range(0, len(places), self._size):
                found, (batch, left_out) = self._micro_batch(places[start : start + self._size], bad)
                samples += found
                unlabelled += left_out
                if batch is not None:
                    micro_batches.append(batch)
        except CornstarchError as error:
            return error
        return StepBatch(
            micro_batches=tuple(micro_batches),
            names=tuple(sample.name for sample in samples),
            samples=len(samples) - len(unlabelled),
            unlabelled=tuple(sample.name for sample in unlabelled),
            bad=tuple(bad),
        )

    def _micro_batch(self, places: Sequence[Any], bad: list[BadSample]) -> tuple[list[Sample], _Made]:
        """The samples at some places, and what is made of them."""
        try:
            samples = [self._reading.sample(place) for place in places]
            return samples, labelled_batch(self._collator, samples)
        except _NOT_THE_SAMPLES_FAULT:
            raise
        except Exception as error:  # which sample it was is found out one by one
            if self._policy == "stop" and not isinstance(error, CornstarchError):
                raise
            tried = [self._one_by_one(place) for place in places]
            if all(one.bad is None for one in tried):
                raise  # none by itself
        bad += [one.bad for one in tried if one.bad is not None]
        samples = [one.found.sample for one in tried if one.found is not None]
        return samples, labelled_batch(self._collator, samples) if samples else (None, [])


def name_in(error: Exception, name: str) -> str:
    """The name of a sample that could not even be read: what its error begins with."""
    return str(error).partition(": ")[0] if name.startswith("sample ") and ": " in str(error) else name


def named(error: Exception, name: str) -> Exception:
    """An error that says which sample it is about."""
    if str(error).startswith(name) or not isinstance(error, _NAMED):
        return error
    return type(error)(f"{name}: {error}")


def refusal(name: str, error: Exception) -> str:
    """What is said of an error that is none of the package's, raised where a sample was processed."""
    if not isinstance(error, RuntimeError | IndexError):
        return f"{name}: {type(error).__name__}: {error}"
    return (
        f"an encoder refuses what its processor makes of {name}: {error}; are the processor's sizes those of the "
        "encoder?"
    )


def chance_at(seed: int, number: int, index: int) -> random.Random:
    """The random numbers that belong to one sample in one pass through its source."""
    return random.Random(f"sample {seed} {number} {index}")


def broken_files(source: Source | StreamSource) -> list[BadSample]:
    """Files of a source of which only a part is used, since they are damaged.

    Args:
        source: opened with `salvage`.

    Returns:
        One entry a file.
    """
    if isinstance(source, MixtureSource):
        return [entry for part in source.sources for entry in broken_files(part)]
    found = source.broken if isinstance(source, RowSource) else ()
    return [BadSample(name=file.path, kind="BrokenFile", reason=_with_rest(file)) for file in found]


def _with_rest(file: BrokenFile) -> str:
    return f"{file.reason}; {file.rows:,} entries of it are used"


def order_of(source: Source, seed: int, epoch: int, *, shuffle: bool = True) -> "Order":
    """The places of an epoch, in order."""
    if isinstance(source, MixtureSource):
        places = source.order(seed, epoch, shuffle=shuffle)
        return Order([index for _, index in places], [number for number, _ in places])
    order = list(range(len(source)))
    if shuffle:
        random.Random(f"order {seed} {epoch}").shuffle(order)
    return Order(order, epoch)


@dataclass(frozen=True)
class Order:
    """Places as numbers, which need a fraction of the memory: indices, and the pass of all or of each."""

    indices: list[int]
    passes: int | list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, some: slice) -> list[Place]:
        indices = self.indices[some]
        passes = self.passes[some] if isinstance(self.passes, list) else [self.passes] * len(indices)
        return list(zip(passes, indices, strict=True))


def first_samples(source: Source | StreamSource, number: int | None = None, seed: int = 0) -> list[Sample]:
    """The first samples of a source in its own order, all without a number; varied ones as in the first epoch."""
    reading, places = _first(source, number, seed)
    return [reading.sample(place) for place in places]


def _first(source: Source | StreamSource, number: int | None, seed: int) -> tuple[Reading, Sequence[Any]]:
    if isinstance(source, StreamSource):
        if number is None:
            raise ArgumentError(f"{source} is a stream, which is not read in whole; say how many samples to take")
        return source, source.first(number)
    return Numbered(source, seed), order_of(source, seed, 0, shuffle=False)[:number]


def place_at(source: Source | StreamSource, number: int, seed: int = 0) -> tuple[Reading, Any]:
    """Where a sample is in a source's own order, as the first epoch has it.

    Args:
        source: the source.
        number: of the sample, from 0.
        seed: of what the source varies.

    Returns:
        What reads the source, and the place that it reads.

    Raises:
        ArgumentError: if there is no such sample; the message says how many there are.
    """
    if isinstance(source, StreamSource):
        row = source.nth(number) if number >= 0 else None
        if row is None:
            raise ArgumentError(f"there is no sample {number} in {source}, a stream; they are counted from 0")
        return source, row
    if not 0 <= number < len(source):
        raise ArgumentError(f"there is no sample {number}: the source has {len(source):,}, counted from 0")
    return Numbered(source, seed), order_of(source, seed, 0, shuffle=False)[number : number + 1][0]


def good_samples(
    source: Source | StreamSource, collator: Collator, number: int | None = None, seed: int = 0
) -> tuple[list[Sample], list[BadSample]]:
    """The same without those that cannot be used, and what is wrong with these; each is decoded once to see."""
    reading, places = _first(source, number, seed)
    tried = list(map(OneByOne(reading, collator, "skip"), places))
    samples = [one.found.sample for one in tried if one.found is not None]
    return samples, [one.bad for one in tried if one.bad is not None]
