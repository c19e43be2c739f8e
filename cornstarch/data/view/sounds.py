"""A sound as its encoder gets it, as drawings with axes whose colours follow the page's."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cornstarch.data.view.pictures import Numbers, as_address, heat, scaled

_WIDTH, _HEIGHT = 900, 220  # of a drawing, in its own units
_LEFT, _TOP, _BOTTOM = 56, 8, 34  # of them, margins
_INNER = _WIDTH - _LEFT - 12
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


def spectrogram(table: Numbers, processor: Any, seconds: float | None) -> str:
    """A picture of bands over time, with seconds and hertz.

    Args:
        table: (bands, moments), lowest first.
        processor: that made it.
        seconds: that the sound lasts; what comes later fills up the input.

    Returns:
        SVG.
    """
    bands, moments = table.shape
    hop, rate = getattr(processor, "hop_length", None), getattr(processor, "sampling_rate", None)
    whole = moments * hop / rate if hop and rate else None
    pixels = heat(table)
    if moments > 2000:
        pixels = scaled(pixels, 2000, bands)
    image = (
        f'<image href="{as_address(pixels)}" x="{_LEFT}" y="{_TOP}" width="{_INNER}" height="{_HEIGHT}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    )
    labels = "".join(
        _left(_TOP + _HEIGHT * (1 - (band + 0.5) / bands), text) for band, text in _bands(processor, bands)
    )
    axis = _seconds(whole) if whole is not None else _frames(moments)
    return _drawing(image + labels + axis + _end(seconds, whole), "spectrogram")


def waveform(samples: Numbers, rate: float | None, seconds: float | None) -> str:
    """Samples over time.

    Args:
        samples: one channel.
        rate: samples a second.
        seconds: that the sound lasts.

    Returns:
        SVG.
    """
    columns = min(_INNER, len(samples))
    chunks = np.array_split(np.nan_to_num(samples), max(columns, 1))
    low, high = np.array([chunk.min() for chunk in chunks]), np.array([chunk.max() for chunk in chunks])
    most = float(max(np.abs(low).max(), np.abs(high).max(), 1e-9))
    middle, half = _TOP + _HEIGHT / 2, _HEIGHT / 2 - 2
    places = _LEFT + (np.arange(len(chunks)) + 0.5) * _INNER / len(chunks)
    there = [f"{x:.1f},{middle - half * y / most:.1f}" for x, y in zip(places, high, strict=True)]
    back = [f"{x:.1f},{middle - half * y / most:.1f}" for x, y in zip(places[::-1], low[::-1], strict=True)]
    line = f'<path d="M{" L".join([*there, *back])}Z" fill="currentColor" stroke="currentColor" stroke-width="1"/>'
    zero = f'<path d="M{_LEFT} {middle}H{_LEFT + _INNER}" stroke="currentColor" opacity=".25"/>'
    labels = "".join(_left(middle - half * share, f"{share * most:.2g}") for share in (1, 0, -1))
    whole = len(samples) / rate if rate else None
    axis = _seconds(whole) if whole is not None else _frames(len(samples))
    return _drawing(zero + line + labels + axis + _end(seconds, whole), "waveform")


def _bands(processor: Any, bands: int) -> Iterator[tuple[int, str]]:
    """Some bands and what they are called: by the frequency in their middle, if the processor's filters say it."""
    filters = getattr(processor, "mel_filters", None)
    rate = getattr(processor, "sampling_rate", None)
    shown = sorted({round(share * (bands - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
    for band in shown:
        if filters is not None and rate and np.shape(filters)[1] == bands:
            peak = int(np.argmax(np.asarray(filters)[:, band]))
            hertz = peak * rate / 2 / (np.shape(filters)[0] - 1)
            yield band, f"{hertz / 1000:.1f} kHz" if hertz >= 1000 else f"{hertz:.0f} Hz"
        else:
            yield band, f"band {band}"


def _seconds(whole: float) -> str:
    step = next((step for step in _STEPS if whole / step <= 9), whole / 8)
    places = [number * step for number in range(int(whole / step + 1e-9) + 1)]
    return "".join(_below(place / whole, f"{place:g} s") for place in places)


def _frames(number: int) -> str:
    return "".join(_below(share, f"{round(share * number)}") for share in (0, 0.25, 0.5, 0.75, 1))


def _end(seconds: float | None, whole: float | None) -> str:
    """Where the sound ends and the filling begins."""
    if seconds is None or whole is None or seconds > whole * 0.98:
        return ""
    x = _LEFT + _INNER * seconds / whole
    line = f'<path d="M{x:.1f} {_TOP}V{_TOP + _HEIGHT}" stroke="#fff" stroke-width="3" opacity=".6"/>'
    dashes = f'<path d="M{x:.1f} {_TOP}V{_TOP + _HEIGHT}" stroke="#000" stroke-width="1.5" stroke-dasharray="5 4"/>'
    return f"<g><title>here the sound ends</title>{line}{dashes}</g>"


def _left(y: float, text: str) -> str:
    return f'<text x="{_LEFT - 6}" y="{max(_TOP + 9, min(y + 4, _TOP + _HEIGHT)):.1f}" text-anchor="end">{text}</text>'


def _below(share: float, text: str) -> str:
    x = _LEFT + _INNER * share
    anchor = "start" if share < 0.02 else "end" if share > 0.98 else "middle"
    tick = f'<path d="M{x:.1f} {_TOP + _HEIGHT}v5" stroke="currentColor" opacity=".5"/>'
    return f'{tick}<text x="{x:.1f}" y="{_TOP + _HEIGHT + 19}" text-anchor="{anchor}">{text}</text>'


def _drawing(inner: str, name: str) -> str:
    height = _TOP + _HEIGHT + _BOTTOM - 8
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{name}">{inner}</svg>'
