"""1a. The keys of a telephone, as one hears them.

A key is two sines at once (ITU-T Recommendation Q.23): one of four low frequencies says in which row it stands, one of
four high frequencies in which column. A telephone may be off by 1.8 % of either.

            1209 Hz  1336 Hz  1477 Hz  1633 Hz
    697 Hz     1        2        3        A
    770 Hz     4        5        6        B
    852 Hz     7        8        9        C
    941 Hz     *        0        #        D
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from cornstarch.errors import ArgumentError

ROWS = (697.0, 770.0, 852.0, 941.0)
COLUMNS = (1209.0, 1336.0, 1477.0, 1633.0)
TOLERANCE = 0.018  # share of its frequency by which a sine may be off
FREQUENCIES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        key: (row, column)
        for row, keys in zip(ROWS, ("123A", "456B", "789C", "*0#D"), strict=True)
        for column, key in zip(COLUMNS, keys, strict=True)
    }
)
SAMPLING_RATE = 16_000  # samples a second, as speech encoders want them
SECONDS = 1.0  # of a sound, in which a tone is a part
_EDGE = 0.005  # seconds in which a tone rises and falls, so that it does not click


@dataclass(frozen=True, kw_only=True)
class Tone:
    """A key pressed once, somewhere in a second of noise. Levels are in decibels relative to a full-scale sine.

    Attributes:
        key: one of `FREQUENCIES`; None for noise alone.
        onset: seconds before it begins.
        duration: seconds that it lasts.
        level: power of both sines together.
        twist: power of the higher sine over that of the lower, in decibels.
        deviations: by which share of their frequencies the lower and the higher sine are off.
        phases: of both at the onset, in radians.
        noise: power of the white noise.
        seed: of the noise.

    Raises:
        ArgumentError: for a key that no telephone has, or frequencies further off than the recommendation allows.
    """

    key: str | None
    onset: float = 0.3
    duration: float = 0.4
    level: float = -10.0
    twist: float = 0.0
    deviations: tuple[float, float] = (0.0, 0.0)
    phases: tuple[float, float] = (0.0, 0.0)
    noise: float = -40.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.key is not None and self.key not in FREQUENCIES:
            raise ArgumentError(f"no telephone has the key {self.key!r}; known keys: {' '.join(FREQUENCIES)}")
        if max(map(abs, self.deviations)) > TOLERANCE:
            raise ArgumentError(f"frequencies are off by a share of {TOLERANCE} at most, found {self.deviations}")


def draw_tone(key: str | None, chance: random.Random) -> Tone:
    """A key as somebody presses it: how long, how loud and how well by chance, the noise 10 to 30 dB below the tone.

    Args:
        key: one of `FREQUENCIES`; None for noise alone.
        chance: decides all else.

    Returns:
        The tone, which lies within `SECONDS`.
    """
    duration = chance.uniform(0.15, 0.6)
    level = chance.uniform(-26, -6)
    return Tone(
        key=key,
        onset=chance.uniform(0, SECONDS - duration),
        duration=duration,
        level=level,
        twist=chance.uniform(-6, 4),
        deviations=(chance.uniform(-0.015, 0.015), chance.uniform(-0.015, 0.015)),
        phases=(chance.uniform(0, math.tau), chance.uniform(0, math.tau)),
        noise=level - chance.uniform(10, 30),
        seed=chance.getrandbits(64),
    )


def synthesise_tone(
    tone: Tone, sampling_rate: int = SAMPLING_RATE, seconds: float = SECONDS
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The sound of a tone: the same tone always gives the same samples.

    Args:
        tone: what is heard.
        sampling_rate: samples a second.
        seconds: how long the sound is; what does not fit is cut off.

    Returns:
        Samples (seconds * sampling_rate), between -1 and 1.

    Raises:
        ArgumentError: if there are too few samples a second for the frequencies of telephones.
    """
    if sampling_rate < 2.1 * max(COLUMNS):
        raise ArgumentError(f"a sine of {max(COLUMNS):.0f} Hz needs more than {sampling_rate} samples a second")
    sound = np.random.default_rng(tone.seed).standard_normal(round(seconds * sampling_rate), dtype=np.float32)
    sound *= math.sqrt(_power(tone.noise))
    if tone.key is not None:
        start = round(tone.onset * sampling_rate)
        place = sound[start : start + round(tone.duration * sampling_rate)]
        place += _sines(tone, tone.key, sampling_rate)[: place.size]
    return np.clip(sound, -1, 1)


def _sines(tone: Tone, key: str, sampling_rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    times = np.arange(round(tone.duration * sampling_rate), dtype=np.float64) / sampling_rate
    ratio = 10 ** (tone.twist / 10)
    shares = (1 / (1 + ratio), ratio / (1 + ratio))
    both = np.zeros(times.shape)
    for frequency, deviation, phase, share in zip(FREQUENCIES[key], tone.deviations, tone.phases, shares, strict=True):
        amplitude = math.sqrt(2 * share * _power(tone.level))
        both += amplitude * np.sin(math.tau * frequency * (1 + deviation) * times + phase)
    rising = np.minimum(1, np.minimum(times, times[::-1]) / _EDGE)
    both *= np.sin(math.pi / 2 * rising) ** 2
    return both.astype(np.float32)


def _power(level: float) -> float:
    """Mean square of a sound of a level: of a full-scale sine, at 0 dB, it is a half."""
    return float(10 ** (level / 10)) / 2
