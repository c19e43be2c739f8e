"""The second demo in a shortened form: what it prints, and what it leaves. Its figures are not checked here; a full run
takes minutes."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cornstarch import DigitsAndTonesSource
from cornstarch.cli import demo_omni, demos
from cornstarch.data.digits_and_tones import QUESTIONS
from tests import pages

CONFIG = pages.ROOT / "examples" / "omni.yaml"
LAST_LINE = re.compile(
    r"test exact match: [01]\.\d{3}  image blanked: [01]\.\d{3}  sound blanked: [01]\.\d{3}  majority: 0\.246"
)
STEPS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run as `make demo-omni` starts it, of a few steps."""
    folder = tmp_path_factory.mktemp("demo") / "runs"
    changes = ["--run.folder", str(folder), "--training.steps", str(STEPS), "--training.batch_size", "8"]
    quick = ["--evaluation.samples", "8", "--data.workers", "0"]
    command = [sys.executable, "-m", "cornstarch.cli.demo_omni", str(CONFIG), "--run.overwrite", "true"]
    return folder, subprocess.run([*command, *changes, *quick], capture_output=True, text=True, check=True)


def test_last_line(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Exactly the promised form, the last on standard output; a line a question before it, no warnings of sounds."""
    _, done = finished
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    table = re.findall(r"^  (.+\?) +[01]\.\d{3} +([01]\.\d{3}|-) +([01]\.\d{3}|-) +0\.\d{3}$", done.stdout, re.M)
    assert [row[0] for row in table] == list(QUESTIONS.values())
    assert [row[1] == "-" for row in table] == [False, True, False, False]
    assert [row[2] == "-" for row in table] == [True, False, False, False]
    assert "sampling_rate" not in done.stderr


def test_files(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    for name in ("predictions.png", "loss.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert image.width > 900


def test_figures_are_of_the_questions_that_take_the_input() -> None:
    """By hand: of three kinds each, the mean; the majority in the mean over both threes."""
    shares = {"see": 0.3, "hear": 0.6, "sum": 0.0, "same": 0.9}
    outcome = demo_omni.Outcome(exact_match=shares, image_blanked=shares, sound_blanked=shares, majority=shares)
    expected = "test exact match: 0.450  image blanked: 0.400  sound blanked: 0.500  majority: 0.450"
    assert outcome.line == expected


def test_right_by_kind() -> None:
    """Wrong answers count where they were given."""
    source = DigitsAndTonesSource("test")
    examples = [source.example(index, random.Random()) for index in range(8)]
    found = [example.answer for example in examples]
    found[2] = "never"
    assert demo_omni.right_by_kind(examples, found) == {"see": 1.0, "hear": 1.0, "sum": 0.5, "same": 1.0}


def test_the_sheet_shows_all_kinds_and_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve of the wrong ones first, then right ones; each with its sound."""
    source = DigitsAndTonesSource("test")
    examples = [source.example(index, random.Random()) for index in range(len(source))]
    found = [example.answer if number % 10 else "wrong" for number, example in enumerate(examples)]
    shares = demo_omni.right_by_kind(examples, found)
    outcome = demo_omni.Outcome(exact_match=shares, image_blanked=shares, sound_blanked=shares, majority=shares)
    drawn: list[list[demo_omni.Panel]] = []
    monkeypatch.setattr(demo_omni.pictures, "draw_predictions", lambda path, panels, title: drawn.append(panels))
    demo_omni._draw(tmp_path / "sheet.png", outcome, examples, found)
    assert [panel.is_right for panel in drawn[0]] == [False] * 12 + [True] * 12
    right = drawn[0][12:]
    assert {panel.answers[0].question for panel in right} == set(QUESTIONS.values())
    assert all(panel.sound is not None for panel in right)
    assert len({panel.image.tobytes() for panel in right}) == len(right)


def test_a_sheet_is_half_wrong_at_most() -> None:
    numbers = list(range(100))
    assert demos.chosen(numbers, lambda number: number % 2 == 0) == [*range(1, 24, 2), *range(0, 24, 2)]
    assert demos.chosen(numbers[:3], lambda number: number != 1) == [1, 0, 2]
