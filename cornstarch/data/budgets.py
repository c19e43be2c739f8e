"""4c. Which samples go to the device together: those of a step by length, within a budget. Pure functions of sizes."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from cornstarch.data.samples import Sample
from cornstarch.errors import ArgumentError

_ONE = {"samples": "sample", "positions": "position", "media": "medium"}
_REMEDIES = {
    "positions": "allow more, or cut samples with data.max_length",
    "media": "allow more, or leave such samples out with data.bad_samples",  # those that are cut off count, too
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a sample takes.

    Attributes:
        positions: in the language model.
        media: images, sounds and videos, with those that are cut off.
    """

    positions: int
    media: int

    @classmethod
    def of(cls, sample: Sample, positions: int) -> "Size":
        """Of a sample that takes so many positions."""
        return cls(positions=positions, media=sum(1 for _ in sample.media))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a micro-batch may take at most; None where there is no limit.

    Attributes:
        samples: of it.
        positions: of it, padding included: samples times the longest of them.
        media: images, sounds and videos of its samples.
    """

    samples: int | None = None
    positions: int | None = None
    media: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "positions", "media"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"a micro-batch has at least one {_ONE[name]}, found {value}")

    @property
    def is_by_length(self) -> bool:
        """Whether sizes have to be known to keep to it."""
        return self.positions is not None or self.media is not None

    def excess(self, size: Size) -> str | None:
        """What a single sample takes too much of, in words; None if it fits."""
        name = self._exceeded(size)
        if name is None:
            return None
        found, limit = getattr(size, name), getattr(self, name)
        return f"it takes {found} {name}, and a micro-batch may have {limit} (training.micro_batch_{name})"

    def refusal(self, name: str, size: Size) -> str | None:
        """What is said of a sample that takes too much by itself; None if it fits."""
        exceeded = self._exceeded(size)
        return f"{name}: {self.excess(size)}: {_REMEDIES[exceeded]}" if exceeded is not None else None

    def _exceeded(self, size: Size) -> str | None:
        limits = {"positions": self.positions, "media": self.media}
        return next((name for name, limit in limits.items() if limit is not None and getattr(size, name) > limit), None)

    def groups(self, sizes: Sequence[Size]) -> list[list[int]]:
        """Put samples together, the longest first, each group as large as the budget lets it be.

        Of all ways to cut the samples in order of their lengths this has the fewest groups: one that begins with a
        shorter sample can never end earlier.

        Args:
            sizes: of each sample, none above the budget.

        Returns:
            Indices of samples; samples of one length stay in their order.
        """
        groups: list[list[int]] = []
        media = 0
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index].positions):
            media += sizes[index].media
            if not groups or not self._holds(len(groups[-1]) + 1, sizes[groups[-1][0]].positions, media):
                groups.append([])
                media = sizes[index].media
            groups[-1].append(index)
        return groups

    def _holds(self, samples: int, longest: int, media: int) -> bool:
        found = {"samples": samples, "positions": samples * longest, "media": media}
        return all(limit is None or found[name] <= limit for name, limit in vars(self).items())


def budget_of(samples: int | None, budget: Budget | None) -> Budget:
    """The budget of a micro-batch, of which a number of samples is the short form.

    Args:
        samples: of a micro-batch.
        budget: of it.

    Returns:
        The one that is given, or one without limits.

    Raises:
        ArgumentError: if both are.
    """
    if budget is not None and samples is not None:
        raise ArgumentError(f"give micro_batch_size or a budget, which has `samples`; found {samples} and {budget}")
    return budget or Budget(samples=samples)


def steps_of_like_length(lengths: Sequence[int], size: int, chance: random.Random) -> list[list[int]]:
    """Put the samples of several steps together anew, so that those of a step are about as long as each other.

    Args:
        lengths: of each sample, in positions; 0 for one that cannot be used.
        size: samples a step; one of the steps has what is left over.
        chance: decides the order of steps, so that lengths do not fall along it.

    Returns:
        Indices of the samples of every step, in the order of the steps; within a step in their own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    whole, left = divmod(len(order), size)
    rest = [left] if left else []

    def cut(before: int) -> list[list[int]]:
        """With the smaller step, if there is one, behind so many others."""
        sizes = [*[size] * before, *rest, *[size] * (whole - before)]
        ends = itertools.accumulate(sizes)
        return [sorted(order[end - number : end]) for end, number in zip(ends, sizes, strict=True)]

    ways = map(cut, range(whole + 1) if rest else [0])
    steps = min(ways, key=lambda steps: _padded(steps, lengths))
    chance.shuffle(steps)
    return steps


def chance_of_window(seed: int, epoch: int, first: int) -> random.Random:
    """What decides the order of the steps of a window.

    Args:
        seed: of the data's order.
        epoch: from 0.
        first: the number of the window's first step in it.

    Returns:
        Random numbers.
    """
    return random.Random(f"lengths {seed} {epoch} {first}")


def _padded(steps: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return sum(len(step) * max(lengths[index] for index in step) for step in steps)
