"""8. Where figures go: `metrics.jsonl`, one object a line, and trackers."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cornstarch.data.samples import numbered_lines
from cornstarch.errors import ArgumentError
from cornstarch.training.folder import write_whole
from cornstarch.training.record import StepRecord


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
        data = "".join(self._waiting).encode()
        with open(self._path, "ab", buffering=0) as file:  # a buffer would write half a line when it is closed
            whole = file.tell()
            try:
                written = file.write(data)
            except OSError:
                written = 0
            if written != len(data):
                with suppress(OSError):
                    os.ftruncate(file.fileno(), whole)
                raise OSError(errno.ENOSPC, "no space left for its lines")
        self._waiting.clear()

    def cut(self, step: int) -> None:
        """Leave out lines of steps after `step`, which will be taken again, and a last line that is not whole."""
        if self._path.is_file():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            whole = text[: text.rfind("\n") + 1]
            kept = [line for line in _parsed(whole, self._path) if line["step"] <= step]
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`.

    Args:
        path: the file.

    Returns:
        One dict a line.

    Raises:
        ArgumentError: if a line is no JSON object.
    """
    return _parsed(path.read_text(encoding="utf-8"), path)


def _parsed(text: str, path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in numbered_lines(text):
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"{path}, line {number} is no whole object: {error}; remove the line") from error
    return lines


def as_line(records: Sequence[StepRecord], peak: float | None = None) -> dict[str, Any]:
    """The line of the last of several steps: its own figures, and the speed over all of them.

    Args:
        records: of the steps.
        peak: floating-point operations a second that the device can do.

    Returns:
        Names to numbers.
    """
    record = records[-1]
    seconds, skipped = sum(entry.seconds for entry in records), sum(entry.skipped for entry in records)
    bad, unlabelled = sum(len(entry.bad) for entry in records), sum(len(entry.unlabelled) for entry in records)
    return {
        **record.metrics,
        "step": record.step,
        "loss": record.loss,
        "tokens_per_second": sum(entry.tokens for entry in records) / max(seconds, 1e-9),
        "tokens": record.tokens,
        "labelled_tokens": record.labelled_tokens,
        "samples": record.samples,
        "grad_norm": record.grad_norm,
        **_work_of(records, peak),
        **({"skipped": skipped} if skipped else {}),
        **({"bad_samples": bad} if bad else {}),
        **({"unlabelled": unlabelled} if unlabelled else {}),
        **{f"learning_rate/{part}": rate for part, rate in record.learning_rates.items()},
        **{f"grad_norm/{part}": norm for part, norm in record.grad_norms.items()},
    }


def speed_of(records: Sequence[StepRecord], seconds: float, peak: float | None) -> tuple[float, float | None] | None:
    """How fast several steps were, by their operations.

    Args:
        records: of the steps.
        seconds: that they took.
        peak: floating-point operations a second that the device can do.

    Returns:
        Operations a second, those that were computed again included, and MFU
        (https://arxiv.org/abs/2204.02311, appendix B), which leaves these out; None where they were not counted.
    """
    work = [record.work for record in records if record.work is not None]
    if len(work) < len(records) or not work:
        return None
    per_second = sum(entry.total for entry in work) / max(seconds, 1e-9)
    needed = sum(sum(entry.needed.values()) for entry in work) / max(seconds, 1e-9)
    return per_second, needed / peak if peak else None


def _work_of(records: Sequence[StepRecord], peak: float | None) -> dict[str, Any]:
    work = records[-1].work
    speed = speed_of(records, sum(entry.seconds for entry in records), peak)
    if work is None or speed is None:
        return {}
    return {
        "flops": work.total,
        "flops_per_second": speed[0],
        **({"mfu": speed[1]} if speed[1] is not None else {}),
        **{f"flops/{part}": number + work.again[part] for part, number in work.needed.items()},
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
        check_trackers(names)
        for name in names:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

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


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be used, before anything else is done.

    Args:
        names: of trackers that accelerate has.

    Raises:
        ImportError: if accelerate, or a tracker's own package, is not installed.
    """
    if not names:
        return
    try:
        from accelerate.tracking import get_available_trackers
    except ImportError as error:
        raise ImportError("run.trackers needs accelerate: pip install 'cornstarch[train]'") from error
    available = {str(getattr(entry, "value", entry)) for entry in get_available_trackers()}
    missing = [name for name in names if name not in available]
    if missing:
        raise ImportError(f"run.trackers: {', '.join(missing)} is not installed: pip install {' '.join(missing)}")
