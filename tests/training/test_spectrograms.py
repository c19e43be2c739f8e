"""Spectrograms for pictures, of sines whose place is known."""

import numpy as np
import pytest

from cornstarch.training.spectrograms import spectrogram


@pytest.mark.parametrize("frequency", [700, 1000, 1480])
def test_a_sine_is_where_it_is(frequency: int) -> None:
    """In the second half only; the loudest is 0 decibels."""
    times = np.arange(16_000) / 16_000
    found = spectrogram(np.sin(2 * np.pi * frequency * times) * (times > 0.5), 16_000, 600, 1600)
    assert found.decibels.shape == (51, 77)
    assert (found.lowest, found.highest, found.seconds) == (600, 1600, 1.0)
    assert found.decibels.max() == 0
    row, column = np.unravel_index(found.decibels.argmax(), found.decibels.shape)
    assert 600 + 20 * row == frequency
    assert column > 36
    assert found.decibels[:, :30].max() < -100


def test_silence_can_be_drawn() -> None:
    assert np.isfinite(spectrogram(np.zeros(16_000), 16_000, 600, 1600).decibels).all()
