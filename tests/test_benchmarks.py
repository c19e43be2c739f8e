"""What benchmarks say exactly: ratios of given times, goals of given rows, bytes, operations, and a page of them."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import frozen_encoder, harness, llava, page
from benchmarks.harness import Column, Goal, Plot, Report
from benchmarks.run import SCRIPTS

SMALL = llava.Size(width=64, layers=2, tower_width=64, tower_layers=3, side=3, text=24, vocabulary=96, samples=2)

# --- statistics -------------------------------------------------------------------------------------------------------


def test_ratios_of_medians_and_of_minima() -> None:
    """By hand: medians 3 and 6, minima 1 and 4."""
    found = harness.ratios({"a": [1.0, 9.0, 3.0], "b": [6.0, 4.0, 90.0]}, "a", "b")
    assert found["ratio"] == 0.5
    assert found["minima"] == 0.25
    assert found["seconds"] == {"a": [1.0, 9.0, 3.0], "b": [6.0, 4.0, 90.0]}


def test_ways_run_in_turn_there_and_back() -> None:
    """The order of calls; the first turn warms up and has no number."""
    calls: list[str] = []
    seconds = harness.in_turn({name: lambda n=name: calls.append(n) for name in "ab"}, repeats=3)
    assert "".join(calls) == "baabbaab"
    assert [len(numbers) for numbers in seconds.values()] == [3, 3]


def test_repeats_are_nine_and_three_if_quick() -> None:
    """What a script runs with, if nothing else is said."""
    for given, repeats in (([], 9), (["--quick"], 3), (["--quick", "--repeats", "5"], 5)):
        assert harness.parsed(harness.parser("A script."), given).repeats == repeats


def report(goal: Goal, rows: list[dict[str, Any]], plot: Plot | None = None) -> Report:
    made = Report("toy", "A toy.\n\nHow to read `it`.", COLUMNS, names=1, goals=[goal], plot=plot)
    for row in rows:
        made.add(row)
    return made


COLUMNS = [Column("size", "size"), Column("ratio", "ratio", ".2f"), Column("bound", "bound", ".2f")]
ROWS = [
    {"size": "s", "ratio": 0.9, "bound": 0.5, "seconds": {"a": [1.0]}},
    {"size": "m <b>", "ratio": 1.3, "bound": 0.6},
    {"size": "l", "ratio": 1.1, "bound": 0.7},
    {"size": "none"},
]


def test_a_goal_is_judged_by_its_worst_row() -> None:
    """At most 1: missed in two of the three rows that have a figure, the worst first, with its bound."""
    goal = Goal(text="below", column="ratio", at_most=1.0, bound="bound")
    [found] = [report(goal, ROWS).judged(goal)]
    assert (found["figure"], found["bound"], found["met"], found["of"]) == (1.3, 0.6, False, 3)
    assert found["missed"] == ["size m <b>", "size l"]


@pytest.mark.parametrize("limit, met", [(0.9, True), (0.91, False)])
def test_a_goal_from_below(limit: float, met: bool) -> None:
    """At least a limit: met when reached."""
    goal = Goal(text="above", column="ratio", at_least=limit)
    assert report(goal, ROWS[:1]).judged(goal)["met"] is met


def test_a_goal_that_no_row_has_a_figure_for_is_not_met() -> None:
    """Nothing measured is nothing reached."""
    goal = Goal(text="below", column="ratio", at_most=1.0)
    assert not report(goal, ROWS[3:]).judged(goal)["met"]


# --- what is exact ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("regime", llava.REGIMES)
def test_operations_are_those_of_theory(regime: str, own: bool) -> None:
    """`FlopCounterMode` with eager attention against theory, 1 %; ours with the head on labelled positions alone."""
    eager = llava.Size(**{**vars(SMALL), "attention": "eager"})
    model, given = llava.choose(llava.pair(eager)[own], regime), llava.batch(eager)
    model(**given).loss.backward()
    with FlopCounterMode(display=False) as counter:
        model(**given).loss.backward()
    expected = llava.flops(eager, regime, eager.rows if own else None).total
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("regime", llava.REGIMES)
def test_both_models_are_the_same(regime: str) -> None:
    """Losses and lengths of gradients, 1e-4; with another batch they are not."""
    theirs, ours = (llava.choose(model, regime) for model in llava.pair(SMALL))
    llava.check_equal(theirs, ours, llava.batch(SMALL))
    other = llava.choose(llava.pair(llava.Size(**{**vars(SMALL), "width": 128}))[1], regime)
    with pytest.raises(AssertionError, match="differ"):
        llava.check_equal(theirs, other, llava.batch(SMALL))


@pytest.mark.parametrize("way", ["plain loop", "gradient checkpointing", "PEFT and gradient checkpointing"])
def test_bytes_that_an_encoder_keeps(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """0 where ours is frozen; where it trains, as many as Hugging Face's, and more than 0."""
    monkeypatch.setattr(frozen_encoder, "SIZE", SMALL)
    assert frozen_encoder.measured(way, own=True, regime="encoder frozen") == 0
    ours, theirs = (frozen_encoder.measured(way, own=own, regime="all train") for own in (True, False))
    assert ours == theirs > 0


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_page_of_results(tmp_path: Path) -> None:
    """Goals with verdict and cells, the picture, the table with numbers as columns say; nothing from elsewhere."""
    goal = Goal(text="below one", column="ratio", at_most=1.0, bound="bound")
    plot = Plot(kind="bound", values=("ratio", "bound"), names=("size",), line=1.0)
    report(goal, ROWS, plot).finish(tmp_path / "toy.json")
    written = json.loads((tmp_path / "toy.json").read_text())
    assert written["environment"]["versions"].keys() >= {"python", "torch", "transformers"}
    assert written["rows"][0]["seconds"] == {"a": [1.0]}
    made = page.page(page.read(tmp_path))
    assert "✗ missed in 2 of 3" in made
    assert "<li>size m &lt;b&gt;</li><li>size l</li>" in made
    assert '<td class="n">1.30</td><td class="n">0.60</td>' in made
    assert "<code>it</code>" in made
    assert made.count("data:image/svg+xml;base64,") == 1
    assert '<b>"' not in made
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", made)


