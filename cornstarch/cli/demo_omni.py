"""The second demo: `cornstarch train examples/omni.yaml`, then test questions about an image and a sound at once.

`make demo-omni` takes about five minutes on two CPU cores. Beside what every run leaves in its folder there is
`predictions.png`, a sheet of test samples: image, spectrogram, question, answer and verdict; a table with a line for
each kind of question is printed; and the last line is

    test exact match: 0.xxx  image blanked: 0.xxx  sound blanked: 0.xxx  majority: 0.xxx

The first is the share of all test questions answered in exactly the right words. The second is that share of the
questions that take the image, when every image is replaced by background; the third that of the questions that take the
sound, when every tone is taken out of its noise. Questions that take both are in both.

The last is what always giving a kind of question its most frequent answer would reach on the questions of the second
figure and of the third, in the mean. No model can be expected to do better without an input that the question takes,
even though it still has the other: the source draws keys so that neither says anything about such an answer (see
`cornstarch.data.digits_and_tones`). So the first figure comes from seeing and hearing if the second and third are no
more than the last, but for chance.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cornstarch.cli import demos
from cornstarch.cli.main import guarded
from cornstarch.data import Collator, DigitsAndTonesSource, OmniExample, digits, synthesise_tone
from cornstarch.data.digits_and_tones import QUESTIONS, TAKES_IMAGE, TAKES_SOUND
from cornstarch.data.tones import SAMPLING_RATE
from cornstarch.training import building, pictures
from cornstarch.training.pictures import Answered, Panel
from cornstarch.training.spectrograms import spectrogram

_STRIDE = 397  # has no factor in common with the number of test questions


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the test questions came to, as shares of each kind of question.

    Attributes:
        exact_match: answered exactly.
        image_blanked: the same with blank images.
        sound_blanked: the same with noise alone.
        majority: share that has the kind's most frequent answer.
    """

    exact_match: Mapping[str, float]
    image_blanked: Mapping[str, float]
    sound_blanked: Mapping[str, float]
    majority: Mapping[str, float]

    @property
    def table(self) -> str:
        """A line for each kind of question; a figure is left out where its input is not taken."""
        lines = [f"  {'':<42} right  image blanked  sound blanked  majority"]
        for kind, question in QUESTIONS.items():
            image = f"{self.image_blanked[kind]:.3f}" if kind in TAKES_IMAGE else "-"
            sound = f"{self.sound_blanked[kind]:.3f}" if kind in TAKES_SOUND else "-"
            lines.append(
                f"  {question:<42} {self.exact_match[kind]:.3f}  {image:>13}  {sound:>13}  {self.majority[kind]:>8.3f}"
            )
        return "\n".join(lines)

    @property
    def line(self) -> str:
        """The figures over all kinds, of which there are equally many questions."""
        return (
            f"test exact match: {_mean(self.exact_match, tuple(QUESTIONS)):.3f}  "
            f"image blanked: {_mean(self.image_blanked, TAKES_IMAGE):.3f}  "
            f"sound blanked: {_mean(self.sound_blanked, TAKES_SOUND):.3f}  "
            f"majority: {_mean(self.majority, TAKES_IMAGE + TAKES_SOUND):.3f}"
        )


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: the config, and keys of it to change.

    Returns:
        The exit code.
    """
    return demos.run(words, lambda folder: ask(folder).line)


def ask(folder: Path) -> Outcome:
    """Ask the model that a run left, loaded from its folder, the test questions, and draw the sheet.

    Args:
        folder: of the run.

    Returns:
        The figures.
    """
    model, processor = building.load_run(folder)
    collator = Collator(processor)
    asked = {
        "exact_match": DigitsAndTonesSource("test"),
        "image_blanked": DigitsAndTonesSource("test", blank_image=1.0),
        "sound_blanked": DigitsAndTonesSource("test", blank_sound=1.0),
    }
    examples = [asked["exact_match"].example(index, random.Random()) for index in range(len(asked["exact_match"]))]
    found = {name: demos.answers(model, collator, source) for name, source in asked.items()}
    outcome = Outcome(
        **{name: right_by_kind(examples, texts) for name, texts in found.items()},
        majority={
            kind: digits.majority_rate([example for example in examples if example.kind == kind]) for kind in QUESTIONS
        },
    )
    _draw(folder / "predictions.png", outcome, examples, found["exact_match"])
    print(outcome.table)
    print(f"wrote {folder / 'predictions.png'} and {folder / 'loss.png'}")
    return outcome


def right_by_kind(examples: Sequence[OmniExample], found: Sequence[str]) -> dict[str, float]:
    """Which share of each kind of question is answered exactly."""
    shares = {}
    for kind in QUESTIONS:
        verdicts = [text == one.answer for one, text in zip(examples, found, strict=True) if one.kind == kind]
        shares[kind] = sum(verdicts) / len(verdicts)
    return shares


def _mean(shares: Mapping[str, float], kinds: Sequence[str]) -> float:
    return sum(shares[kind] for kind in kinds) / len(kinds)


def _draw(path: Path, outcome: Outcome, examples: Sequence[OmniExample], found: Sequence[str]) -> None:
    answered = list(zip(examples, found, strict=True))
    # Far from each other, and the kinds of question in turn.
    spread = [answered[place * _STRIDE % len(answered)] for place in range(len(answered))]
    shown = [_panel(*pair) for pair in demos.chosen(spread, lambda pair: pair[0].answer == pair[1])]
    wrong = sum(example.answer != text for example, text in answered)
    first = sum(not panel.is_right for panel in shown)
    title = (
        f"{_mean(outcome.exact_match, tuple(QUESTIONS)):.1%} of {len(answered):,} test answers right.  "
        f"{wrong} are wrong; {first} of them come first.  Each question comes with an image and a sound."
    )
    pictures.draw_predictions(path, shown, title)


def _panel(example: OmniExample, found: str) -> Panel:
    answered = Answered(question=example.question, found=found, expected=example.answer)
    heard = spectrogram(synthesise_tone(example.tone), SAMPLING_RATE, lowest=600, highest=1600)
    return Panel(image=example.image, answers=[answered], sound=heard)


if __name__ == "__main__":
    sys.exit(guarded("demo_omni", sys.argv[1:]))
