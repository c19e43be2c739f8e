"""The demo in a shortened form: what it prints, and what it leaves. Its figures are not checked here; a full run takes
two minutes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cornstarch.cli import demo
from cornstarch.data import digit_questions

CONFIG = Path(__file__).parent.parent.parent / "examples" / "digits.yaml"
LAST_LINE = re.compile(r"test exact match: [01]\.\d{3}  blanked: [01]\.\d{3}  majority: 0\.403")
STEPS = 25


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run as a person starts it, into a folder that has a file of somebody else's."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "runs"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    changes = ["--run.folder", str(folder), "--training.steps", str(STEPS), "--evaluation.samples", "30"]
    command = [sys.executable, "-m", "cornstarch.cli.demo", str(CONFIG), "--run.overwrite", "true", *changes]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


def test_last_line(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Exactly the promised form, the last on standard output, and plain lines before it."""
    _, done = finished
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert "\r" not in done.stdout
    assert f"step {STEPS}/{STEPS}  loss " in done.stdout


def test_files(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Pictures and a model; other people's files are as they were."""
    folder, _ = finished
    assert (folder / "notes.txt").read_text() == "mine"
    for name in ("predictions.png", "loss.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert image.width > 900


def test_the_sheet_has_one_panel_an_image() -> None:
    """Three questions each, a panel right only if all three are."""
    examples = digit_questions("test")[:6]
    panels = demo._panels(examples, [examples[0].answer, "no", *(example.answer for example in examples[2:])])
    assert [len(panel.answers) for panel in panels] == [3, 3]
    assert [panel.is_right for panel in panels] == [examples[1].answer == "no", True]


def test_mistakes_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No traceback: what is wrong, and an exit code of 1."""
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "cornstarch.cli.demo", str(CONFIG), "--run.folder", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: run.folder: ")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
