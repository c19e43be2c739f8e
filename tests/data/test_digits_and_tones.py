"""The second embedded data set: splits, answers against a table, what blanking does, what one input gives away."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cornstarch import (
    ArgumentError,
    DigitsAndTonesSource,
    OmniExample,
    digit_questions,
    make_source,
    parse_config,
    synthesise_tone,
)
from cornstarch.data import digits, digits_and_tones
from tests import pages

QUESTIONS = digits_and_tones.QUESTIONS


def shown(source: DigitsAndTonesSource, seed: str = "") -> list[OmniExample]:
    return [source.example(index, random.Random(f"{seed} {index}")) for index in range(len(source))]


@pytest.fixture(scope="module")
def test_split() -> list[OmniExample]:
    return shown(DigitsAndTonesSource("test"))


def digit_of(example: OmniExample) -> int:
    return digits._load()[1][example.index]


# --- the split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", digits.SPLITS)
def test_images_are_those_of_the_digits(split: str) -> None:
    """Same rule, each with all kinds of questions."""
    examples = shown(DigitsAndTonesSource(split))
    assert [e.index for e in examples[:: len(QUESTIONS)]] == [e.index for e in digit_questions(split)[::3]]
    assert Counter((e.index, e.kind) for e in examples) == Counter({(e.index, k) for e in examples for k in QUESTIONS})
    assert [e.image for e in examples[:: len(QUESTIONS)]] == [e.image for e in digit_questions(split)[::3]]


def test_no_sound_is_heard_in_two_splits(test_split: list[OmniExample]) -> None:
    """Nor twice in one, over two epochs; tones are equal only if all about them is."""
    heard = [
        *test_split,
        *shown(DigitsAndTonesSource("validation")),
        *shown(DigitsAndTonesSource("train"), "first"),
        *shown(DigitsAndTonesSource("train"), "second"),
    ]
    assert len({example.tone for example in heard}) == len({example.tone.seed for example in heard}) == len(heard)


def test_only_training_varies(test_split: list[OmniExample]) -> None:
    """Test samples are the same whatever the chance; training is the same for the same chance, other for another."""
    assert shown(DigitsAndTonesSource("test"), "other") == test_split
    source = DigitsAndTonesSource("train", shift=1)
    first, again, other = (source.example(7, random.Random(seed)) for seed in (7, 7, 8))
    assert first == again
    assert first.tone != other.tone


def test_samples_repeat() -> None:
    source = DigitsAndTonesSource("train", shift=1, blank_image=0.3, blank_sound=0.3)
    first, again = (list(source.sample(3, random.Random(9)).media) for _ in range(2))
    assert first[0] == again[0]
    assert np.array_equal(first[1][1]["array"], again[1][1]["array"])


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("key", "0123456789")
def test_answers(digit: int, key: str) -> None:
    """Against counting."""
    heard = "0123456789".index(key)
    assert digits_and_tones.answer("see", digit, key) == "0123456789"[digit]
    assert digits_and_tones.answer("hear", digit, key) == key
    assert digits_and_tones.answer("sum", digit, key) == str(len([*range(digit), *range(heard)]))
    assert digits_and_tones.answer("same", digit, key) == ("yes" if [0] * digit == [0] * heard else "no")


def test_questions_are_about_what_is_there(test_split: list[OmniExample]) -> None:
    """Digit from scikit-learn's table, key from the tone; asked in the conversation, image first, then sound."""
    for index, example in enumerate(test_split[:40]):
        assert example.tone.key is not None
        assert example.answer == digits_and_tones.answer(example.kind, digit_of(example), example.tone.key)
        sample = DigitsAndTonesSource("test").sample(index, random.Random())
        (image, sound), text = sample.media, sample.messages[0]["content"][-1]["text"]
        assert image == ("image", example.image)
        assert sound[0] == "audio"
        assert sound[1]["sampling_rate"] == 16_000
        assert np.array_equal(sound[1]["array"], synthesise_tone(example.tone))
        assert (text, sample.answer) == (QUESTIONS[example.kind], example.answer)
        assert str(index) in sample.name


