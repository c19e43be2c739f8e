"""Pictures of a training run, as PNG files: the losses, and a sheet of what the model answered."""

import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cornstarch.training.spectrograms import Spectrogram

_DPI = 130
_INK, _FAINT, _RIGHT, _WRONG = "#1a1a1a", "#6b6b6b", "#1b7837", "#c51b29"
_TRAINING, _VALIDATION = "#2166ac", "#d6761b"
# The sheet, in inches; a panel is an image with its questions to the right of it.
_COLUMNS, _PANEL_WIDTH, _PANEL_HEIGHT = 4, 3.35, 1.4
_MARGIN, _HEADER, _IMAGE = 0.2, 0.6, 1.06
_LINE, _PITCH = 0.17, 0.37  # from a question to its answer, and to the next question
_LONGEST_ANSWER = 8  # characters shown
# A panel with a sound: its spectrogram is to the right of the image, and the questions are below both.
_HEARD_HEIGHT, _SPECTROGRAM, _LABEL = 1.82, 1.4, 0.4


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question, what the model answered, and what is right."""

    question: str
    found: str
    expected: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is exactly the expected one."""
        return self.found == self.expected


@dataclass(frozen=True, kw_only=True)
class Panel:
    """An image and up to three questions about it; or an image and a sound, and one question."""

    image: Image.Image
    answers: Sequence[Answered]
    sound: Spectrogram | None = None

    @property
    def is_right(self) -> bool:
        """Whether all answers are."""
        return all(answered.is_right for answered in self.answers)


def require_matplotlib() -> None:
    """Fail now rather than after training.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    _figure(1, 1)


def draw_losses(
    path: Path,
    losses: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    training_label: str = "training",
) -> None:
    """Draw the loss over the steps.

    Args:
        path: the PNG file to write or replace.
        losses: (step, loss) pairs of training.
        validation: (step, loss) pairs.
        training_label: what the training losses are called in the legend.
    """
    figure = _figure(8, 4.5)
    axes = figure.add_axes((0.085, 0.13, 0.89, 0.77))
    steps, values = (np.asarray(column, dtype=float) for column in zip(*losses, strict=True))
    axes.plot(steps, values, color=_TRAINING, alpha=0.25, linewidth=0.8)
    window = max(1, len(values) // 40)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    middle = np.convolve(steps, np.ones(window) / window, mode="valid")
    label = training_label if window == 1 else f"{training_label}, mean of {window} steps"
    axes.plot(middle, smooth, color=_TRAINING, linewidth=1.8, label=label)
    if validation:
        axes.plot(*zip(*validation, strict=True), color=_VALIDATION, marker="o", markersize=4, label="validation")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("Loss per answer token", loc="left", fontsize=12, color=_INK)
    axes.set_xlabel("step")
    axes.set_ylabel("cross entropy (nats)")
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _write(figure, path)


def draw_predictions(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Draw a sheet of images with questions, answers and verdicts; wrong ones are framed and struck in red.

    Args:
        path: the PNG file to write or replace.
        panels: in reading order.
        title: one line above the sheet.
    """
    rows = -(-len(panels) // _COLUMNS)
    tall = _HEARD_HEIGHT if any(panel.sound is not None for panel in panels) else _PANEL_HEIGHT
    width, height = _COLUMNS * _PANEL_WIDTH + 2 * _MARGIN, rows * tall + _HEADER + _MARGIN
    figure = _figure(width, height)
    figure.text(_MARGIN / width, 1 - _HEADER / 2 / height, title, fontsize=14, color=_INK, va="center")
    for number, panel in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        left, top = _MARGIN + column * _PANEL_WIDTH, height - _HEADER - row * tall
        box = (left / width, (top - tall) / height, _PANEL_WIDTH / width, tall / height)
        _draw_panel(figure.add_axes(box), panel, tall)
    _write(figure, path)


def _draw_panel(axes: Any, panel: Panel, tall: float) -> None:
    """One panel on axes of its own whose data units are inches, y downwards."""
    axes.axis("off")
    top = (_PANEL_HEIGHT - _IMAGE) / 2
    _place(axes, np.asarray(panel.image.convert("RGB")), top, top, _IMAGE)
    if not panel.is_right:
        _frame(axes, tall)
    x, y = top + _IMAGE + 0.13, top + 0.07
    if panel.sound is not None:
        _draw_sound(axes, panel.sound, x + _LABEL, top)
        x, y = top, top + _IMAGE + 0.22
    for number, answered in enumerate(panel.answers):
        _write_answer(axes, answered, x=x, y=y + number * _PITCH)
    axes.set_xlim(0, _PANEL_WIDTH)  # imshow has moved them
    axes.set_ylim(tall, 0)


def _place(axes: Any, values: Any, left: float, top: float, width: float, **options: Any) -> None:
    """Draw an array into a box as tall as images are."""
    extent = (left, left + width, top + _IMAGE, top)
    axes.imshow(values, extent=extent, interpolation="nearest", aspect="auto", **options)


def _draw_sound(axes: Any, sound: Spectrogram, left: float, top: float) -> None:
    """A spectrogram whose corners say which frequencies and times they are."""
    _place(axes, sound.decibels[::-1], left, top, _SPECTROGRAM, cmap="magma", vmin=-60, vmax=0)
    style = {"fontsize": 6.5, "color": _FAINT, "parse_math": False}
    for hertz, y, side in ((sound.highest, top, "top"), (sound.lowest, top + _IMAGE, "bottom")):
        axes.text(left - 0.04, y, f"{hertz:.0f} Hz", ha="right", va=side, **style)
    axes.text(left + _SPECTROGRAM, top + _IMAGE + 0.02, f"{sound.seconds:g} s", ha="right", va="top", **style)


def _frame(axes: Any, tall: float) -> None:
    from matplotlib.patches import Rectangle

    gap = 0.05
    size = (_PANEL_WIDTH - 2 * gap, tall - 2 * gap)
    axes.add_patch(Rectangle((gap, gap), *size, facecolor="#fdeeee", edgecolor=_WRONG, linewidth=1.6, zorder=-1))


def _write_answer(axes: Any, answered: Answered, x: float, y: float) -> None:
    style = {"va": "center", "parse_math": False, "clip_on": True}
    axes.text(x, y, answered.question, fontsize=8.5, color=_FAINT, **style)
    verdict = f"✓ {_shown(answered.found)}"
    if not answered.is_right:
        verdict = f"✗ {_shown(answered.found)}   right: {_shown(answered.expected)}"
    colour = _RIGHT if answered.is_right else _WRONG
    axes.text(x, y + _LINE, verdict, fontsize=9.5, color=colour, weight="bold", **style)


def _shown(answer: str) -> str:
    """An answer as it can be drawn: a model may say anything."""
    plain = "".join(character if character.isprintable() else "·" for character in answer)
    return (plain if len(plain) <= _LONGEST_ANSWER else plain[: _LONGEST_ANSWER - 1] + "…") or "(nothing)"


def _figure(width: float, height: float) -> Any:
    """A figure of its own, outside pyplot's global state, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the pictures need matplotlib, which is not installed: pip install 'cornstarch[train]'"
        ) from error
    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def _write(figure: Any, path: Path) -> None:
    """Draw with Agg, and put the file in its place whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(drawn.getvalue())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
