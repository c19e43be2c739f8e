"""How far training is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, TextIO

from cornstarch.training.metrics import speed_of
from cornstarch.training.record import StepRecord

_SMOOTHED_OVER = 20  # steps whose mean loss and speed are shown
_PLAIN_LINES = 20  # how many lines a whole run prints where there is no terminal


class Progress:
    """Shows loss, tokens per second and time left; a context manager around training.

    Args:
        steps: how many steps there will be.
        stream: where to write; a bar if it is a terminal. Standard output if it is not given.
        peak: floating-point operations a second that the device can do.
    """

    def __init__(self, steps: int, stream: TextIO | None = None, peak: float | None = None) -> None:
        self._steps, self._peak = steps, peak
        self._stream = sys.stdout if stream is None else stream
        self._recent: deque[tuple[float, StepRecord]] = deque(maxlen=_SMOOTHED_OVER)
        self._bar: Any = None
        self._done_before = 0

    def __enter__(self) -> "Progress":
        self._started = self._last = time.perf_counter()
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._steps, desc="training", unit="step", file=self._stream, dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, step: int) -> None:
        """Say how many steps are done already."""
        self._done_before = step
        self._started = self._last = time.perf_counter()
        if self._bar is not None:
            self._bar.update(step)

    def say(self, message: str) -> None:
        """Show a line between the others."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def update(self, record: StepRecord) -> None:
        """Show a step that is done."""
        now = time.perf_counter()
        self._recent.append((now - self._last, record))
        self._last = now
        loss, speed = self._smoothed()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {speed}", refresh=False)
            self._bar.update()
        elif record.step % max(1, self._steps // _PLAIN_LINES) == 0 or record.step == self._steps:
            done = record.step - self._done_before
            left = (now - self._started) / done * (self._steps - record.step)
            print(
                f"step {record.step:>{len(str(self._steps))}}/{self._steps}  loss {loss:.3f}  "
                f"{speed}  {int(left) // 60}:{int(left) % 60:02d} left",
                file=self._stream,
                flush=True,
            )

    def _smoothed(self) -> tuple[float, str]:
        """Mean loss, and speed, of the last steps."""
        seconds = sum(duration for duration, _ in self._recent)
        records = [record for _, record in self._recent]
        tokens = sum(record.tokens for record in records)
        told = [f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"]
        speed = speed_of(records, seconds, self._peak)
        if speed is not None:
            told.append(f"{_with_unit(speed[0])}FLOP/s" + (f", MFU {speed[1]:.0%}" if speed[1] is not None else ""))
        return sum(record.loss for record in records) / len(records), ", ".join(told)


def _with_unit(number: float) -> str:
    """A number with the letter for its thousands: `1.25 G`."""
    for letter in ("", "k", "M", "G", "T", "P"):
        if number < 1000 or letter == "P":
            break
        number /= 1000
    return f"{number:.3g} {letter}"
