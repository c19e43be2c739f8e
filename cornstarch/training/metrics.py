"""8. Where figures go: `metrics.jsonl`, one object a line, and trackers."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cornstarch.errors import ArgumentError
from cornstarch.training.loop import StepRecord


class MetricsFile:
    """Lines of JSON, each whole: what a full disk refuses is kept, and written once there is space again.

    Args:
        path: the file; appended to if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[str] = []

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; numbers that JSON does not have become null.

        Args:
            line: with `step`.

        Raises:
            OSError: if it cannot be written; it is tried again with the next.
        """
        plain = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
        self._waiting.append(json.dumps(plain) + "\n")
        with open(self._path, "ab") as file:
            whole = file.tell()
            try:
                file.write("".join(self._waiting).encode())
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), whole)
                raise
        self._waiting.clear()

    def cut(self, step: int) -> None:
        """Leave out lines of steps after `step`, which will be taken again."""
        if self._path.is_file():
            kept = [line for line in read_metrics(self._path) if line["step"] <= step]
            aside = self._path.with_name(f".{self._path.name}")
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(aside, self._path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`.

    Args:
        path: the file.

    Returns:
        One dict a line.

    Raises:
        ArgumentError: if a line is no JSON object.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"{path}, line {number}: {error}") from error
    return lines


def as_line(records: Sequence[StepRecord]) -> dict[str, Any]:
    """The line of the last of several steps: its own figures, and the speed over all of them."""
    record = records[-1]
    seconds = sum(entry.seconds for entry in records)
    return {
        "step": record.step,
        "loss": record.loss,
        "tokens_per_second": sum(entry.tokens for entry in records) / max(seconds, 1e-9),
        "tokens": record.tokens,
        "labelled_tokens": record.labelled_tokens,
        "samples": record.samples,
        "grad_norm": record.grad_norm,
        **{f"learning_rate/{part}": rate for part, rate in record.learning_rates.items()},
        **{f"grad_norm/{part}": norm for part, norm in record.grad_norms.items()},
        **record.metrics,
    }


class Trackers:
    """TensorBoard and Weights & Biases, through accelerate.

    Args:
        names: of trackers that accelerate has; none does nothing.
        folder: of the run.
        project: the project's name.
        config: of the run, flat.

    Raises:
        ImportError: if accelerate, or a tracker's own package, is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, project: str, config: Mapping[str, Any]) -> None:
        self._trackers: list[Any] = []
        if not names:
            return
        try:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
        except ImportError as error:
            raise ImportError("run.trackers needs accelerate: pip install 'cornstarch[train]'") from error
        available = {str(getattr(entry, "value", entry)) for entry in get_available_trackers()}
        missing = [name for name in names if name not in available]
        if missing:
            raise ImportError(f"run.trackers: {', '.join(missing)} is not installed: pip install {' '.join(missing)}")
        for name in names:
            cls = LOGGER_TYPE_TO_CLASS[name]
            place = {"logging_dir": str(folder)} if cls.requires_logging_directory else {}
            tracker = cls(project, **place)
            tracker.start()
            tracker.store_init_configuration({key: str(value) for key, value in config.items()})
            self._trackers.append(tracker)

    def log(self, line: Mapping[str, Any]) -> None:
        """Log a line's figures under its step."""
        figures = {key: value for key, value in line.items() if key != "step" and value is not None}
        for tracker in self._trackers:
            tracker.log(figures, step=line["step"])

    def close(self) -> None:
        """Finish."""
        for tracker in self._trackers:
            tracker.finish()
