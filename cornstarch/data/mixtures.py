"""1f. Several sources as one, in stated proportions that hold at every point of an epoch."""

import bisect
import itertools
import math
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cornstarch.data.samples import Place, Sample, Source
from cornstarch.errors import ArgumentError

Ending = Literal["repeat", "stop", "go_on"]
ENDINGS = ("repeat", "stop", "go_on")


class MixtureSource:
    """Several sources as one.

    Which source has which place in an epoch is decided by the weights alone, evenly spread: after any number of samples
    each source had its share, to within one or two. Which of its samples comes there is shuffled for each pass through
    that source. An epoch need not be whole passes: the next one goes on where the sources are.

    Args:
        sources: at least one, none of them a mixture.
        weights: how many samples of each there are, relative to the others; by their sizes if not given.
        when_one_ends: what an epoch is. `repeat`: until each source was shown in whole, shorter ones come again;
            `stop`: until the first source ends; `go_on`: every sample once, where one ends the others go on alone.

    Attributes:
        counts: how many samples of each source an epoch has.
        sources: the sources.

    Raises:
        ArgumentError: if there is no source, one is empty, or a weight is not positive.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float] | None = None, *, when_one_ends: Ending = "repeat"
    ) -> None:
        if when_one_ends not in ENDINGS:
            raise ArgumentError(f"when_one_ends is {', '.join(ENDINGS)}, found {when_one_ends!r}")
        if not sources or any(isinstance(source, MixtureSource) or not len(source) for source in sources):
            raise ArgumentError("a mixture is of sources that have samples and are no mixtures themselves")
        self.sources = list(sources)
        self._sizes = [len(source) for source in sources]
        weights = [float(size) for size in self._sizes] if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(self._sizes) or not all(0 < weight < math.inf for weight in weights):
            raise ArgumentError(f"a mixture of {len(self._sizes)} has as many weights, each above 0, found {weights}")
        self._shares = [weight / sum(weights) for weight in weights]
        self._starts = list(itertools.accumulate(self._sizes, initial=0))
        self._ending = when_one_ends
        self.counts = self._of_an_epoch()

    def __len__(self) -> int:
        """How many samples an epoch has."""
        return sum(self.counts)

    def sample(self, index: int, chance: random.Random) -> Sample:
        """One sample of one source.

        Args:
            index: the samples of all sources are numbered through, in the order in which the sources were given.
            chance: for the source.

        Returns:
            The sample.
        """
        source, place = self.place_of(index)
        return self.sources[source].sample(place, chance)

    def place_of(self, index: int) -> tuple[int, int]:
        """Where a sample comes from.

        Args:
            index: as in `sample`.

        Returns:
            The number of its source, and its index there.
        """
        source = self._source_of(index)
        return source, index - self._starts[source]

    def following(self, index: int) -> int:
        """The sample after another in the same source; after the last comes the first.

        Args:
            index: as in `sample`.

        Returns:
            The other's index.
        """
        source = self._source_of(index)
        return self._starts[source] + (index - self._starts[source] + 1) % self._sizes[source]

    def order(self, seed: int, epoch: int, *, shuffle: bool = True) -> list[Place]:
        """The samples of an epoch.

        Args:
            seed: of the order within sources.
            epoch: from 0.
            shuffle: another order in every pass; otherwise each source's own.

        Returns:
            (pass through its source, index) of each: no pair comes twice, in whatever epoch.
        """
        queues = [self._taken(source, seed, epoch, shuffle) for source in range(len(self.sources))]
        return [next(queues[source]) for source in self._pattern()]

    def _of_an_epoch(self) -> list[int]:
        """How many samples of each source an epoch has."""
        if self._ending == "go_on":
            return list(self._sizes)
        lengths = [size / share for size, share in zip(self._sizes, self._shares, strict=True)]
        if self._ending == "stop":
            return [max(1, math.floor(min(lengths) * share + 1e-9)) for share in self._shares]
        return [math.ceil(max(lengths) * share - 1e-9) for share in self._shares]

    def _pattern(self) -> list[int]:
        """Which source has each place: the n-th sample of a source is due at n - 1/2 over its share."""
        due = [(np.arange(count) + 0.5) / share for count, share in zip(self.counts, self._shares, strict=True)]
        sources = np.repeat(np.arange(len(due)), self.counts)
        found: list[int] = sources[np.argsort(np.concatenate(due), kind="stable")].tolist()
        return found

    def _taken(self, source: int, seed: int, epoch: int, shuffle: bool) -> "itertools.chain[Place]":
        """(pass, index) of what a source gives in an epoch, one after the other."""
        size, count = self._sizes[source], self.counts[source]
        first, last = epoch * count, (epoch + 1) * count
        passes = range(first // size, -(-last // size))
        start = self._starts[source]
        return itertools.chain.from_iterable(
            self._of_pass(start, size, source, seed, number, shuffle)[
                max(0, first - number * size) : min(size, last - number * size)
            ]
            for number in passes
        )

    def _of_pass(self, start: int, size: int, source: int, seed: int, number: int, shuffle: bool) -> list[Place]:
        order = list(range(start, start + size))
        if shuffle:
            random.Random(f"order {seed} {number} of {source}").shuffle(order)
        return [(number, index) for index in order]

    def _source_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1