def test_a_page_of_a_result_that_says_only_what_it_must(tmp_path: Path) -> None:
    """Topic, a goal in words, rows: a table of all plain values. What is no result is passed over."""
    rows = [{"part": "encoder", "off": 0.00123, "raw": [1, 2]}, {"part": "head", "more": 3}]
    (tmp_path / "b.json").write_text(json.dumps({"topic": "forecast", "goal": "within 5 %", "rows": rows}))
    (tmp_path / "a.json").write_text(json.dumps({"something": "else"}))
    made = page.page(page.read(tmp_path))
    assert "Goal: within 5 %" in made
    assert '<td>encoder</td><td class="n">0.00123</td><td class="n"></td>' in made
    assert '<td>head</td><td class="n"></td><td class="n">3</td>' in made
    assert "raw" not in made


def test_bars_and_their_order(tmp_path: Path) -> None:
    """Results come in the order of the scripts; bars are drawn with a row that lacks a figure."""
    goal = Goal(text="below", column="ratio", at_most=2.0)
    plot = Plot(kind="bars", values=("ratio", "bound"), names=("size",), unit="times")
    report(goal, ROWS, plot).finish(tmp_path / "z.json")
    (tmp_path / "a.json").write_text(json.dumps({"topic": "another", "goals": [], "rows": []}))
    results = page.read(tmp_path, order=["toy"])
    assert [result["topic"] for result in results] == ["toy", "another"]
    made = page.page(results)
    assert "Every goal measured here is met." in made
    assert made.count("data:image/svg+xml;base64,") == 1


def test_every_script_of_the_list_is_there() -> None:
    """A module with a `main` for each name, and its docstring names its command."""
    folder = Path(sys.modules["benchmarks"].__path__[0])
    for name in SCRIPTS:
        text = (folder / f"{name}.py").read_text()
        assert f"python -m benchmarks.{name}" in text
        assert "def main() -> int:" in text
