"""The embedded data set: its split, its questions, its samples."""

import random
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cornstarch.data import digits
from cornstarch.data.digits import DigitsSource, Example, digit_questions
from cornstarch.errors import ArgumentError

ALL = [example for split in digits.SPLITS for example in digit_questions(split)]


def of_image(index: int) -> list[Example]:
    return [example for example in ALL if example.index == index]


# --- the split --------------------------------------------------------------------------------------------------------


def test_every_image_is_in_one_split_with_all_questions() -> None:
    asked = Counter((example.index, example.kind) for example in ALL)
    assert set(asked.values()) == {1}
    assert set(asked) == {(index, kind) for index in range(1797) for kind in digits.QUESTIONS}


def test_splits_share_no_image() -> None:
    """By index, and no two splits hold more than chance repeats of the same pixels."""
    indices = {split: {example.index for example in digit_questions(split)} for split in digits.SPLITS}
    assert sum(len(of_split) for of_split in indices.values()) == 1797
    seen = {split: {e.image.tobytes() for e in digit_questions(split)} for split in digits.SPLITS}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]


def test_sizes_and_proportions_of_digits() -> None:
    """Seven, one and two in ten of every digit's images."""
    counts = {split: Counter(e.answer for e in digit_questions(split) if e.kind == "name") for split in digits.SPLITS}
    assert [sum(count.values()) for count in counts.values()] == [1266, 178, 353]
    for word in digits.WORDS:
        of_word = [counts[split][word] for split in digits.SPLITS]
        assert np.allclose(np.array(of_word) / sum(of_word), [0.7, 0.1, 0.2], atol=0.02)


def test_split_is_the_documented_rule() -> None:
    """Counted per digit, whatever stands between."""
    shown = [3] * 10 + [5] * 9 + [3] + [5] * 2
    expected = ["train"] * 7 + ["validation"] + ["test"] * 2
    assert digits.split_of_each(shown) == expected + expected[:9] + ["train"] + [expected[9], "train"]


def test_split_is_fixed() -> None:
    """The first test images of the data set as it is known today, and the same at every call."""
    first = list(dict.fromkeys(example.index for example in digit_questions("test")))[:5]
    assert first == sorted(first)
    assert [example.index for example in digit_questions("test")] == [e.index for e in digit_questions("test")]
    assert len(digit_questions("test")) == 3 * 353


def test_unknown_split() -> None:
    with pytest.raises(ArgumentError, match=r"'dev'.*train, validation, test"):
        digit_questions("dev")


def test_missing_scikit_learn_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.datasets'] = None\n"
        "from cornstarch.data import digit_questions\n"
        "try: digit_questions('test')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "scikit-learn" in done.stdout
    assert "cornstarch[train]" in done.stdout


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digit", range(10))
def test_answers(digit: int) -> None:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert digits.answer("name", digit) == words[digit]
    assert digits.answer("even", digit) == ("yes" if digit in {0, 2, 4, 6, 8} else "no")
    assert digits.answer("larger", digit) == ("yes" if digit in {6, 7, 8, 9} else "no")


def test_questions_are_about_what_the_image_shows() -> None:
    """The first image is scikit-learn's first, a zero, with its pixels from 0 to 16 as 0 to 255."""
    from sklearn.datasets import load_digits

    name, even, larger = of_image(0)
    assert (name.question, name.answer) == ("Which digit is written here?", "zero")
    assert (even.question, even.answer) == ("Is the digit even?", "yes")
    assert (larger.question, larger.answer) == ("Is the digit larger than five?", "no")
    pixels = np.asarray(name.image)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels[..., 0] / 255 * 16 - load_digits().images[0]).max() < 0.05


def test_majority_rate() -> None:
    """By hand: 'one' in two of three names, 'no' in one of one."""
    image = ALL[0].image
    pairs = [("name", "one"), ("name", "one"), ("name", "two"), ("even", "no")]
    examples = [Example(index=0, image=image, kind=kind, answer=answer) for kind, answer in pairs]
    assert digits.majority_rate(examples) == 3 / 4
    assert 0.39 < digits.majority_rate(digit_questions("test")) < 0.42


# --- changed images ---------------------------------------------------------------------------------------------------


def test_blanked() -> None:
    """All background, of the same size and mode, the original untouched."""
    image = ALL[0].image
    before = np.asarray(image).copy()
    blank = digits.blanked(image)
    assert not np.asarray(blank).any()
    assert (blank.size, blank.mode) == (image.size, image.mode)
    assert np.array_equal(np.asarray(image), before)


def test_shifted() -> None:
    """Right and down are positive, and nothing comes in at the other edge."""
    before = np.asarray(ALL[0].image)
    moved = np.asarray(digits.shifted(ALL[0].image, 1, -2))
    assert np.array_equal(moved[:-2, 1:], before[2:, :-1])
    assert not moved[-2:].any()
    assert not moved[:, :1].any()
    assert np.array_equal(np.asarray(digits.shifted(ALL[0].image, 0, 0)), before)


# --- as a source ------------------------------------------------------------------------------------------------------


def test_samples_are_the_questions() -> None:
    """One conversation a question, in the same order, its image the question's."""
    source = DigitsSource("test")
    assert len(source) == 3 * 353
    for index, example in enumerate(digit_questions("test")[:6]):
        sample = source.sample(index, random.Random(0))
        assert list(sample.media) == [("image", example.image)]
        assert (sample.messages[0]["content"][1]["text"], sample.answer) == (example.question, example.answer)
        assert str(index) in sample.name


def test_images_are_blanked_and_moved_by_chance() -> None:
    """About a tenth blank, none of the answers changed; the same for the same chance, another for another."""
    source, examples = DigitsSource("train", shift=1, blank=0.1), digit_questions("train")
    first = [source.sample(index, random.Random(index)) for index in range(len(source))]
    images = [next(iter(sample.media))[1] for sample in first]
    assert 0.08 < sum(not image.getbbox() for image in images) / len(images) < 0.12
    assert [sample.answer for sample in first] == [example.answer for example in examples]
    assert sum(image == example.image for image, example in zip(images, examples, strict=True)) < len(images) / 4
    again, other = source.sample(7, random.Random(7)), source.sample(7, random.Random(8))
    assert next(iter(again.media))[1] == images[7] != next(iter(other.media))[1]


@pytest.mark.parametrize("wrong", [{"split": "dev"}, {"split": "test", "blank": 1.5}, {"split": "test", "shift": -1}])
def test_sources_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        DigitsSource(**wrong)
