"""The pictures are PNG files that can be read, of sensible size, and show what they should."""

import builtins
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cornstarch.training import pictures
from cornstarch.training.pictures import Answered, Panel
from cornstarch.training.spectrograms import spectrogram


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 600 < image.width < 4000
        assert 200 < image.height < 4000
        return np.asarray(image.convert("RGB")).astype(int)


def reddish(picture: np.ndarray) -> int:
    """How many pixels have the red of a wrong answer."""
    return int((np.abs(picture - [0xC5, 0x1B, 0x29]).max(-1) < 12).sum())


def panel(found: str = "one", expected: str = "one", questions: int = 3) -> Panel:
    image = Image.fromarray(np.full((8, 8), 77, dtype=np.uint8))
    answered = Answered(question="Is the digit larger than five?", found=found, expected=expected)
    return Panel(image=image, answers=[answered] * questions)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_losses(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "loss.png"
    pictures.draw_losses(path, [(step + 1, 1 / (step + 1)) for step in range(steps)], [(steps, 0.5)])
    assert len(np.unique(pixels(path).reshape(-1, 3), axis=0)) > 3
    assert os.listdir(tmp_path) == ["loss.png"]


def test_losses_without_validation(tmp_path: Path) -> None:
    pictures.draw_losses(tmp_path / "loss.png", [(1, 3.0), (5, 2.0), (6, 1.0)], [])
    pixels(tmp_path / "loss.png")


# --- predictions ------------------------------------------------------------------------------------------------------


def test_wrong_answers_are_marked(tmp_path: Path) -> None:
    """Red is there exactly where a panel has a wrong answer; the image is seen in both."""
    path = tmp_path / "sheet.png"
    pictures.draw_predictions(path, [panel(), panel(found="two")], "title")
    picture = pixels(path)
    left, right = picture[:, : picture.shape[1] // 4], picture[:, picture.shape[1] // 4 : picture.shape[1] // 2]
    assert reddish(left) == 0
    assert reddish(right) > 200
    grey = [(half == 77).all(-1).sum() for half in (left, right)]
    assert grey[0] == pytest.approx(grey[1], rel=0.05)
    assert grey[0] > 5000


@pytest.mark.parametrize("count", [1, 4, 5, 24])
def test_any_number_of_panels(tmp_path: Path, count: int) -> None:
    """Rows of four; the sheet is as high as it must be."""
    path = tmp_path / "sheet.png"
    pictures.draw_predictions(path, [panel()] * count, "title")
    picture = pixels(path)
    inches = -(-count // 4) * pictures._PANEL_HEIGHT + pictures._HEADER + pictures._MARGIN
    assert picture.shape[0] == pytest.approx(inches * pictures._DPI, abs=1)


@pytest.mark.filterwarnings("error")
def test_a_sound_is_drawn_within_its_panel(tmp_path: Path) -> None:
    """Beside the image, in a taller panel; what is loud is bright."""
    path = tmp_path / "sheet.png"
    times = np.arange(16_000) / 16_000
    sound = spectrogram(np.sin(2 * np.pi * 1000 * times) * (times > 0.5), 16_000, 600, 1600)
    heard = replace(panel(found="WWWWWWWWWWWWWW", questions=1), sound=sound)
    pictures.draw_predictions(path, [heard], "")
    picture = pixels(path)
    inches = pictures._HEARD_HEIGHT + pictures._HEADER + pictures._MARGIN
    assert picture.shape[0] == pytest.approx(inches * pictures._DPI, abs=1)
    edge = round((pictures._MARGIN + pictures._PANEL_WIDTH) * pictures._DPI)
    assert (picture[:, edge + 3 :] == 255).all()
    # The sound's box, measured from the panel's corner; its loudest row is in the middle, in the second half.
    corner = (pictures._HEADER + 0.17, pictures._MARGIN + 0.17 + pictures._IMAGE + 0.13 + pictures._LABEL)
    top, left = (round(place * pictures._DPI) for place in corner)
    box = picture[top : top + round(pictures._IMAGE * pictures._DPI), left:][:, : round(1.4 * pictures._DPI)]
    bright = box.astype(float).sum(-1)[4:-4, 4:-4]  # without the edges, which rounding may move
    assert bright[:, bright.shape[1] * 3 // 4].argmax() == pytest.approx(bright.shape[0] * 0.6, abs=4)
    assert bright[:, bright.shape[1] // 4].max() < 50


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("found", ["", "$x^", "$a$ $b$", "\n\0\t", "WWWWWWWWWWWWWWWWWW", "\ufffd\ufffd", "\\frac{"])
def test_whatever_a_model_says_can_be_drawn_in_its_panel(tmp_path: Path, found: str) -> None:
    """No mathematics, no line breaks, and nothing drawn beyond the panel's frame."""
    path = tmp_path / "sheet.png"
    pictures.draw_predictions(path, [panel(found=found, expected="seven", questions=3)], "")
    picture = pixels(path)
    edge = round((pictures._MARGIN + pictures._PANEL_WIDTH) * pictures._DPI)
    assert (picture[:, edge + 3 :] == 255).all()


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_failed_write_keeps_the_former_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loss.png"
    pictures.draw_losses(path, [(1, 2.0), (2, 1.0)], [])
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        pictures.draw_losses(path, [(1, 3.0), (2, 1.0)], [])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["loss.png"]


def test_missing_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"cornstarch\[train\]"):
        pictures.require_matplotlib()


def test_neither_import_nor_drawing_touches_pyplot(tmp_path: Path) -> None:
    """Importing loads no matplotlib; drawing leaves pyplot, and with it any window system, alone."""
    code = (
        "import sys; from pathlib import Path; from cornstarch.training import pictures\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"pictures.draw_losses(Path({str(tmp_path / 'loss.png')!r}), [(1, 2.0), (2, 1.0)], [])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
