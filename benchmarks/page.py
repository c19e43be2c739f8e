"""One page of all results: goals first, then how to read them, then each topic with its picture and table.

    python -m benchmarks.page [--results benchmarks/results/latest] [--output FILE.html]

It shows every JSON file of the folder that has `topic` and `rows`, and needs nothing but itself to be looked at.
"""

import argparse
import html
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.harness import Row, written

RESULTS = Path(__file__).parent / "results" / "latest"
STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff; max-width: 72em;
       margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.7em; margin-bottom: 0.2em; } h2 { font-size: 1.25em; margin: 2.2em 0 0.4em;
     border-bottom: 1px solid #ddd; padding-bottom: 0.2em; }
p, li { max-width: 56em; } .quiet { color: #666; } code { background: #f3f3f3; padding: 0 0.25em; border-radius: 3px; }
pre { background: #f6f6f6; padding: 0.6em 0.9em; overflow-x: auto; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 0.8em 0; font-size: 14px; }
th, td { text-align: left; padding: 0.28em 0.9em 0.28em 0; border-bottom: 1px solid #eee; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap;
     font-variant-numeric: tabular-nums; }
.met { color: #00583c; font-weight: 600; white-space: nowrap; } .missed { color: #a63c00; font-weight: 600;
     white-space: nowrap; }
tr.bad td { background: #fff4ec; } img { max-width: 100%; margin: 0.6em 0; } summary { cursor: pointer; color: #555; }
"""
READING = """
<p>Times are never absolute, since machines differ and are shared: two ways to do the same work run in turn in one
process, there and back, and what stands here is the ratio of the medians (<code>ratio</code>) and of the shortest
times (<code>minima</code>). Below 1 the first is faster. Where both differ much, something else used the machine:
measure again. Bytes and floating-point operations are exact, and the same everywhere.</p>
<p>The <b>bound</b> is the best ratio that theory allows, from counting operations. The <b>share</b> is bound / ratio:
100&nbsp;% is all there is to gain. A share a little above it means that something was saved which the bound does not
count; much above it, that what is compared with is broken.</p>
<p>A goal holds for a whole sweep. Its <b>figure</b> is that of the <b>worst</b> cell, and it is met if every cell
meets it. A missed goal is listed with every cell that misses it, and its rows are shaded. In pictures of ratios, each
point is a cell: on the line it reaches the bound, in the shaded band 85&nbsp;% of it or better, above it less. Both
axes are logarithmic.</p>
"""


def page(results: Sequence[Row]) -> str:
    """The whole page.

    Args:
        results: with `topic`, `goals` and `rows` each.

    Returns:
        HTML.
    """
    parts = [_head(results), "<h2>Goals</h2>", _goals(results), _missed(results), "<h2>How to read it</h2>", READING]
    parts += [_topic(result) for result in results]
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Cornstarch: benchmarks</title>\n\
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def _head(results: Sequence[Row]) -> str:
    """Title, machine and versions of the first result; loads, if others used the machine."""
    first = next((result["environment"] for result in results if result.get("environment")), {})
    versions = ", ".join(f"{name} {version}" for name, version in (first.get("versions") or {}).items())
    machine = f"{first.get('processor', '')}, {first.get('cores', '?')} cores, {first.get('memory_gib', '?')} GiB"
    lines = [f"{first.get('date', '')[:10]} · {machine} · {versions}"] if first else []
    busy = [result["topic"] for result in results if _load(result) > 1.5]
    if busy:
        lines.append(f"Others used the machine during {', '.join(busy)}: those ratios are noisy.")
    return "<h1>Cornstarch: benchmarks</h1>" + "".join(f'<p class="quiet">{html.escape(line)}</p>' for line in lines)


def _load(result: Row) -> float:
    """How many programs ran at a time, the benchmark among them."""
    found = result.get("environment") or {}
    return float(found.get("load_at_the_end") or 0)


def _goals(results: Sequence[Row]) -> str:
    rows = []
    for result in results:
        for goal in _goals_of(result):
            form = goal.get("form") or _plain(goal.get("figure"))
            kind, verdict = "met", f"✓ met in all {goal.get('of', '')}"
            if not goal.get("met"):
                kind, verdict = "missed", f"✗ missed in {len(goal.get('missed') or [])} of {goal.get('of', '?')}"
            cells = (
                _linked(goal["goal"], result["topic"]), _number(written(goal.get("figure"), form)),
                _number(written(goal.get("bound"), ".3f")), _number(written(goal.get("share"), ".1%")),
                f'<td class="{kind}">{verdict}</td>',
                f"<td>{html.escape(str(goal.get('worst') or ''))}</td>",
            )  # fmt: skip
            rows.append(f"<tr{'' if goal.get('met') else ' class=bad'}>{''.join(cells)}</tr>")
    titles = ("goal", "figure", "bound", "share", "met", "worst cell")
    head = "".join(f"<th{' class=n' if title in titles[1:4] else ''}>{title}</th>" for title in titles)
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _goals_of(result: Row) -> list[Row]:
    """Goals with a verdict; a text alone is none."""
    return [goal for goal in result.get("goals") or [] if isinstance(goal, dict)]


def _missed(results: Sequence[Row]) -> str:
    """Every missed goal and its cells, in words."""
    found = []
    for result in results:
        for goal in _goals_of(result):
            cells = [html.escape(cell) for cell in goal.get("missed") or []]
            if cells:
                listed = "".join(f"<li>{cell}</li>" for cell in cells)
                found.append(f"<p><b>{_marked(goal['goal'])}</b>, missed in:</p><ul>{listed}</ul>")
    return f"<h2>Where goals are missed</h2>{''.join(found)}" if found else "<p>Every goal measured here is met.</p>"


def _topic(result: Row) -> str:
    """A topic's section."""
    paragraphs = (result.get("about") or "").strip().split("\n\n")
    title, about = paragraphs[0].replace("\n", " ").rstrip("."), paragraphs[1:]
    picture = plots.drawn(result)
    image = f'<img alt="{html.escape(title)}" src="{picture}">' if picture else ""
    goals = [goal for goal in result.get("goals") or [] if not isinstance(goal, dict)]
    environment = html.escape(json.dumps(result.get("environment") or {}, indent=1))
    return "\n".join([
        f'<h2 id="{html.escape(result["topic"])}">{html.escape(result["topic"])}: {_marked(title)}</h2>',
        *(f"<p>Goal: {html.escape(str(goal))}</p>" for goal in goals), *_paragraphs(about), image, _table(result),
        f"<details><summary>command, versions, machine</summary><pre>{environment}</pre></details>",
    ])  # fmt: skip


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """Text of a docstring: what is indented is a command."""
    return [
        f"<pre>{html.escape(text.strip())}</pre>" if text.startswith("    ") else f"<p>{_marked(text)}</p>"
        for text in texts
    ]


def _marked(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _table(result: Row) -> str:
    """All rows; without columns, all plain values."""
    rows = result["rows"]
    plain = {key: key for row in rows for key, value in row.items() if not isinstance(value, list | dict)}
    columns = result.get("columns") or [{"key": key, "title": title, "form": ""} for key, title in plain.items()]
    numeric = {c["key"] for c in columns if any(isinstance(row.get(c["key"]), int | float) for row in rows)}
    head = "".join(f"<th{' class=n' if c['key'] in numeric else ''}>{html.escape(c['title'])}</th>" for c in columns)
    bad = {place for goal in _goals_of(result) for place in goal.get("missed_rows") or []}
    lines = []
    for place, row in enumerate(rows):
        texts = [(c["key"], written(row.get(c["key"]), c.get("form") or _plain(row.get(c["key"])))) for c in columns]
        cells = [_number(text) if key in numeric else f"<td>{html.escape(text)}</td>" for key, text in texts]
        lines.append(f"<tr{' class=bad' if place in bad else ''}>{''.join(cells)}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _plain(value: object) -> str:
    return ".4g" if isinstance(value, float) else ""


def _number(text: str) -> str:
    return f'<td class="n">{html.escape(text)}</td>'


def _linked(text: str, topic: str) -> str:
    return f'<td><a href="#{html.escape(topic)}">{_marked(text)}</a></td>'


def read(folder: Path, order: Sequence[str] = ()) -> list[Row]:
    """Results of a folder; topics of an order first, others by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and {"topic", "rows"} <= result.keys():
            goals = result.get("goals", result.get("goal", []))
            found.append({**result, "goals": goals if isinstance(goals, list) else [goals]})
    places = {topic: place for place, topic in enumerate(order)}
    return sorted(found, key=lambda result: places.get(result["topic"], len(places)))


def main() -> int:
    """Write the page."""
    from benchmarks.run import SCRIPTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    output = options.output or options.results / "index.html"
    results = read(options.results, SCRIPTS)
    if not results:
        print(f"no results in {options.results}", file=sys.stderr)
        return 1
    output.write_text(page(results))
    print(f"{len(results)} topics in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
