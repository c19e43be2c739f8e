"""Pictures of results, as SVG: ratios against their bounds, and figures side by side."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.harness import Row

# Okabe and Ito's colours, which people tell apart whatever colours they see; and a mark for each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
    "axes.axisbelow": True, "svg.hashsalt": "results", "axes.edgecolor": "#888", "figure.facecolor": "white",
}  # fmt: skip


def drawn(result: Row) -> str | None:
    """A picture of a result as an address for `<img>`; None if there is nothing to draw."""
    plot, rows = result.get("plot"), result["rows"]
    draw = {"bound": against_bound, "bars": bars}.get((plot or {}).get("kind"))
    if plot is None or draw is None or not rows:
        return None
    with plt.rc_context(STYLE):
        figure = draw(plot, rows, titles_of(result))
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def titles_of(result: Row) -> dict[str, str]:
    """Key to title of every column."""
    return {column["key"]: column["title"] for column in result.get("columns") or []}


def against_bound(plot: Row, rows: Sequence[Row], titles: dict[str, str]) -> Any:
    """A point a row: the bound to the right, the ratio upwards; below the diagonal theory would be beaten."""
    (value, bound), [series] = plot["values"], plot["names"]
    rows = [row for row in rows if row.get(value) is not None and row.get(bound) is not None]
    figures = [float(row[key]) for row in rows for key in (value, bound)]
    low, high = 0.85 * min(figures), max(1.12 * max(figures), 1.1)
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.plot([low, high], [low, high], color="#555", lw=1.2, label="the bound")
    axes.fill_between([low, high], [low, high], [low / 0.85, high / 0.85], color="#0072B2", alpha=0.08, lw=0,
                      label="85 % of the bound or better")  # fmt: skip
    if plot.get("line") is not None:
        axes.axhline(plot["line"], color="#D55E00", lw=1, ls="--", label=f"goal: at most {plot['line']:g}")
    for place, name in enumerate(dict.fromkeys(row.get(series) for row in rows)):
        mine = [row for row in rows if row.get(series) == name]
        look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKS[place % len(MARKS)], "edgecolor": "white"}
        points = [row[bound] for row in mine], [row[value] for row in mine]
        label = f"{titles.get(series, series)} {name:,}" if isinstance(name, int | float) else str(name)
        axes.scatter(*points, s=34, label=label, alpha=0.85, lw=0.5, **look)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0) if low <= tick <= high]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set(xlabel=f"{titles.get(bound, bound)} (best ratio that theory allows)",
             ylabel=f"{titles.get(value, value)} of medians (lower is faster)")  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def bars(plot: Row, rows: Sequence[Row], titles: dict[str, str]) -> Any:
    """A group of bars a row, with the number at each."""
    values, names = list(plot["values"]), list(plot["names"])
    height, most = 0.8 / len(values), max((float(row.get(key) or 0) for row in rows for key in values), default=1.0)
    figure, axes = plt.subplots(figsize=(7.2, 0.7 + len(rows) * (0.22 + 0.2 * len(values))))
    for place, key in enumerate(values):
        at = [line + place * height for line in range(len(rows))]
        lengths = [float(row.get(key) or 0) for row in rows]
        axes.barh(at, lengths, height * 0.9, label=titles.get(key, key), color=COLOURS[place % len(COLOURS)])
        for y, length, row in zip(at, lengths, rows, strict=True):
            if row.get(key) is not None:
                text = f"{length:,.0f}" if length >= 100 or length == 0 else f"{length:.3g}"
                axes.text(length + 0.01 * most, y, text, va="center", fontsize=8)
    middle = (len(values) - 1) * height / 2
    axes.set_yticks([line + middle for line in range(len(rows))],
                    labels=[", ".join(str(row.get(name, "")) for name in names) for row in rows])  # fmt: skip
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.18 * most or 1), xlabel=plot.get("unit") or "")
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if most >= 10 else f"{value:g}")
    axes.xaxis.set_major_locator(plt.MaxNLocator(5))
    if plot.get("line") is not None:
        axes.axvline(plot["line"], color="#D55E00", lw=1, ls="--", label=f"goal: {plot['line']:g}")
    if len(values) > 1 or plot.get("line") is not None:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure
