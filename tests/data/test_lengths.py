"""Samples put together by length: within a step nothing changes but the padding; over steps, who meets whom."""

import os
import random
import signal
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

from cornstarch import (
    ArgumentError,
    Batches,
    Budget,
    Collator,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    Sample,
    parse_config,
    set_template,
)
from cornstarch.data.budgets import Size, steps_of_like_length
from cornstarch.data.collation import Collated
from cornstarch.data.joining import Joiner
from cornstarch.data.lengths import StepsByLength
from cornstarch.data.steps import OneByOne
from cornstarch.errors import SampleError
from cornstarch.training import ModelConfig
from cornstarch.training.building import build_processor
from cornstarch.training.loop import Loop
from tests import parts
from tests.models.original_processors import MADE
from tests.training import toy

# --- which samples go together: pure functions ------------------------------------------------------------------------

SIZES = st.lists(st.builds(Size, positions=st.integers(1, 20), media=st.integers(0, 4)), min_size=1, max_size=9)
BUDGETS = st.builds(
    Budget,
    samples=st.none() | st.integers(1, 4),
    positions=st.none() | st.integers(20, 60),
    media=st.none() | st.integers(4, 8),
)


def fits(budget: Budget, group: list[Size]) -> bool:
    """The definition, in full."""
    padded = len(group) * max(size.positions for size in group)
    media = sum(size.media for size in group)
    return (
        (budget.samples is None or len(group) <= budget.samples)
        and (budget.positions is None or padded <= budget.positions)
        and (budget.media is None or media <= budget.media)
    )


def fewest(budget: Budget, sizes: list[Size]) -> int:
    """Of all ways to cut the samples, in order of their lengths, into groups that fit: tried one after the other."""
    if not sizes:
        return 0
    ways = [1 + fewest(budget, sizes[end:]) for end in range(1, len(sizes) + 1) if fits(budget, sizes[:end])]
    return min(ways)


@given(sizes=SIZES, budget=BUDGETS)
@settings(max_examples=150, deadline=None)
def test_groups_fit_and_are_as_few_as_can_be(sizes: list[Size], budget: Budget) -> None:
    groups = budget.groups(sizes)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert all(fits(budget, [sizes[index] for index in group]) for group in groups)
    assert len(groups) == fewest(budget, sorted(sizes, key=lambda size: -size.positions))
    longest = [max(sizes[index].positions for index in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=40), size=st.integers(1, 7), seed=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_steps_of_like_length(lengths: list[int], size: int, seed: int) -> None:
    """All samples once, all steps full but one; no other cut of the samples into such steps has less padding."""
    steps = steps_of_like_length(lengths, size, random.Random(seed))
    assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
    assert Counter(len(step) for step in steps) == Counter(
        len(lengths[start : start + size]) for start in range(0, len(lengths), size)
    )
    assert steps == steps_of_like_length(lengths, size, random.Random(seed))

    def padded(order: list[int]) -> int:
        cut = [order[start : start + size] for start in range(0, len(order), size)]
        return sum(len(step) * max(lengths[index] for index in step) for step in cut)

    found = sum(len(step) * max(lengths[index] for index in step) for step in steps)
    for trial in range(20):
        assert found <= padded(random.Random(trial).sample(range(len(lengths)), len(lengths)))


def test_budgets_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="at least one position, found 0"):
        Budget(positions=0)
    with pytest.raises(ArgumentError, match=r"micro_batch_size or a budget, .*found 4 and Budget"):
        batches(micro_batch_size=4, budget=Budget(positions=60))


# --- joining what was prepared one by one -----------------------------------------------------------------------------


def alone(collator: Collator, samples: list[Sample]) -> list[Collated]:
    return [Collated(sample, collator([sample])) for sample in samples]


def said(media: list[Any], kind: str, number: int) -> Sample:
    asked = [*({"type": kind, kind: medium} for medium in media), {"type": "text", "text": "What?" + "!" * number}]
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": "This." * (1 + number % 3)})
    return Sample(messages=messages, name=f"sample {number}")


def assert_joined(collator: Collator, samples: list[Sample]) -> None:
    """Twice, as the first time decides whether what is put together can be relied on."""
    join = Joiner(collator)
    for chosen in (samples, samples[::-1], samples[1:], samples[:1]):
        found, expected = join(alone(collator, chosen)), collator(chosen)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", sorted(MADE))
