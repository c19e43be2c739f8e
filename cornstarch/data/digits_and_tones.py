"""1a. The second embedded data set: questions about a handwritten digit and a telephone key that is heard with it.

Every sample has an image and a sound, and its question says which of the two it takes, or both; numbers are answered in
figures. The images and their split are those of `digits`. The sounds are synthesised (`tones`): of training by the
chance that a source is given, others every epoch; of validation and testing by a seed of their own, so that they are
always the same, and no sound is ever in two splits.

Of the keys, the ten figures are heard: what is the sum of a digit and `*`? They are drawn independently of the digit,
each as often as the others; but for the question whether both are the same, of which half are. So, where a question
takes both, one alone says nothing about its answer: every sum is as likely as any other that the one allows, and
"yes" is as likely as "no". "Which is larger?" is not asked, since whoever sees a nine knows without listening.
"""

import random
from dataclasses import dataclass, replace

from PIL import Image

from cornstarch.data import digits
from cornstarch.data.samples import Sample
from cornstarch.data.tones import SAMPLING_RATE, Tone, draw_tone, synthesise_tone
from cornstarch.errors import ArgumentError

QUESTIONS = {
    "see": "Which digit do you see?",
    "hear": "Which key do you hear?",
    "sum": "What is the sum of what you see and hear?",
    "same": "Are they the same?",
}
# What a question cannot be answered without.
TAKES_IMAGE = ("see", "sum", "same")
TAKES_SOUND = ("hear", "sum", "same")


@dataclass(frozen=True, kw_only=True)
class OmniExample:
    """One question about one image and one sound.

    Attributes:
        index: the image's place in scikit-learn's data set.
        image: the digit, white on black, 8 x 8 RGB.
        tone: the key and how it sounds.
        kind: a key of `QUESTIONS`.
        answer: the right answer: a number in figures, or yes or no.
    """

    index: int
    image: Image.Image
    tone: Tone
    kind: str
    answer: str

    @property
    def question(self) -> str:
        """The question in words."""
        return QUESTIONS[self.kind]


def answer(kind: str, digit: int, key: str) -> str:
    """The right answer to a kind of question about a digit and a key from `0` to `9`."""
    if kind == "see":
        return str(digit)
    if kind == "hear":
        return key
    if kind == "sum":
        return str(digit + int(key))
    return "yes" if digit == int(key) else "no"


class DigitsAndTonesSource:
    """The questions about the images of one split, each with a sound of its own, as samples.

    Args:
        split: `"train"`, `"validation"` or `"test"`. Of the last two, image, key and sound are always the same; in
            training, key and sound are others every epoch.
        shift: images are moved by up to so many pixels in either direction, differently every epoch.
        blank_image: share of the images that are blanked, others every epoch, with the right answer kept. What a model
            then learns to say about a blank image is what is most often right.
        blank_sound: share of the sounds that are noise without the tone, likewise.

    Raises:
        ArgumentError: for an unknown split or a share outside 0 to 1.
        ImportError: if scikit-learn is not installed.
    """

    def __init__(self, split: str, shift: int = 0, blank_image: float = 0.0, blank_sound: float = 0.0) -> None:
        if not (0 <= blank_image <= 1 and 0 <= blank_sound <= 1) or shift < 0:
            raise ArgumentError(
                "blank_image and blank_sound are shares from 0 to 1 and shift a number of pixels, found "
                f"{blank_image}, {blank_sound} and {shift}"
            )
        self._images = digits.images_of(split)
        self._split, self._shift = split, shift
        self._blank_image, self._blank_sound = blank_image, blank_sound

    def __len__(self) -> int:
        return len(self._images) * len(QUESTIONS)

    def example(self, index: int, chance: random.Random) -> OmniExample:
        """One question, its image and sound as they are shown.

        Args:
            index: from 0; the questions about an image follow each other.
            chance: decides what happens to image and sound; in training, also which key is heard, and how.

        Returns:
            The question.
        """
        number, place = divmod(index, len(QUESTIONS))
        origin, image, digit = self._images[number]
        kind = tuple(QUESTIONS)[place]
        pressed = chance if self._split == "train" else random.Random(f"digits and tones {self._split} {index}")
        key = _draw_key(kind, digit, pressed)
        tone = draw_tone(key, pressed)
        image = digits.varied(image, self._shift, self._blank_image, chance)
        if chance.random() < self._blank_sound:
            tone = replace(tone, key=None)
        return OmniExample(index=origin, image=image, tone=tone, kind=kind, answer=answer(kind, digit, key))

    def sample(self, index: int, chance: random.Random) -> Sample:
        """The same as a sample: an image, a sound, and a question about either or both.

        Args:
            index: from 0.
            chance: as of `example`.

        Returns:
            The sample.
        """
        return as_sample(self.example(index, chance), f"digits and tones, {self._split}, question {index}")


def as_sample(example: OmniExample, name: str) -> Sample:
    """A question and its answer as a conversation."""
    asked = [
        {"type": "image", "image": example.image},
        {"type": "audio", "audio": {"array": synthesise_tone(example.tone), "sampling_rate": SAMPLING_RATE}},
        {"type": "text", "text": example.question},
    ]
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": example.answer})
    return Sample(messages=messages, name=name)


def _draw_key(kind: str, digit: int, chance: random.Random) -> str:
    """The key that is heard; where a question is whether it is the digit's, it is that in half of all cases."""
    if kind == "same":
        away = 0 if chance.random() < 0.5 else chance.randint(1, 9)
        return str((digit + away) % 10)
    return str(chance.randint(0, 9))
