"""Keys of a telephone against a detector written here: the powers at the recommendation's eight frequencies."""

import math
import random
from typing import Any

import numpy as np
import pytest

from cornstarch import ArgumentError, Tone, draw_tone, synthesise_tone
from cornstarch.data import tones

# ITU-T Q.23, table 1, written down again.
KEYPAD = {
    697: {1209: "1", 1336: "2", 1477: "3", 1633: "A"},
    770: {1209: "4", 1336: "5", 1477: "6", 1633: "B"},
    852: {1209: "7", 1336: "8", 1477: "9", 1633: "C"},
    941: {1209: "*", 1336: "0", 1477: "#", 1633: "D"},
}
KEYS = [key for row in KEYPAD.values() for key in row.values()]
LOW, HIGH = tuple(KEYPAD), tuple(KEYPAD[697])


def goertzel(samples: np.ndarray, frequency: float, rate: int) -> float:
    """The power at a frequency, by Goertzel's recurrence, sample after sample."""
    factor = 2 * math.cos(2 * math.pi * frequency / rate)
    before, last = 0.0, 0.0
    for sample in samples.tolist():
        before, last = last, sample + factor * last - before
    return (last * last + before * before - factor * last * before) / len(samples) ** 2


def heard(sound: np.ndarray, tone: Tone, rate: int = 16_000) -> str:
    """The key with the strongest low and the strongest high frequency, within what a telephone may be off by."""
    start = round(tone.onset * rate)
    part = sound[start : start + round(min(tone.duration, 0.1) * rate)]
    near = (-0.015, -0.0075, 0.0, 0.0075, 0.015)
    powers = {f: max(goertzel(part, f * (1 + off), rate) for off in near) for f in LOW + HIGH}
    return KEYPAD[max(LOW, key=powers.__getitem__)][max(HIGH, key=powers.__getitem__)]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_heard(key: str) -> None:
    """As somebody may press it, loud or not, off or not, in noise."""
    for seed in range(2):
        tone = draw_tone(key, random.Random(f"{key} {seed}"))
        assert heard(synthesise_tone(tone), tone) == key


def test_the_detector_hears_keys_apart() -> None:
    """So that the test above can fail: of plain sines, made here, it says what they are."""
    times = np.arange(1600) / 16_000
    for low, row in KEYPAD.items():
        for high, key in row.items():
            sound = np.sin(2 * np.pi * low * times) + np.sin(2 * np.pi * high * times)
            assert heard(sound, Tone(key="1", onset=0, duration=0.1)) == key


def test_the_table_is_the_recommendations() -> None:
    assert {key: (low, high) for low, row in KEYPAD.items() for high, key in row.items()} == tones.FREQUENCIES


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_only_two_sines_are_heard_and_only_while_it_lasts(rate: int) -> None:
    """Peaks of the spectrum, to within a bin; nothing before, nothing behind."""
    tone = Tone(key="6", onset=0.25, duration=0.5, noise=-200, deviations=(0.01, -0.01))
    sound = synthesise_tone(tone, rate).astype(np.float64)
    assert sound.shape == (rate,)
    inside = sound[round(0.25 * rate) : round(0.75 * rate)]
    assert np.abs(sound[: round(0.25 * rate)]).max() < 1e-6 > np.abs(sound[round(0.75 * rate) :]).max()
    power = np.abs(np.fft.rfft(inside * np.hanning(inside.size))) ** 2
    frequencies = np.fft.rfftfreq(inside.size, 1 / rate)
    for expected in (770 * 1.01, 1477 * 0.99):
        around = np.abs(frequencies - expected) < 50
        assert abs(frequencies[around][power[around].argmax()] - expected) <= 2
        power[around] = 0
    assert power.max() < 1e-3 * (np.abs(np.fft.rfft(inside)) ** 2).max()