def test_joined_is_as_collated_at_once(name: str, tmp_path: Path) -> None:
    """For every processor that is imported: tiles, grids, patches side by side, sounds of unequal length."""
    processor = build_processor(ModelConfig(path=str(MADE[name](tmp_path).folder)))
    (key,) = processor.tokens
    kind = "audio" if key == "audio" else "image"
    # Content with media as the template has them, whatever it is; one sample without any where that is allowed.
    sizes = [(20, 24), (40, 24), (20, 24), (24, 20)]
    if kind == "image":
        media = [[parts.image(*sizes[0])], [parts.image(*size) for size in sizes[1:3]], [], [parts.image(*sizes[3])]]
    else:
        media = [[parts.sound(4000)], [parts.sound(4000)], [], [parts.sound(5000)]]
    assert_joined(Collator(processor), [said(found, kind, number) for number, found in enumerate(media)])


def test_joined_of_three_modalities() -> None:
    """An image tower, and two of sounds, one of which pads to the longest."""
    _, processor = parts.three_modalities()
    set_template(processor.llm_tokenizer)
    samples = []
    for number in range(5):
        media: list[Any] = []
        for place, key in enumerate(processor.tokens):
            if (number + place) % 3:
                argument = processor.media_arguments[key][0]
                medium = parts.image(seed=number) if "image" in argument else parts.sound(2000 + 400 * (number % 2))
                media.append({"type": key, key: medium})
        messages = ({"role": "user", "content": [*media, {"type": "text", "text": "?"}]},)
        samples.append(Sample(messages=(*messages, {"role": "assistant", "content": "Yes."}), name=str(number)))
    assert_joined(Collator(processor), samples)


@pytest.mark.parametrize("mask", [True, False])
def test_sounds_of_unequal_length(mask: bool) -> None:
    """Padded to the longest. Without a mask, padding takes positions too, and batches are halved until they fit."""
    model = MultimodalModel({"speech": ModalEncoderModule(parts.wav2vec2())}, parts.llama())
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=mask)
    processor = MultimodalProcessor({"speech": extractor}, parts.tokenizer(), model)
    set_template(processor.llm_tokenizer)

    class Sounds(toy.Colours):
        def sample(self, index: int, chance: random.Random) -> Sample:
            return said([parts.sound(400 + 1900 * (index % 2))], "speech", 30 * (1 - index % 2))

    # Three long ones of 241 positions, four short ones of 81: one group has both, 2 x 241 or, unmasked, 2 x 271.
    found = Batches(Sounds(7), Collator(processor), 7, shuffle=False, budget=Budget(positions=500))
    plain = Batches(Sounds(7), Collator(processor), 7, shuffle=False, micro_batch_size=1)
    step = next(found)
    assert step.samples == 7
    assert all(micro["input_ids"].numel() <= 500 for micro in step.micro_batches)
    assert [len(micro["input_ids"]) for micro in step.micro_batches] == ([2, 2, 3] if mask else [2, 1, 1, 3])
    if mask:
        assert rows(step) == rows(next(plain))


def test_sounds_that_cut_off_the_label_of_others() -> None:
    """Unmasked padding takes positions: beside a longer sound a long question's answer is beyond `max_length`."""
    model = MultimodalModel({"speech": ModalEncoderModule(parts.wav2vec2())}, parts.llama())
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False)
    processor = MultimodalProcessor({"speech": extractor}, parts.tokenizer(), model)
    set_template(processor.llm_tokenizer)

    class Sounds(toy.Colours):
        def sample(self, index: int, chance: random.Random) -> Sample:
            return said([parts.sound(1200 if index % 2 else 400)], "speech", 0 if index % 2 else 35)

    # By themselves they take 131 positions and 96, together 176 and 96.
    collator = Collator(processor, max_length=135)
    step = next(Batches(Sounds(4), collator, 4, shuffle=False, budget=Budget(positions=2000)))
    assert step.samples == 4
    assert [tuple(micro["input_ids"].shape) for micro in step.micro_batches] == [(2, 131), (2, 96)]
    assert sum(int((micro["labels"] != -100).sum()) for micro in step.micro_batches) == 2 * 16 + 2 * 6


