"""How loud a sound is at which time and frequency, for pictures of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WINDOW, _HOP = 0.05, 0.0125  # seconds


@dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """A part of the frequencies of a sound.

    Attributes:
        decibels: (frequencies, times), low and early first; the loudest is 0.
        lowest: Hz, of the first row.
        highest: Hz, of the last row.
        seconds: how long the sound is.
    """

    decibels: np.ndarray[Any, np.dtype[np.float64]]
    lowest: float
    highest: float
    seconds: float


def spectrogram(
    samples: Sequence[float] | np.ndarray[Any, Any], sampling_rate: int, lowest: float, highest: float
) -> Spectrogram:
    """The spectrogram of a sound between two frequencies.

    Args:
        samples: one channel, at least as long as a window of 50 ms.
        sampling_rate: samples a second.
        lowest: Hz.
        highest: Hz.

    Returns:
        The spectrogram, 20 Hz a row and 12.5 ms a column.
    """
    sound = np.asarray(samples, dtype=np.float64)
    window, hop = round(_WINDOW * sampling_rate), round(_HOP * sampling_rate)
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1).T) ** 2
    frequencies = np.fft.rfftfreq(window, 1 / sampling_rate)
    shown = power[(frequencies >= lowest) & (frequencies <= highest)]
    floor = np.finfo(np.float64).tiny
    decibels = 10 * np.log10(np.maximum(shown, floor) / max(float(shown.max()), floor))
    return Spectrogram(decibels=decibels, lowest=lowest, highest=highest, seconds=sound.size / sampling_rate)
