"""5e. Histograms as SVG inside a page: they take its colours, light or dark."""

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 420, 190
_LEFT, _BOTTOM, _TOP = 46, 34, 10  # of the axes
_BINS = 28


def histogram(values: Sequence[float], unit: str, limit: float | None = None) -> str:
    """A histogram.

    Args:
        values: at least one.
        unit: below the axis.
        limit: a value to mark, such as the longest that is taken.

    Returns:
        An SVG element.
    """
    low, high = 0.0, max(max(values), 1e-9)
    step = _round_up((high - low) / _BINS, whole=all(float(value).is_integer() for value in values))
    counts = [0] * (math.floor((high - low) / step) + 1)
    for value in values:
        counts[min(len(counts) - 1, int((value - low) / step))] += 1
    most, right = max(counts), low + step * len(counts)
    width, height = _WIDTH - _LEFT - 12, _HEIGHT - _BOTTOM - _TOP
    bar = width / len(counts)
    drawn = []
    for place, count in enumerate(counts):
        if count:
            tall = max(1.0, height * count / most)
            text = f"{_shown(low + place * step)} to {_shown(low + (place + 1) * step)}: {count:,}"
            drawn.append(
                f'<rect class="bar" x="{_LEFT + place * bar + 0.5:.1f}" y="{_TOP + height - tall:.1f}" '
                f'width="{max(0.6, bar - 1):.1f}" height="{tall:.1f}"><title>{escape(text)}</title></rect>'
            )
    base = _TOP + height
    drawn.append(f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_LEFT + width}" y2="{base}"/>')
    apart = _round_up((right - low) / 5, whole=step >= 1 and float(step).is_integer())
    for number in range(int((right - low) / apart + 1e-9) + 1):
        drawn.append(
            _text(_LEFT + width * number * apart / (right - low), base + 14, _shown(low + number * apart), "middle")
        )
    drawn.append(_text(_LEFT + width / 2, base + 28, unit, "middle"))
    drawn.append(_text(_LEFT - 5, _TOP + 9, f"{most:,}", "end"))
    drawn.append(_text(_LEFT - 5, base, "0", "end"))
    if limit is not None and limit <= right:
        x = _LEFT + width * (limit - low) / (right - low)
        drawn.append(f'<line class="limit" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}"/>')
    label = f"{len(values):,} values, {_shown(min(values))} to {_shown(max(values))} {unit}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(drawn)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _round_up(step: float, *, whole: bool) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten; a whole number for whole values."""
    power = 10.0 ** math.floor(math.log10(step))
    found = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * (1 - 1e-9))
    return max(1.0, float(math.ceil(found))) if whole else found


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"
