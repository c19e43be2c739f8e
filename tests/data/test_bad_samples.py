"""Samples that cannot be used: stop, skip, replace; the others are as they would be without."""

from typing import Any

import pytest
import torch
from PIL import Image

from cornstarch import ArgumentError, Batches, MediaError, MixtureSource, Sample
from tests.training import toy

SIZE = 12


class Some(toy.Colours):
    """Colours of which some are bad: `unread` cannot be read, `broken` have an image that cannot be decoded."""

    def __init__(self, unread: tuple[int, ...] = (), broken: tuple[int, ...] = (), size: int = SIZE) -> None:
        super().__init__(size)
        self.unread, self.broken = unread, broken

    def sample(self, index: int, chance: Any) -> Sample:
        if index in self.unread:
            raise MediaError(f"colour {index}: there is no image")
        sample = super().sample(index, chance)
        if index in self.broken:
            part = {"type": "image", "image": b"no image"}
            return Sample(messages=({"role": "user", "content": [part]}, sample.messages[1]), name=sample.name)
        return sample


def batches(policy: Any, *args: Any, **options: Any) -> Batches:
    _, collator = toy.model_and_collator()
    options = {"batch_size": 4, "micro_batch_size": 2, "shuffle": False, **options}
    return Batches(Some(*args), collator, bad_samples=policy, **options)


def rows(batch: Any) -> dict[str, torch.Tensor]:
    """Ids of every sample by its name, without padding."""
    found = [
        ids[mask.bool()]
        for micro in batch.micro_batches
        for ids, mask in zip(micro["input_ids"], micro["attention_mask"], strict=True)
    ]
    return dict(zip(batch.names, found, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_skip(workers: int) -> None:
    """Two of different kinds are left out and named; every other sample, and its micro-batch, is as without."""
    good, found = batches("stop"), batches("skip", (2,), (5,), workers=workers)
    bad = []
    for _ in range(6):
        wanted, step = next(good), next(found)
        bad += step.bad
        left = [name for name in wanted.names if name not in ("colour 2", "colour 5")]
        assert list(step.names) == left
        assert step.samples == len(left)
        assert all(torch.equal(ids, rows(wanted)[name]) for name, ids in rows(step).items())
    assert [(entry.name, entry.kind, entry.replaced_by) for entry in bad] == [
        ("colour 2", "MediaError", None), ("colour 5", "MediaError", None),
    ] * 2  # fmt: skip
    assert "there is no image" in bad[0].reason
    assert "modality 'vision': image 0 (bytes) cannot be read" in bad[1].reason
    found.close()


def test_whole_micro_batches_and_steps_may_be_missing() -> None:
    steps = batches("skip", (0, 1, 4, 5, 6, 7))
    first, second, third = next(steps), next(steps), next(steps)
    assert [step.names for step in (first, second)] == [("colour 2", "colour 3"), ()]
    assert [len(step.micro_batches) for step in (first, second, third)] == [1, 0, 2]


def test_replace() -> None:
    """The next good one of the source, which still has its own place, too; everything else is as it was."""
    good, found = batches("stop"), batches("replace", (2, 3), (11,))
    for number in range(3):
        wanted, step = next(good), next(found)
        expected = {0: ("colour 0", "colour 1", "colour 4", "colour 4")}.get(number, wanted.names)
        expected = ("colour 8", "colour 9", "colour 10", "colour 0") if number == 2 else expected
        assert step.names == expected
        assert {entry.replaced_by for entry in step.bad} == {0: {"colour 4"}, 1: set(), 2: {"colour 0"}}[number]


def test_a_mixture_replaces_from_the_same_source() -> None:
    _, collator = toy.model_and_collator()
    source = MixtureSource([Some((1,)), Some((), ())], [1, 1])
    assert source.following(11) == 0
    assert source.following(23) == 12
    batch = next(Batches(source, collator, 4, shuffle=False, bad_samples="replace"))
    assert batch.names == ("colour 0", "colour 0", "colour 2", "colour 1")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "args, message", [(((2,), ()), "colour 2: there is no image"), (((), (2,)), "colour 2: modality 'vision': image 0")]
)
def test_stop_names_the_sample(args: Any, message: str, workers: int) -> None:
    """Whether it cannot be read or not be decoded; the same step comes again when asked."""
    steps = batches("stop", *args, workers=workers)
    for _ in range(2):
        with pytest.raises(MediaError, match=message):
            next(steps)
    steps.close()


def test_nothing_left_to_replace_with() -> None:
    with pytest.raises(MediaError, match="nothing can take its place"):
        next(batches("replace", tuple(range(SIZE))))


def test_mistakes_in_code_are_no_bad_samples() -> None:
    """A package that is missing stops any run; an error of a source's own stops where bad samples do."""

    class Missing(toy.Colours):
        error: Exception = ImportError("pip install something")

        def sample(self, index: int, chance: Any) -> Sample:
            raise self.error

    _, collator = toy.model_and_collator()
    with pytest.raises(ImportError, match="something"):
        next(Batches(Missing(), collator, 2, bad_samples="skip"))
    Missing.error = KeyError("column")
    with pytest.raises(KeyError):
        next(Batches(Missing(), collator, 2))
    assert next(Batches(Missing(), collator, 2, bad_samples="skip")).bad[0].kind == "KeyError"
    with pytest.raises(ArgumentError, match="stop, skip, replace"):
        Batches(Missing(), collator, 2, bad_samples="cry")


def test_images_of_many_kinds_of_damage() -> None:
    """Bytes cut off or changed anywhere are a bad sample, never another error."""
    import io

    good = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(good, "PNG")
    data = good.getvalue()

    class Damaged(toy.Colours):
        def sample(self, index: int, chance: Any) -> Sample:
            broken = bytearray(data[: len(data) - 40 * (index % 3)])
            broken[8 + index * 7 :][:1] = b""
            broken[10 + index * 11] ^= 0xFF
            part = {"type": "image", "image": bytes(broken)}
            messages = ({"role": "user", "content": [part]}, {"role": "assistant", "content": "a"})
            return Sample(messages=messages, name=f"damaged {index}")

    _, collator = toy.model_and_collator()
    steps = Batches(Damaged(40), collator, 8, bad_samples="skip")
    bad = [entry for _ in range(5) for entry in next(steps).bad]
    assert len(bad) > 10
    assert {entry.kind for entry in bad} == {"MediaError"}
