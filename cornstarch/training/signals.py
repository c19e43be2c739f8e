"""7a. Ctrl-C and SIGTERM: the step is finished, a checkpoint saved, and the run left; a second one leaves at once."""

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from cornstarch.training.loop import Callback, Loop
from cornstarch.training.record import StepRecord

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


class StopOnSignal(Callback):
    """Stops a loop after its step when the process is asked to end. A context manager around the run.

    Attributes:
        received: the signal's name; None if none came.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for name in EXIT_CODES:
                number = getattr(signal, name)
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def on_start(self, loop: Loop) -> None:
        """Stop before the first step if the signal is there already."""
        self._stop(loop)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        """Stop after the step in which the signal came."""
        self._stop(loop)

    def on_evaluation(self, loop: Loop, figures: Mapping[str, float]) -> None:
        """Stop after the check in which the signal came."""
        self._stop(loop)

    def _stop(self, loop: Loop) -> None:
        if self.received is not None:
            loop.stop(self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        text = f"\n{self.received}: finishing the step and saving a checkpoint; once more leaves at once\n"
        os.write(1, text.encode())  # a handler may interrupt a print, which cannot be entered twice
