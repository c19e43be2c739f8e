"""5f. The report as one page that needs nothing else: no network, no script; what the data hold is only text on it."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cornstarch._visible import visible
from cornstarch.data.doctor.drawing import histogram
from cornstarch.data.doctor.findings import Seen
from cornstarch.data.doctor.page_style import STYLE
from cornstarch.data.pages import document

_MOST = 1000  # samples that are listed; report.json has all
_LONGEST = 300  # characters of a detail


def report_as_html(report: Mapping[str, Any], seen: Sequence[Seen], max_length: int | None = None) -> str:
    """A report as a page.

    Args:
        report: `summary`, `forecast` and `bad`, as report.json has them.
        seen: of each sample.
        max_length: positions that a sample is cut to.

    Returns:
        HTML, whole in itself.
    """
    summary = report["summary"]
    body = [
        *_header(summary, report["forecast"]),
        *_kinds(summary["kinds"]),
        *_histograms([entry for entry in seen if entry.is_usable], max_length),
        *_forecast(report["forecast"]),
        *_samples(report["bad"]),
    ]
    title = _text(f"data check: {', '.join(entry['source'] for entry in summary['sources'])}")
    return document(title, STYLE, body)


def _header(summary: Mapping[str, Any], forecast: Mapping[str, Any] | None) -> Iterator[str]:
    good = not summary["errors"] and not summary["broken_files"]
    found = f"{summary['errors']:,} of {summary['checked']:,} samples cannot be used"
    yield f"<h1>{'Every sample that was looked at can be used' if good else found}</h1>"
    sources = ", ".join(f"{entry['source']} ({entry['samples']:,})" for entry in summary["sources"])
    took = f"{summary['seconds']:,.1f} s in {_several(max(1, summary['workers']), 'process', 'processes')}"
    yield f'<p class="soft">{_text(summary["split"])}: {_text(sources)}; looked at in {took}</p>'
    if summary["partial"]:
        yield (
            f'<div class="card bad"><b>Partial.</b> The check was stopped: {summary["checked"]:,} of '
            f"{summary['chosen']:,} samples were looked at.</div>"
        )
    elif summary["checked"] < summary["of"]:
        yield f'<p class="soft">{summary["checked"]:,} of {summary["of"]:,} samples, evenly spread.</p>'
    figures = [
        (f"{summary['checked']:,}", "samples looked at", ""),
        (f"{summary['errors']:,}", "cannot be used", "error" if summary["errors"] else ""),
        (f"{summary['broken_files']:,}", "damaged files", "error" if summary["broken_files"] else ""),
        (f"{summary['warnings']:,}", "with warnings only", "warning" if summary["warnings"] else ""),
    ]
    if forecast is not None:
        figures.append((_short(forecast["positions_per_epoch"]), "positions an epoch", ""))
        figures.append((_short(forecast["labelled_tokens_per_epoch"]), "labelled tokens an epoch", ""))
    shown = (f'<div><b class="{colour}">{number}</b>{what}</div>' for number, what, colour in figures)
    yield f'<div class="figures">{"".join(shown)}</div>'


def _kinds(kinds: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>What was found</h2>"
    if not kinds:
        yield '<p class="card">Nothing.</p>'
        return
    yield '<div class="card scroll"><table class="kinds"><thead><tr><th>kind</th><th class="n">samples</th>'
    yield "<th>what it means, and what to do</th><th>the first</th></tr></thead><tbody>"
    for kind, known in kinds.items():
        first = known["first"]
        yield (
            f'<tr><td>{_badge(kind, known["severity"])}</td><td class="n">{known["count"]:,}</td>'
            f"<td>{_text(known['means'])}<br><span class='soft'>{_text(known['remedy'])}</span></td>"
            f"<td><b>{_text(first['name'])}</b><br><span class='soft'>{_text(first['detail'])}</span></td></tr>"
        )
    yield "</tbody></table></div>"


def _histograms(seen: Sequence[Seen], max_length: int | None) -> Iterator[str]:
    if not seen:
        return
    images = [size for entry in seen for size in entry.images]
    drawn: list[tuple[str, list[float], str, float | None]] = [
        ("Positions of a sample", [entry.positions for entry in seen], "positions", max_length),
        ("Labelled tokens of a sample", [entry.labelled for entry in seen], "labelled tokens", None),
        ("Width of images", [width for width, _ in images], "pixels", None),
        ("Height of images", [height for _, height in images], "pixels", None),
        ("Length of sounds", [length for entry in seen for length in entry.sounds], "seconds", None),
        ("Frames of videos", [frames for entry in seen for frames in entry.videos], "frames", None),
    ]
    yield '<h2>Samples that can be used</h2><div class="grid">'
    for title, values, unit, limit in drawn:
        if values:
            marked = f"; the line is data.max_length, {limit:,}" if limit is not None and limit <= max(values) else ""
            middle = sorted(values)[len(values) // 2]
            about = f"{len(values):,} values, median {_number(middle)}, largest {_number(max(values))}{marked}"
            picture = histogram(values, unit, limit)
            yield f'<figure class="card"><h3>{title}</h3>{picture}<figcaption>{about}</figcaption></figure>'
    yield "</div>"


def _forecast(forecast: Mapping[str, Any] | None) -> Iterator[str]:
    if forecast is None:
        return
    padding, compute, ready = forecast["padding"], forecast["compute"], forecast["preparation"]
    speed, share = compute["measured_flops_per_second"], compute["share_of_measured"]
    rows = [
        ("samples an epoch", f"{forecast['usable_samples_per_epoch']:,} of {forecast['samples_per_epoch']:,} usable"),
        ("positions an epoch", f"{forecast['positions_per_epoch']:,}"),
        *((f"of them of {key}", f"{number:,}") for key, number in forecast["positions_of_inputs_per_epoch"].items()),
        ("labelled tokens an epoch", f"{forecast['labelled_tokens_per_epoch']:,}"),
        ("padding", f"{padding['share']:.1%} of {padding['padded_positions_per_epoch']:,} padded positions"),
        ("steps an epoch", f"{forecast['steps_per_epoch']:,} of {padding['batch_size']:,} samples"),
        ("steps in all", f"{forecast['steps']:,} ({forecast['epochs']:.3g} epochs)"),
        (
            "preparing an epoch",
            f"{_time(ready['seconds_per_epoch'])} in {_several(max(1, ready['workers']), 'process', 'processes')}",
        ),
    ]
    if compute["seconds"] is not None:
        rows += [
            ("work an epoch", f"{compute['flops_per_epoch']:.2e} floating-point operations"),
            ("speed of this machine", f"{speed:.2e} a second in a matrix product ({_text(str(compute['device']))})"),
            ("computing an epoch", f"{_time(compute['seconds_per_epoch'])} at {share:.0%} of that speed"),
            ("computing the run", _time(compute["seconds"])),
        ]
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{value}</td></tr>" for name, value in rows)
    notes = "".join(f"<li>{_text(note)}</li>" for note in forecast["assumptions"])
    yield "<h2>Forecast: an estimate</h2>"
    yield f'<div class="card two"><table class="plain">{cells}</table><ul class="soft">{notes}</ul></div>'


def _samples(bad: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not bad:
        return
    ordered = sorted(bad, key=lambda entry: entry["severity"] != "error")  # stable: in the order of the data
    yield "<h2>Samples</h2>"
    if len(bad) > _MOST:
        yield f'<p class="soft">The first {_MOST:,} of {len(bad):,}; report.json has all.</p>'
    yield '<div class="card scroll"><table class="kinds"><thead><tr><th>kind</th><th class="n">entry</th>'
    yield "<th>sample</th><th>detail</th></tr></thead><tbody>"
    for entry in ordered[:_MOST]:
        others = "".join(f"<br>{_text(_cut(other['kind'] + ': ' + other['detail']))}" for other in entry["others"])
        index = f"{entry['index']:,}" if entry["index"] is not None else ""
        yield (
            f'<tr><td>{_badge(entry["kind"], entry["severity"])}</td><td class="n">{index}</td>'
            f"<td>{_text(entry['name'])}</td><td>{_text(_cut(entry['detail']))}<span class='soft'>{others}</span></td>"
            "</tr>"
        )
    yield "</tbody></table></div>"


# --- pieces -----------------------------------------------------------------------------------------------------------


def _badge(kind: str, severity: str) -> str:
    return f'<span class="badge {severity}">{_text(kind)}</span>'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _text(text: str) -> str:
    """Text of the data as it may stand anywhere on a page."""
    return html.escape(visible(text, "\n"), quote=True)


def _several(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def _short(number: int) -> str:
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:,}"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.3g} seconds"
