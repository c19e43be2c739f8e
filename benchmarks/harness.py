"""What every benchmark shares: ways measured in turn, goals, tables, and a file with every raw number.

A result is a JSON object. A page shows any that has `topic`, `goals` and `rows`:

    topic        its name
    about        how to read it
    columns      key, title and format of each column of the table; without them, all plain values of the rows
    rows         one object a cell of the sweep; lists in it are raw numbers, of which no table speaks
    plot         a `Plot`, if there is one
    goals        what `Report.judged` makes of each goal
    environment  versions, hardware, command, date
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

Row = dict[str, Any]

# --- measuring --------------------------------------------------------------------------------------------------------


def parser(doc: str, repeats: int = 9) -> argparse.ArgumentParser:
    """The arguments of every benchmark.

    Args:
        doc: the script's docstring.
        repeats: how often each way is measured, if nothing else is said.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, help=f"how often each way is measured ({repeats})")
    made.add_argument("--quick", action="store_true", help="a small sweep and 3 repeats, to see that it runs")
    made.add_argument("--output", type=Path, help="a JSON file with every number")
    made.set_defaults(most=repeats)
    return made


def parsed(made: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with the number of repeats decided; from here on torch computes with one thread."""
    options = made.parse_args(given)
    if options.repeats is None:
        options.repeats = min(3, options.most) if options.quick else options.most
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # names that Hugging Face will change
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
    return options


def in_turn(ways: Mapping[str, Callable[[], Any]], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Seconds of each way. They are run in turn, there and back, so that a slow moment of the machine hits all.

    Args:
        ways: name to what is measured.
        repeats: numbers of each way.
        warm_ups: runs of each way before, which do not count.

    Returns:
        Name to seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm_ups, repeats):
        for name in ways if turn % 2 == 0 else reversed(ways):
            started = time.perf_counter()
            ways[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], own: str, other: str) -> Row:
    """How long one way takes, with another as 1.

    Args:
        seconds: of `in_turn`.
        own: name of a way.
        other: of the one it is compared with.

    Returns:
        The ratio of medians, that of minima, and the raw numbers.
    """
    mine, theirs = seconds[own], seconds[other]
    ratio = statistics.median(mine) / statistics.median(theirs)
    return {"ratio": ratio, "minima": min(mine) / min(theirs), "seconds": {own: list(mine), other: list(theirs)}}


# --- goals ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a column is to reach, in every row that has a value there.

    Attributes:
        text: the goal in words.
        column: key of the figure that is judged.
        at_most: its limit, or
        at_least: its limit.
        bound: key of the best figure that theory allows.
        share: key of the share of the bound that was reached.
        form: how the figure is written; as in its column, if there is one and nothing is said.
    """

    text: str
    column: str
    form: str = ""
    at_most: float | None = None
    at_least: float | None = None
    bound: str | None = None
    share: str | None = None

    def excess(self, row: Row) -> float:
        """By how much a row misses the goal; not above 0 if it is met."""
        figure = float(row[self.column])
        if self.at_most is not None:
            return figure - self.at_most
        return (self.at_least or 0.0) - figure


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: of the rows.
        title: above it.
        form: how a value is written, as in format strings.
        width: characters that its texts take at least.
    """

    key: str
    title: str
    form: str = ""
    width: int = 7

    def text(self, row: Row) -> str:
        """The value of a row in this column; nothing if it has none."""
        return written(row.get(self.key), self.form)


def written(value: Any, form: str = "") -> str:
    """A value of a table as text."""
    if value is None:
        return ""
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What a page draws of the rows.

    Attributes:
        kind: `bound` for ratios against what theory allows, in one picture; `bars` for figures side by side.
        values: keys of the figures; for `bound`, those of the ratio and of its bound.
        names: keys that say which row it is; for `bound`, the one that colours tell apart.
        unit: of the figures.
        line: where a goal is, if one is drawn.
    """

    kind: str
    values: Sequence[str]
    names: Sequence[str]
    unit: str = ""
    line: float | None = None


class Report:
    """Prints rows as they come, and writes all at the end.

    Args:
        topic: the script's name.
        doc: its docstring, which says how to read it.
        columns: of the table.
        names: how many of them, from the first, say which row it is.
        goals: that it has.
        plot: of the rows.
    """

    def __init__(
        self,
        topic: str,
        doc: str,
        columns: Sequence[Column],
        names: int,
        goals: Sequence[Goal] = (),
        plot: Plot | None = None,
    ) -> None:
        self.topic, self.doc, self.columns, self.goals, self.plot = topic, doc, list(columns), list(goals), plot
        self.rows: list[Row] = []
        self._names = self.columns[:names]
        self._widths = [max(len(column.title), column.width) + 2 for column in columns]
        self._started = environment()
        print(doc.splitlines()[0])
        print("".join(f"{c.title:>{w}}" for c, w in zip(self.columns, self._widths, strict=True)), flush=True)

    def add(self, row: Row) -> None:
        """One more row, printed."""
        self.rows.append(row)
        texts = (f"{c.text(row):>{w}}" for c, w in zip(self.columns, self._widths, strict=True))
        print("".join(texts), flush=True)

    def name_of(self, row: Row) -> str:
        """Which row it is."""
        return ", ".join(f"{column.title} {column.text(row)}" for column in self._names if column.text(row))

    def judged(self, goal: Goal) -> Row:
        """A goal beside what was reached: the figure, bound and share of the worst row, and the rows that miss it."""
        rows = sorted((row for row in self.rows if row.get(goal.column) is not None), key=goal.excess, reverse=True)
        missed = [row for row in rows if goal.excess(row) > 0]
        worst = rows[0] if rows else {}
        form = next((column.form for column in self.columns if column.key == goal.column), "")
        return {
            "goal": goal.text,
            "figure": worst.get(goal.column),
            "form": goal.form or form or (".3g" if isinstance(worst.get(goal.column), float) else ""),
            "bound": worst.get(goal.bound) if goal.bound else None,
            "share": worst.get(goal.share) if goal.share else None,
            "met": bool(rows) and not missed,
            "worst": self.name_of(worst),
            "missed": [self.name_of(row) for row in missed],
            "missed_rows": [place for place, row in enumerate(self.rows) if any(row is other for other in missed)],
            "of": len(rows),
        }

    def finish(self, output: Path | None) -> None:
        """Print what became of the goals; write the file, if there is to be one."""
        goals = [self.judged(goal) for goal in self.goals]
        for goal in goals:
            verdict = f"met in {goal['of']}" if goal["met"] else f"missed in {len(goal['missed'])} of {goal['of']}"
            print(f"{verdict}: {goal['goal']}; worst {written(goal['figure'], goal['form'])} ({goal['worst']})")
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(self.as_json(goals), indent=1) + "\n")

    def as_json(self, goals: Sequence[Row]) -> Row:
        """The result of the whole script."""
        return {
            "topic": self.topic,
            "about": self.doc,
            "columns": [vars(column) for column in self.columns],
            "goals": list(goals),
            "rows": self.rows,
            "plot": vars(self.plot) if self.plot else None,
            "environment": {**self._started, "load_at_the_end": os.getloadavg()[0]},
        }


def environment() -> Row:
    """Versions, hardware, command and date."""
    packages = ("torch", "transformers", "peft", "accelerate", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_the_start": os.getloadavg()[0],
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
