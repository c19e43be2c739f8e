"""1a. The embedded data set: questions in words about handwritten digits.

The images are scikit-learn's copy of the UCI handwritten digits (1,797 real images, 8 x 8, 13 writers), which comes
in its wheel, so nothing is downloaded. About every image three questions are asked.

The split is a fixed rule on the order of that copy: of every digit's images, counted from 0, those whose count ends
in 0 to 6 are for training, in 7 for validation, and in 8 or 9 for testing. Every digit is thus in every split in the
same proportion. Writers are not held apart: the data set does not say who wrote what.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cornstarch.data.samples import Sample
from cornstarch.errors import ArgumentError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = {
    "name": "Which digit is written here?",
    "even": "Is the digit even?",
    "larger": "Is the digit larger than five?",
}
_SPLIT_OF_LAST_FIGURE = ("train",) * 7 + ("validation",) + ("test",) * 2
SPLITS = tuple(dict.fromkeys(_SPLIT_OF_LAST_FIGURE))


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one image.

    Attributes:
        index: the image's place in scikit-learn's data set.
        image: the digit, white on black, 8 x 8 RGB.
        kind: a key of `QUESTIONS`.
        answer: the right answer in words.
    """

    index: int
    image: Image.Image
    kind: str
    answer: str

    @property
    def question(self) -> str:
        """The question in words."""
        return QUESTIONS[self.kind]


def digit_questions(split: str) -> list[Example]:
    """All questions about the images of one split; the three about an image follow each other.

    Args:
        split: `"train"`, `"validation"` or `"test"`.

    Returns:
        Three examples for every image, always in the same order.

    Raises:
        ArgumentError: for an unknown split.
        ImportError: if scikit-learn is not installed.
    """
    return [
        Example(index=index, image=image, kind=kind, answer=answer(kind, digit))
        for index, image, digit in images_of(split)
        for kind in QUESTIONS
    ]


def images_of(split: str) -> list[tuple[int, Image.Image, int]]:
    """The images of one split: each one's place in the data set, itself, and the digit that it shows.

    Args:
        split: `"train"`, `"validation"` or `"test"`.

    Returns:
        The images, in the order of the data set.

    Raises:
        ArgumentError: for an unknown split.
        ImportError: if scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise ArgumentError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    pixels, digits = _load()
    return [
        (index, _as_image(pixels[index]), digits[index])
        for index, owner in enumerate(split_of_each(digits))
        if owner == split
    ]


def split_of_each(digits: Sequence[int]) -> list[str]:
    """The split of every image by the rule above, from the digits that the images show, in order."""
    seen: Counter[int] = Counter()
    splits = []
    for digit in digits:
        splits.append(_SPLIT_OF_LAST_FIGURE[seen[digit] % 10])
        seen[digit] += 1
    return splits


def answer(kind: str, digit: int) -> str:
    """The right answer to a kind of question about a digit."""
    if kind == "name":
        return WORDS[digit]
    holds = digit % 2 == 0 if kind == "even" else digit > 5
    return "yes" if holds else "no"


class Asked(Protocol):
    """A question of some kind with its right answer."""

    @property
    def kind(self) -> str:
        """What kind of question it is."""

    @property
    def answer(self) -> str:
        """The right answer."""


def majority_rate(examples: Sequence[Asked]) -> float:
    """How many examples are right if each kind of question always gets its most frequent answer among them."""
    by_kind: dict[str, Counter[str]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, Counter())[example.answer] += 1
    return sum(max(answers.values()) for answers in by_kind.values()) / len(examples)


# --- changed images ---------------------------------------------------------------------------------------------------


def blanked(image: Image.Image) -> Image.Image:
    """An image of the same size and mode that is all background."""
    return Image.new(image.mode, image.size)


def shifted(image: Image.Image, right: int, down: int) -> Image.Image:
    """The image moved by whole pixels, background coming in at the edges."""
    moved = blanked(image)
    moved.paste(image, (right, down))
    return moved


def varied(image: Image.Image, shift: int, blank: float, chance: random.Random) -> Image.Image:
    """The image blanked with a probability, otherwise moved by up to so many pixels in either direction."""
    if chance.random() < blank:
        return blanked(image)
    if shift:
        right, down = (chance.randint(-shift, shift) for _ in range(2))
        return shifted(image, right, down)
    return image


# --- as a source ------------------------------------------------------------------------------------------------------


class DigitsSource:
    """The questions about the images of one split as samples.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        shift: images are moved by up to so many pixels in either direction, differently every epoch.
        blank: share of the images that are blanked, others every epoch, with the right answer kept. What a model then
            learns to say about a blank image is what is most often right.

    Raises:
        ArgumentError: for an unknown split or a share outside 0 to 1.
        ImportError: if scikit-learn is not installed.
    """

    def __init__(self, split: str, shift: int = 0, blank: float = 0.0) -> None:
        if not 0 <= blank <= 1 or shift < 0:
            raise ArgumentError(f"blank is a share from 0 to 1 and shift a number of pixels, found {blank} and {shift}")
        self.examples = digit_questions(split)
        self._split, self._shift, self._blank = split, shift, blank

    def __len__(self) -> int:
        return len(self.examples)

    def sample(self, index: int, chance: random.Random) -> Sample:
        """One question, its image moved or blanked by chance.

        Args:
            index: from 0.
            chance: decides what happens to the image.

        Returns:
            The sample.
        """
        example = self.examples[index]
        image = varied(example.image, self._shift, self._blank, chance)
        return as_sample(replace(example, image=image), f"digits, {self._split}, question {index}")


def as_sample(example: Example, name: str) -> Sample:
    """A question and its answer as a conversation."""
    asked = [{"type": "image", "image": example.image}, {"type": "text", "text": example.question}]
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": example.answer})
    return Sample(messages=messages, name=name)


# --- scikit-learn's data set ------------------------------------------------------------------------------------------


@cache
def _load() -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """Pixels (1797, 8, 8) from 0 to 16, and the digits they show."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the handwritten digits come with scikit-learn, which is not installed: pip install 'cornstarch[train]'"
        ) from error
    pixels, digits = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8), tuple(int(digit) for digit in digits)


def _as_image(pixels: np.ndarray[Any, Any]) -> Image.Image:
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
