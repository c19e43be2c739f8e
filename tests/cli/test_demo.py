"""The demo in a shortened form: what it prints, what it leaves, and that it does so twice. Its figures are not checked
here; a full run takes two minutes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cornstarch.cli import demo
from cornstarch.data import digits
from cornstarch.models.multimodal_language_model import MultimodalModel, MultimodalProcessor

LAST_LINE = re.compile(r"test exact match: [01]\.\d{3}  blanked: [01]\.\d{3}  majority: 0\.403")
STEPS = 25


def own_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run as a person starts it, into a folder that has a file of somebody else's."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "runs"
    (folder / "model").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "model" / "notes.txt").write_text("mine too")
    command = [sys.executable, "-m", "cornstarch.cli.demo", "--output", str(folder), "--steps", str(STEPS)]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


def test_last_line(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Exactly the promised form, the last on standard output, and plain lines before it."""
    _, done = finished
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert "\r" not in done.stdout
    assert f"step {STEPS}/{STEPS}  loss " in done.stdout


def test_files(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Pictures and a model; other people's files are as they were; nothing half-written is left."""
    folder, _ = finished
    files = own_files(folder)
    assert {"predictions.png", "loss.png", "notes.txt", "model/config.json", "model/notes.txt"} <= files
    hidden = {name for name in files if "/." in name or name.startswith(".")}
    assert hidden == {"model/.model-files.json", "model/.processor-files.json"}
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "model" / "notes.txt").read_text() == "mine too"
    for name in ("predictions.png", "loss.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert image.width > 900


def test_saved_model_answers(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Model and processor load without the demo's help, generate answers and give a finite loss."""
    folder, _ = finished
    model = MultimodalModel.from_pretrained(folder / "model")
    processor = MultimodalProcessor.from_pretrained(folder / "model", model)
    examples = digits.digit_questions("test")[:6]
    answers = demo.answer(model, processor, examples)
    assert len(answers) == 6
    assert all(isinstance(text, str) for text in answers)
    batch = digits.training_batch(processor, examples)
    assert torch.isfinite(model(**batch).loss)


def test_twice_the_same(finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Bit-equal losses and figures for one seed; the finished output of a former run is replaced."""
    folder, _ = finished
    former = own_files(folder)
    first, second = demo.run(folder, steps=3), demo.run(tmp_path, steps=3)
    assert first.losses == second.losses
    assert first.validation == second.validation
    assert (first.exact_match, first.blanked, first.majority) == (second.exact_match, second.blanked, second.majority)
    assert own_files(folder) == former
    for name in ("predictions.png", "loss.png", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
    other = demo.run(tmp_path, steps=3, seed=1)
    assert other.losses != first.losses


def test_training_images_are_blanked_and_moved_by_the_seed() -> None:
    """About a tenth blank, none of the answers changed, the same order for the same seed."""
    examples = digits.digit_questions("train")
    batches = demo._varied(examples, 0)
    seen = [example for _ in range(59) for example in next(batches)]
    blank = sum(not example.image.getbbox() for example in seen) / len(seen)
    assert 0.08 < blank < 0.12
    right = {(example.index, example.kind): example.answer for example in examples}
    assert all(right[example.index, example.kind] == example.answer for example in seen)
    assert len({(example.index, example.kind) for example in seen}) == len(seen)  # once an epoch
    again = next(demo._varied(examples, 0))
    assert [(e.index, e.kind, e.image.tobytes()) for e in again] == [
        (e.index, e.kind, e.image.tobytes()) for e in seen[: len(again)]
    ]


def test_answers_do_not_depend_on_their_batch() -> None:
    """Left padding: questions of three lengths asked together and one by one."""
    model, processor = demo.build(0)
    examples = digits.digit_questions("test")[:6]
    together = demo.answer(model, processor, examples)
    assert together == [demo.answer(model, processor, [example])[0] for example in examples]


def test_exact_match_is_exact() -> None:
    examples = digits.digit_questions("test")[:3]
    right = [example.answer for example in examples]
    assert demo.exact_match(examples, right) == 1
    assert demo.exact_match(examples, [right[0] + " ", right[1].upper(), right[2]]) == pytest.approx(1 / 3)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_output_that_is_a_file_fails_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert demo.main(["--output", str(tmp_path / "file")]) == 1
    assert "error: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--steps", "many"], ["--threads", "-1"], ["--device", "toaster"], ["--sed", "1"]]
)
def test_arguments_that_cannot_be_used(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
