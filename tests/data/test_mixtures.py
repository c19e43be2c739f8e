"""Mixtures: proportions at every point, what an epoch is, and that nothing depends on who asks when."""

from collections import Counter
from typing import Any

import pytest

from cornstarch import ArgumentError, Batches, MixtureSource, Sample, first_samples
from cornstarch.data.steps import order_of
from tests.training import toy


class Numbers:
    """Samples that say which they are."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int, chance: Any) -> Sample:
        messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
        return Sample(messages=messages, name=f"{self.name} {index} {chance.random()}")


def mixture(sizes: tuple[int, ...] = (7000, 900, 4000), weights: Any = (5, 3, 2), **options: Any) -> MixtureSource:
    return MixtureSource([Numbers("abcdef"[n], size) for n, size in enumerate(sizes)], weights, **options)


def shown(source: MixtureSource, epochs: int = 1, seed: int = 0, shuffle: bool = True) -> list[tuple[int, int]]:
    return [place for epoch in range(epochs) for place in source.order(seed, epoch, shuffle=shuffle)]


def source_names(source: MixtureSource, places: list[tuple[int, int]]) -> list[str]:
    starts = source._starts
    return ["abcdef"[max(n for n, start in enumerate(starts[:-1]) if start <= index)] for _, index in places]


@pytest.mark.parametrize("weights", [(5, 3, 2), (0.1, 0.1, 0.8), (1, 1, 1), (97, 2, 1)])
@pytest.mark.parametrize("ending", ["repeat", "stop"])
def test_proportions_over_10_000_samples(weights: tuple[float, ...], ending: str) -> None:
    """After any number of samples, over epochs, every source is within two of its share."""
    source = mixture(weights=weights, when_one_ends=ending)
    names = source_names(source, shown(source, epochs=2 + 10_000 // len(source))[:10_000])
    assert len(names) == 10_000
    counts: Counter[str] = Counter()
    for number, name in enumerate(names, 1):
        counts[name] += 1
        if number % 97 == 0 or number == 10_000:
            share = {n: weight / sum(weights) * number for n, weight in zip("abc", weights, strict=True)}
            # Epochs are cut to whole samples: each may be off by one more.
            assert all(abs(counts[n] - share[n]) <= 2 + number // len(source) for n in "abc"), number


def test_proportions_of_batches() -> None:
    """As they come to a model: 2,000 steps of 5 from sources of 6, 3 and 1 parts, through `Batches`."""
    _, collator = toy.model_and_collator()
    batches = Batches(mixture((50, 20, 30), (6, 3, 1)), collator, 5)
    names = Counter(name[0] for _ in range(40) for name in next(batches).names)
    assert names == {"a": 120, "b": 60, "c": 20}


def test_what_an_epoch_is() -> None:
    """`repeat`: all were shown; `stop`: one was shown in whole; `go_on`: each once. Worked out by hand."""
    sizes, weights = (60, 20, 5), (3, 2, 1)
    assert mixture(sizes, weights, when_one_ends="repeat").counts == [60, 40, 20]
    assert mixture(sizes, weights, when_one_ends="stop").counts == [15, 10, 5]
    assert mixture(sizes, weights, when_one_ends="go_on").counts == [60, 20, 5]
    last = source_names(mixture(sizes, weights), shown(mixture(sizes, weights, when_one_ends="go_on")))
    assert Counter(last[:30]) == {"a": 15, "b": 10, "c": 5}  # in their proportions until the shortest ends
    assert set(last[-29:]) == {"a"}  # the others ended at places 30 to 56
    assert mixture(sizes, None).counts == [60, 20, 5]  # by size, all end together


@pytest.mark.parametrize("ending", ["repeat", "stop", "go_on"])
def test_no_sample_comes_twice_before_all_came(ending: str) -> None:
    """Over epochs, each source is gone through in whole passes; a (pass, index) never comes again."""
    source = mixture((13, 5, 8), (3, 2, 1), when_one_ends=ending)
    places = shown(source, epochs=9)
    assert len(set(places)) == len(places)
    for name, (start, end) in zip("abc", [(0, 13), (13, 18), (18, 26)], strict=True):
        of_source = [index for _, index in places if start <= index < end]
        for begin in range(0, len(of_source) - (end - start) + 1, end - start):
            assert sorted(of_source[begin : begin + end - start]) == list(range(start, end)), name


def test_the_order_is_the_seeds() -> None:
    source = mixture((20, 10, 30))
    assert shown(source) == shown(mixture((20, 10, 30)))
    assert shown(source) != shown(source, seed=1)
    assert shown(source, shuffle=False)[:2] == [(0, 0), (0, 20)]
    by_name = source_names(source, shown(source))
    assert by_name == source_names(source, shown(source, seed=1))


def test_state_and_workers() -> None:
    """From a state in the middle of the second epoch on, and with two workers: the same, drawn numbers too."""
    _, collator = toy.model_and_collator()
    source = mixture((7, 3, 5), (2, 1, 1))
    one = Batches(source, collator, 4)
    names = [next(one).names for _ in range(9)]
    other = Batches(source, collator, 4, workers=2)
    assert [next(other).names for _ in range(9)] == names
    other.close()
    state = one.state_dict()
    again = Batches(source, collator, 4)
    again.load_state_dict(state)
    assert next(again).names == next(one).names
    changed = Batches(mixture((7, 3, 5), (1, 1, 2)), collator, 4)
    with pytest.raises(ArgumentError, match="its order is another"):
        changed.load_state_dict(state)


def test_first_samples_are_in_order() -> None:
    assert [sample.name.split()[:2] for sample in first_samples(mixture((4, 4), (1, 1)), 4)] == [
        ["a", "0"], ["b", "0"], ["a", "1"], ["b", "1"],
    ]  # fmt: skip
    assert len(order_of(mixture((4, 4), (1, 1)), 0, 0)) == 8


def test_mixtures_that_cannot_be() -> None:
    for sizes, weights, options, message in [
        ((3, 0), (1, 1), {}, "sources that have samples"),
        ((), (), {}, "sources that have samples"),
        ((3, 3), (1, 0), {}, "each above 0"),
        ((3, 3), (1,), {}, "as many weights"),
        ((3, 3), (1, float("inf")), {}, "each above 0"),
        ((3, 3), (1, 1), {"when_one_ends": "cry"}, "repeat, stop, go_on"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            mixture(sizes, weights, **options)
    with pytest.raises(ArgumentError, match="no mixtures themselves"):
        MixtureSource([mixture((3,), (1,))])