def test_a_processor_with_an_order_of_its_own_is_seen() -> None:
    """What cannot be put together one behind the other is collated anew, every time."""
    _, collator = toy.model_and_collator()
    inner = collator.processor.encoder_processors["vision"]

    class Backwards(type(inner)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            made["pixel_values"] = made["pixel_values"].flip(0)
            return made

    inner.__class__ = Backwards
    samples = [toy.Colours().sample(index, random.Random(0)) for index in range(6)]
    assert_joined(collator, samples)
    # Samples that are all the same do not show it; those after them do.
    seen = [sample for sample in samples if list(sample.media)]
    join = Joiner(collator)
    for chosen in ([seen[0]] * 3, seen):
        found, expected = join(alone(collator, chosen)), collator(chosen)
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_joined_is_not_collated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first time, which is what joining is for."""
    _, collator = toy.model_and_collator()
    parts_of_it = alone(collator, [toy.Colours().sample(index, random.Random(0)) for index in range(6)])
    join = Joiner(collator)
    join(parts_of_it)
    monkeypatch.setattr(Collator, "__call__", None)
    assert len(join(parts_of_it)["input_ids"]) == 6


# --- micro-batches by length ------------------------------------------------------------------------------------------


class Long(toy.Colours):
    """Colours with answers of very different lengths."""

    def sample(self, index: int, chance: random.Random) -> Sample:
        sample = super().sample(index, chance)
        answer = "so " * (1 + (index * 7) % 23) + sample.answer
        return Sample(messages=(sample.messages[0], {"role": "assistant", "content": answer}), name=sample.name)


def batches(source: Any = None, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Batches]:
    model, collator = toy.model_and_collator(dtype)
    return model, Batches(source or Long(20), collator, 8, seed=3, **options)


def rows(batch: Any) -> Counter[tuple[int, ...]]:
    """What a step's samples are, whichever micro-batch they are in."""
    return Counter(
        tuple(ids[mask.bool()].tolist())
        for micro in batch.micro_batches
        for ids, mask in zip(micro["input_ids"], micro["attention_mask"], strict=True)
    )


def padding(batch: Any) -> int:
    return sum(int((micro["attention_mask"] == 0).sum()) for micro in batch.micro_batches)


def test_a_step_has_the_same_samples_in_smaller_batches() -> None:
    """None above the budget, and less padding than in batches of a fixed number."""
    _, plain = batches(micro_batch_size=4)
    _, found = batches(budget=Budget(positions=160, media=5))
    before = after = 0
    for _ in range(6):
        wanted, step = next(plain), next(found)
        assert step.names == wanted.names
        assert step.samples == wanted.samples
        assert rows(step) == rows(wanted)
        for micro in step.micro_batches:
            assert micro["input_ids"].numel() <= 160
            assert len(micro.get("pixel_values", ())) <= 5
        before, after = before + padding(wanted), after + padding(step)
    assert after < 0.5 * before


def test_the_loss_and_all_weights_are_those_of_one_batch() -> None:
    """After three steps, in float64 to 1e-10: how a step is divided changes nothing."""

    def trained(**options: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
        model, source = batches(dtype=torch.float64, **options)
        loop = Loop(model, torch.optim.AdamW(model.parameters(), lr=1e-3), source, steps=3)
        losses = [loop.take_step().loss for _ in range(3)]
        return losses, {name: value.clone() for name, value in model.state_dict().items()}

    expected, weights = trained()
    found, others = trained(budget=Budget(positions=150))
    assert found == pytest.approx(expected, rel=1e-10)
    for name, value in weights.items():
        assert float((others[name] - value).abs().max()) < 1e-10, name


@pytest.mark.parametrize("options", [{"budget": Budget(positions=160)}, {"length_window": 2}, {"length_window": 99}])
def test_workers_and_resumption_change_nothing(options: Any) -> None:
    """From wherever it stopped, across the end of an epoch; with two workers and none."""
    _, whole = batches(**options)
    expected, states = [], []
    for _ in range(8):
        states.append(whole.state_dict())
        expected.append(next(whole))
    for start in range(8):
        _, resumed = batches(**options)
        resumed.load_state_dict(states[start])
        found = next(resumed)
        assert found.names == expected[start].names
        assert_equal(found, expected[start])
    _, parallel = batches(workers=2, **options)
    for wanted in expected:
        assert_equal(next(parallel), wanted)
    parallel.close()


def assert_equal(found: Any, expected: Any) -> None:
    assert len(found.micro_batches) == len(expected.micro_batches)
    for one, other in zip(found.micro_batches, expected.micro_batches, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_window_may_have_more_tensors_than_a_process_may_open_files() -> None:
    """A worker that has no descriptor left sends nothing and says nothing."""
    resource = pytest.importorskip("resource", reason="this system has no such limit")

    def give_up(*_: Any) -> None:
        raise TimeoutError("nothing came of the worker")

    former, limits = signal.signal(signal.SIGALRM, give_up), resource.getrlimit(resource.RLIMIT_NOFILE)
    signal.alarm(60)
    _, found = batches(Long(96), workers=1, length_window=12, budget=Budget(positions=100))
    lowest = os.open(os.devnull, os.O_RDONLY)  # descriptors are given from below
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 64, limits[1]))
        assert sum(len(next(found).micro_batches) for _ in range(12)) > 32
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        found.close()
        os.close(lowest)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


# --- steps of like length ---------------------------------------------------------------------------------------------


def test_a_window_has_the_same_samples_with_less_padding() -> None:
    """The steps of a window together are those of as many plain steps; every epoch has each sample once."""
    _, plain = batches(Long(48))
    _, found = batches(Long(48), length_window=3)
    before = after = 0
    for _ in range(2):
        for _ in range(2):
            wanted, steps = [next(plain) for _ in range(3)], [next(found) for _ in range(3)]
            assert sum(map(rows, steps), Counter()) == sum(map(rows, wanted), Counter())
            assert all(step.samples == 8 for step in steps)
            before, after = before + sum(map(padding, wanted)), after + sum(map(padding, steps))
    assert after < 0.5 * before


def test_lengths_do_not_fall_along_a_window() -> None:
    """The first step of a window is not always the longest, and another seed has another order."""
    _, found = batches(Long(64), length_window=8)
    longest = [max(micro["input_ids"].shape[1] for micro in next(found).micro_batches) for _ in range(16)]
    assert longest[:8] != sorted(longest[:8], reverse=True)
    assert longest[:8] != longest[8:]


def test_a_window_is_not_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was prepared of a sample is let go of when it is in a step."""
    prepared, alive = [], []
    tried, step = OneByOne.__call__, StepsByLength.step

    def counted(one_by_one: OneByOne, place: Any) -> Any:
        found = tried(one_by_one, place)
        prepared.append(weakref.ref(found.found.batch))
        return found

    def watched(steps: StepsByLength, found: Any) -> Any:
        alive.append(sum(batch() is not None for batch in prepared))
        return step(steps, found)

    monkeypatch.setattr(OneByOne, "__call__", counted)
    monkeypatch.setattr(StepsByLength, "step", watched)
    next(batches(Long(64), length_window=8)[1])
    assert alive == [64, 56, 48, 40, 32, 24, 16, 8]


# --- samples that cannot be used --------------------------------------------------------------------------------------


def test_above_the_budget_by_itself() -> None:
    """A bad sample like others: named with what it takes and what there is; left out, or the end of the run."""
    with pytest.raises(SampleError, match=r"takes \d+ positions, and a micro-batch may have 60 .*micro_batch_posit"):
        next(batches(budget=Budget(positions=60))[1])
    _, found = batches(budget=Budget(positions=60), bad_samples="skip")
    _, plain = batches()
    step, wanted = next(found), next(plain)
    bad = {entry.name for entry in step.bad}
    assert bad
    assert step.samples == 8 - len(bad)
    assert rows(step) == Counter({ids: count for ids, count in rows(wanted).items() if len(ids) <= 60})
    with pytest.raises(SampleError, match=r"takes 2 media, and a micro-batch may have 1 .*leave such samples out"):
        next(batches(budget=Budget(media=1))[1])


@pytest.mark.parametrize("options", [{"budget": Budget(positions=500)}, {"length_window": 2}])
@pytest.mark.parametrize("policy", ["skip", "replace", "stop"])
def test_bad_samples(policy: Any, options: Any) -> None:
    """As everywhere: skipped, replaced, or the end; the others are there."""

    class Broken(Long):
        def sample(self, index: int, chance: random.Random) -> Sample:
            if index == 5:
                raise ArgumentError("colour 5: is broken")
            return super().sample(index, chance)

    _, found = batches(Broken(16), bad_samples=policy, **options)
    if policy == "stop":
        with pytest.raises(ArgumentError, match="colour 5: is broken"):
            [next(found) for _ in range(2)]
        return
    steps = [next(found) for _ in range(2)]
    (bad,) = [entry for step in steps for entry in step.bad]
    assert bad.reason == "colour 5: is broken"
    assert bad.replaced_by == ("colour 6" if policy == "replace" else None)
    names = Counter(name for step in steps for name in step.names)
    wanted = Counter(f"colour {index}" for index in range(16) if index != 5)
    assert names == wanted + (Counter(["colour 6"]) if policy == "replace" else Counter())


def test_samples_without_a_label() -> None:
    """They are in no micro-batch, and named."""

    class Silent(Long):
        def sample(self, index: int, chance: random.Random) -> Sample:
            sample = super().sample(index, chance)
            return Sample(messages=sample.messages[:1], name=sample.name) if index % 2 else sample

    _, found = batches(Silent(8), budget=Budget(positions=500))
    step = next(found)
    assert step.samples == 4
    assert sorted(step.unlabelled) == [f"colour {index}" for index in (1, 3, 5, 7)]


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_keys_of_a_config() -> None:
    text = """
model: {encoders: {}, language_model: {config: {model_type: llama}, tokenizer: bytes}}
data: {train: {source: caption, path: a.parquet, streaming: true}}
training: {steps: 1, length_window: 4, micro_batch_positions: 0}
"""
    with pytest.raises(ArgumentError, match="micro_batch_positions: must be above 0, found 0"):
        parse_config(text)
    with pytest.raises(ArgumentError, match=r"length_window: .*steps of a stream cannot share out samples"):
        parse_config(text.replace("micro_batch_positions: 0", "micro_batch_positions: 9"))