def test_takes_says_what_answers_depend_on() -> None:
    """An input that a question takes changes its answer, another does not."""
    for kind in QUESTIONS:
        of_image = {digits_and_tones.answer(kind, digit, "3") for digit in range(10)}
        of_sound = {digits_and_tones.answer(kind, 3, key) for key in "0123456789"}
        assert (len(of_image) > 1) == (kind in digits_and_tones.TAKES_IMAGE)
        assert (len(of_sound) > 1) == (kind in digits_and_tones.TAKES_SOUND)


@pytest.mark.parametrize("kind, rate", [("sum", 0.1), ("same", 0.5)])
def test_one_input_alone_gives_nothing_away(kind: str, rate: float) -> None:
    """Best guess, from the digit or the key alone, of a question that takes both: as good as one that knows neither."""
    place = tuple(QUESTIONS).index(kind)
    source = DigitsAndTonesSource("train")
    chance = random.Random(0)
    drawn = [source.example(index, chance) for _ in range(20) for index in range(place, len(source), len(QUESTIONS))]
    for known in (digit_of, lambda example: example.tone.key):
        answers: dict[Any, Counter[str]] = defaultdict(Counter)
        for example in drawn:
            answers[known(example)][example.answer] += 1
        best = sum(max(found.values()) for found in answers.values()) / len(drawn)
        assert best == pytest.approx(rate, abs=0.02)
    assert digits.majority_rate(drawn) == pytest.approx(rate, abs=0.01)


# --- blanking ---------------------------------------------------------------------------------------------------------


def test_blanked_image(test_split: list[OmniExample]) -> None:
    """All background; sound, question and answer are kept."""
    blank = shown(DigitsAndTonesSource("test", blank_image=1.0))
    assert all(example.image.getbbox() is None for example in blank)
    assert [replace(b, image=e.image) for b, e in zip(blank, test_split, strict=True)] == test_split


def test_blanked_sound(test_split: list[OmniExample]) -> None:
    """The noise without the tone; image, question and answer are kept."""
    blank = shown(DigitsAndTonesSource("test", blank_sound=1.0))
    for without, example in zip(blank, test_split, strict=True):
        assert without.tone == replace(example.tone, key=None)
        assert replace(without, tone=example.tone) == example
    tone = test_split[0].tone
    before, after = synthesise_tone(tone), synthesise_tone(replace(tone, key=None))
    start, end = (round(16_000 * time) for time in (tone.onset, tone.onset + tone.duration))
    assert np.array_equal(before[:start], after[:start])
    assert np.abs(after[start:end]).mean() < np.abs(before[start:end]).mean() / 2


def test_shares_and_shifts() -> None:
    """Each input by itself, and none of the answers changed."""
    varied = shown(DigitsAndTonesSource("train", shift=1, blank_image=0.1, blank_sound=0.2))
    plain = {example.index: example.image for example in shown(DigitsAndTonesSource("train"))}
    assert sum(e.image.getbbox() is None for e in varied) / len(varied) == pytest.approx(0.1, abs=0.02)
    assert sum(e.tone.key is None for e in varied) / len(varied) == pytest.approx(0.2, abs=0.02)
    assert sum(e.image == plain[e.index] for e in varied) < len(varied) / 4
    assert all(e.answer == str(digit_of(e)) for e in varied if e.kind == "see")


# --- as a source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "dev"},
        {"split": "test", "blank_image": 1.5},
        {"split": "test", "blank_sound": -0.1},
        {"split": "test", "shift": -1},
    ],
)
def test_sources_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        DigitsAndTonesSource(**wrong)


def test_from_a_config() -> None:
    """Keys reach the source; those that make no sense are refused with their line."""
    data = "data: {train: {source: digits_and_tones, split: train, shift: 2, blank_image: 1, blank_sound: %s}}"
    base = pages.BASE.replace("data: {train: {source: digits, split: train}}", data)
    made = make_source(parse_config(base % 0.5).data.train)
    assert isinstance(made, DigitsAndTonesSource)
    assert (made._split, made._shift, made._blank_image, made._blank_sound) == ("train", 2, 1.0, 0.5)
    with pytest.raises(ArgumentError, match=r"blank_sound: is a share from 0 to 1, found 2"):
        parse_config(base % 2)