@pytest.mark.parametrize("level, twist", [(-6.0, 0.0), (-20.0, 4.0), (-26.0, -6.0)])
def test_level_and_twist(level: float, twist: float) -> None:
    """In decibels, of both sines relative to one of full scale, and of the higher over the lower."""
    tone = Tone(key="2", onset=0, duration=1.0, level=level, twist=twist, noise=-200)
    sound = synthesise_tone(tone)[800:-800]
    assert 10 * math.log10(float(np.mean(sound.astype(np.float64) ** 2)) / 0.5) == pytest.approx(level, abs=0.1)
    ratio = goertzel(sound, 1336, 16_000) / goertzel(sound, 697, 16_000)
    assert 10 * math.log10(ratio) == pytest.approx(twist, abs=0.1)


def test_the_samples_are_the_formulas() -> None:
    """Between its edges, a tone is two sines from their phases at the onset on."""
    tone = Tone(key="9", onset=0.2, duration=0.5, level=-10, twist=0, deviations=(0, 0.01), phases=(1, 2), noise=-200)
    times = np.arange(1600, 8000 - 1600) / 16_000
    amplitude = math.sqrt(10 ** (-10 / 10) / 2)
    angles = 2 * np.pi * 852 * times + 1, 2 * np.pi * 1477 * 1.01 * times + 2
    expected = amplitude * (np.sin(angles[0]) + np.sin(angles[1]))
    found = synthesise_tone(tone)[3200 + 1600 : 3200 + 8000 - 1600]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_noise_alone() -> None:
    """White, of the level that is asked for, and no key in it; the noise is that which the tone stood in."""
    tone = Tone(key="5", noise=-30, seed=3)
    silent = Tone(key=None, noise=-30, seed=3)
    noise, sound = synthesise_tone(silent).astype(np.float64), synthesise_tone(tone)
    assert 10 * math.log10(float(np.mean(noise**2)) / 0.5) == pytest.approx(-30, abs=0.2)
    assert np.array_equal(noise[:4800], sound[:4800])
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert power[600:1700].mean() == pytest.approx(power.mean(), rel=0.15)


def test_the_same_tone_is_the_same_sound() -> None:
    """And another for another seed; drawing is by the chance alone."""
    first = draw_tone("7", random.Random(5))
    assert first == draw_tone("7", random.Random(5)) != draw_tone("7", random.Random(6))
    assert np.array_equal(synthesise_tone(first), synthesise_tone(first))
    assert not np.array_equal(synthesise_tone(Tone(key=None, seed=1)), synthesise_tone(Tone(key=None, seed=2)))


def test_what_is_drawn_is_a_telephones() -> None:
    """Within the recommendation's tolerance, the second and the range of samples, and varied."""
    drawn = [draw_tone("8", random.Random(seed)) for seed in range(300)]
    assert all(max(map(abs, tone.deviations)) <= 0.018 for tone in drawn)
    assert all(tone.onset >= 0 and tone.onset + tone.duration <= 1 for tone in drawn)
    assert all(10 <= tone.level - tone.noise <= 30 for tone in drawn)
    for name in ("onset", "duration", "level", "twist"):
        values = [getattr(tone, name) for tone in drawn]
        assert max(values) - min(values) > 0.3
    assert all(np.abs(synthesise_tone(tone)).max() < 1 for tone in drawn[:20])


@pytest.mark.parametrize(
    "wrong, message", [({"key": "E"}, "no telephone has the key 'E'"), ({"key": "1", "deviations": (0, 0.02)}, "0.018")]
)
def test_what_is_no_telephones(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Tone(**wrong)


def test_too_few_samples_a_second() -> None:
    with pytest.raises(ArgumentError, match="1633 Hz needs more than 3000"):
        synthesise_tone(Tone(key="1"), 3000)


def test_what_does_not_fit_is_cut_off() -> None:
    assert synthesise_tone(Tone(key="1", onset=0.3, duration=0.4), seconds=0.5).shape == (8000,)
