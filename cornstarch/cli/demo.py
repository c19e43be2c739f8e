"""The demo: `cornstarch train examples/digits.yaml`, then the test questions, asked with and without their images.

`make demo` takes about two minutes on two CPU cores. Beside what every run leaves in its folder there is
`predictions.png`, a sheet of test images with question, answer and verdict; and the last line is

    test exact match: 0.xxx  blanked: 0.xxx  majority: 0.xxx

which are the shares of the test questions answered in exactly the right words, the same with every image replaced by
background, and what always giving the most frequent answer would reach. Without the image there is nothing to know, so
the second figure should be no more than the third: the first then comes from seeing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cornstarch.cli import demos
from cornstarch.cli.main import guarded
from cornstarch.data import Collator, DigitsSource, Example, digits, first_samples
from cornstarch.training import building, pictures
from cornstarch.training.evaluation import exact_match
from cornstarch.training.pictures import Answered, Panel


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the test questions came to.

    Attributes:
        exact_match: share of them answered exactly.
        blanked: the same with blank images.
        majority: the rate of the most frequent answer per kind of question.
    """

    exact_match: float
    blanked: float
    majority: float

    @property
    def line(self) -> str:
        """The figures as they are printed."""
        return f"test exact match: {self.exact_match:.3f}  blanked: {self.blanked:.3f}  majority: {self.majority:.3f}"


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
    test = DigitsSource("test")
    found = demos.answers(model, collator, test)
    for kind, question in digits.QUESTIONS.items():
        pairs = [(e, text) for e, text in zip(test.examples, found, strict=True) if e.kind == kind]
        print(f"  {question:<32} {sum(text == e.answer for e, text in pairs) / len(pairs):.3f}")
    outcome = Outcome(
        exact_match=exact_match(first_samples(test), found),
        blanked=exact_match(first_samples(test), demos.answers(model, collator, DigitsSource("test", blank=1.0))),
        majority=digits.majority_rate(test.examples),
    )
    _draw(folder / "predictions.png", outcome, test.examples, found)
    print(f"wrote {folder / 'predictions.png'} and {folder / 'loss.png'}")
    return outcome


def _draw(path: Path, outcome: Outcome, test: Sequence[Example], found: Sequence[str]) -> None:
    panels = _panels(test, found)
    shown = demos.chosen(panels, lambda panel: panel.is_right)
    wrong, first = (sum(not panel.is_right for panel in some) for some in (panels, shown))
    title = (
        f"{outcome.exact_match:.1%} of {len(test):,} test answers right.  {wrong} of {len(panels)} images have a "
        f"wrong one; {first} of them come first."
    )
    pictures.draw_predictions(path, shown, title)


def _panels(examples: Sequence[Example], found: Sequence[str]) -> list[Panel]:
    """One panel an image, with all that was asked about it."""
    panels: dict[int, Panel] = {}
    for example, text in zip(examples, found, strict=True):
        answered = Answered(question=example.question, found=text, expected=example.answer)
        before = panels[example.index].answers if example.index in panels else ()
        panels[example.index] = Panel(image=example.image, answers=(*before, answered))
    return list(panels.values())


if __name__ == "__main__":
    sys.exit(guarded("demo", sys.argv[1:]))
