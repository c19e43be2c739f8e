"""`cornstarch data check CONFIG.yaml [--split train] [--output FOLDER] [--workers N] [--any.key value ...]`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cornstarch.cli.arguments import parser, positive
from cornstarch.data.doctor.page import report_as_html
from cornstarch.training.data_check import DataCheck, check_data
from cornstarch.training.folder import write_whole
from cornstarch.training.reading import read_config

_SPLITS = ("train", "validation", "test")
_STOPPED = 130


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code: 1 if a sample cannot be used or a file is damaged, 130 after Ctrl-C.
    """
    parsing = parser(
        "data check",
        "Look at every sample as training would, in parallel, and say which cannot be used and what an epoch comes to. "
        "No weights are read. Every key of the config can be given too, as in `cornstarch train`.",
    )
    parsing.add_argument("config", help="of the training")
    parsing.add_argument("--split", choices=_SPLITS, default="train", help="of the config's data")
    parsing.add_argument("--workers", type=positive, metavar="N", help="processes; one for each CPU if left out")
    parsing.add_argument("--limit", type=positive, metavar="N", help="look at so many samples only, evenly spread")
    parsing.add_argument("--output", metavar="FOLDER", help="write report.html, report.json and leave_out.json there")
    parsing.add_argument(
        "--also", action="append", default=[], metavar="KIND", help="put samples with this warning in leave_out.json"
    )
    options, overrides = parsing.parse_known_args(words)
    config = read_config(options.config, overrides)
    with _Bar() as bar:
        check = check_data(
            config,
            split=options.split,
            workers=options.workers,
            limit=options.limit,
            also=options.also,
            progress=bar.tell,
        )
    if options.output is not None:
        write(check, Path(options.output))  # before whoever reads what is printed may have enough
    print(as_text(check.report))
    if options.output is not None:
        print(f"\nwrote {options.output}: report.html, report.json, leave_out.json")
    elif not check.is_good:
        print("\n--output FOLDER writes a page, all samples, and a list for `leave_out` of the source")
    if check.report["summary"]["partial"]:
        return _STOPPED
    return 0 if check.is_good else 1


class _Bar:
    """A bar, if somebody looks."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, more: int, of: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            quiet = not sys.stderr.isatty()
            self._bar = tqdm(total=of, desc="checking", unit="sample", disable=quiet, dynamic_ncols=True)
        self._bar.update(more)


def write(check: DataCheck, folder: Path) -> None:
    """Write the files of a check.

    Args:
        check: what was found.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # In ASCII, which has escapes for the halves of characters that texts hold.
    write_whole(folder / "report.json", json.dumps(check.report, indent=1) + "\n")
    write_whole(folder / "leave_out.json", json.dumps(check.leave_out, indent=1) + "\n")
    write_whole(folder / "report.html", report_as_html(check.report, check.scan.seen, check.max_length))


def as_text(report: Mapping[str, Any]) -> str:
    """A report for a terminal: what was found by kind, and what an epoch comes to.

    Args:
        report: as report.json has it.

    Returns:
        Lines of text.
    """
    summary, forecast = report["summary"], report["forecast"]
    lines = [
        f"{summary['split']}: {summary['checked']:,} of {summary['of']:,} samples looked at in "
        f"{summary['seconds']:.1f} s; {summary['errors']:,} cannot be used, {summary['broken_files']:,} damaged files, "
        f"{summary['warnings']:,} with warnings only"
    ]
    if summary["partial"]:
        lines.append("PARTIAL: stopped before the end; what was not looked at may be bad, too")
    for kind, known in summary["kinds"].items():
        first = known["first"]
        lines += [
            "",
            f"{known['severity']}  {kind}: {known['count']:,}  ({known['means']})",
            f"  first: {first['name']}: {_line(first['detail'])}",
            f"  to do: {known['remedy']}",
        ]
    if forecast is not None:
        padding, seconds = forecast["padding"]["share"], forecast["compute"]["seconds"]
        compute = f", about {seconds:,.0f} s of computing on this machine" if seconds is not None else ""
        lines += [
            "",
            f"an epoch, by estimate: {forecast['positions_per_epoch']:,} positions, "
            f"{forecast['labelled_tokens_per_epoch']:,} labelled, {padding:.1%} padding, "
            f"{forecast['steps_per_epoch']:,} steps",
            f"the run: {forecast['steps']:,} steps{compute}",
        ]
    return "\n".join("".join(_visible(character) for character in line) for line in lines)


def _line(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= 160 else f"{shown[:160]}..."


def _visible(character: str) -> str:
    """What a terminal may be sent; codes that would move its cursor are shown by number."""
    known = sys.stdout.encoding or "utf-8"
    visible = character if character.isprintable() else f"\\u{ord(character):04x}"
    return visible.encode(known, "backslashreplace").decode(known)
