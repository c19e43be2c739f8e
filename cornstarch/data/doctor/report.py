"""5d. What a scan came to, as JSON values: a summary, the bad samples, and the list that training can leave out."""

from collections.abc import Collection, Sequence
from typing import Any

from cornstarch.data.doctor.findings import Seen
from cornstarch.data.doctor.kinds import KINDS, Finding
from cornstarch.data.doctor.scan import Scan
from cornstarch.data.files import RowSource
from cornstarch.data.leaving_out import as_values
from cornstarch.data.mixtures import MixtureSource
from cornstarch.data.samples import Source
from cornstarch.data.steps import broken_files


def parts_of(source: Source) -> list[Source]:
    """The sources of a mixture; of another its own."""
    return list(source.sources) if isinstance(source, MixtureSource) else [source]


def number_of(source: Source) -> int:
    """How many samples there are to look at: of a mixture all of every source, however many an epoch has."""
    return sum(map(len, parts_of(source)))


def bad_samples(source: Source, scan: Scan) -> list[dict[str, Any]]:
    """One object for each damaged file, and for each sample with something wrong, its worst first.

    Args:
        source: that was scanned.
        scan: what was seen.

    Returns:
        Objects with `source`, `index` (the entry in its container; None for a file), `name`, `kind`, `severity`,
        `detail`, and `others`: what is wrong besides.
    """
    found = [
        _entry(_path(part), None, file.name, (Finding("broken_file", file.reason),))
        for part in parts_of(source)
        for file in broken_files(part)
    ]
    for seen in scan.seen:
        if seen.findings:
            part, entry = place_of(source, seen.index)
            ordered = sorted(seen.findings, key=lambda finding: not finding.is_error)
            found.append(_entry(_path(part), entry, seen.name, ordered))
    return found


def summary_of(source: Source, scan: Scan, bad: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many samples there are, and how many of each kind are bad.

    Args:
        source: that was scanned.
        scan: what was seen.
        bad: of `bad_samples`.

    Returns:
        The values.
    """
    kinds: dict[str, dict[str, Any]] = {}
    for entry in bad:
        for other in (entry, *entry["others"]):
            known = KINDS[other["kind"]]
            first = {**{key: entry[key] for key in ("source", "index", "name")}, "detail": other["detail"]}
            about = {"severity": known.severity, "count": 0, "means": known.means, "remedy": known.remedy}
            kinds.setdefault(other["kind"], {**about, "first": first})["count"] += 1
    order = sorted(kinds, key=lambda kind: (kinds[kind]["severity"], -kinds[kind]["count"], kind))
    usable = sum(seen.is_usable for seen in scan.seen)
    return {
        "sources": [{"source": _path(part), "samples": len(part)} for part in parts_of(source)],
        "checked": len(scan.seen),
        "chosen": scan.of,
        "of": number_of(source),
        "partial": scan.is_partial,
        "usable": usable,
        "errors": len(scan.seen) - usable,
        "broken_files": sum(entry["kind"] == "broken_file" for entry in bad),
        "warnings": sum(entry["severity"] == "warning" for entry in bad),
        "kinds": {kind: kinds[kind] for kind in order},
        "seconds": scan.seconds,
        "workers": scan.workers,
    }


def leave_out(source: Source, scan: Scan, also: Collection[str] = ()) -> dict[str, Any]:
    """The list of what cannot be used, for `leave_out` of a source.

    Args:
        source: that was scanned.
        scan: what was seen.
        also: kinds of remarks whose samples are left out, too.

    Returns:
        The values of `leave_out.json`. What was left out of the source already stays so.
    """
    entries: dict[int, list[dict[str, Any]]] = {}
    for seen in scan.seen:
        why = [finding for finding in seen.findings if finding.is_error or finding.kind in also]
        if why:
            part, entry = place_of(source, seen.index)
            entries.setdefault(id(part), []).append({"index": entry, "kind": why[0].kind, "detail": why[0].detail})
    listed = []
    for part in parts_of(source):
        if isinstance(part, RowSource):
            former = [{"index": entry, "kind": "left_out_before", "detail": ""} for entry in part.left_out]
            found = sorted([*former, *entries.get(id(part), [])], key=lambda entry: int(entry["index"]))
            listed.append((part.made_of, found, [*part.known_broken, *(file.path for file in part.broken)]))
    return as_values(listed)


def place_of(source: Source, index: int) -> tuple[Source, int]:
    """The source that a sample comes from, and the entry of its container.

    Args:
        source: perhaps a mixture.
        index: of the sample in it.

    Returns:
        Source and entry.
    """
    place = index
    if isinstance(source, MixtureSource):
        number, place = source.place_of(index)
        source = source.sources[number]
    return source, source.entry(place) if isinstance(source, RowSource) else place


def usable(scan: Scan) -> list[Seen]:
    """What was seen of samples that training would take."""
    return [seen for seen in scan.seen if seen.is_usable]


def _path(source: Source) -> str:
    return source.made_of.path if isinstance(source, RowSource) else type(source).__name__


def _entry(path: str, index: int | None, name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    worst, *others = findings
    return {
        "source": path,
        "index": index,
        "name": name,
        "kind": worst.kind,
        "severity": KINDS[worst.kind].severity,
        "detail": worst.detail,
        "others": [{"kind": other.kind, "detail": other.detail} for other in others],
    }
