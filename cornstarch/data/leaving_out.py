"""1e1. Lists of entries that are left out of a source: written by a check of the data, and refused for other data."""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cornstarch.errors import ArgumentError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """What tells whether a list is of some data.

    Attributes:
        path: as it was given.
        format: how rows are read.
        split: of a data set.
        rows: that can be read.
        bytes: of the files; 0 of what is on the hub.
    """

    path: str
    format: str
    split: str
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The part of a list that is about one source.

    Attributes:
        file: that the list is in.
        made_of: the data that it is of.
        entries: numbers of the rows that are left out, in order.
        broken: names of damaged files of which only a part is used.
    """

    file: str
    made_of: MadeOf
    entries: tuple[int, ...]
    broken: frozenset[str]

    @classmethod
    def of(cls, file: str | Path, path: str, format: str, split: str) -> "LeftOut":
        """Read the part of a list that is about a source.

        Args:
            file: with the list.
            path: of the source, as it was given when the list was made.
            format: how its rows are read.
            split: of it.

        Returns:
            The part.

        Raises:
            ArgumentError: if there is no such list, or it is of other sources.
        """
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
            found = [_part(str(file), value) for value in values["sources"]] if values["version"] == VERSION else None
        except OSError as error:
            raise ArgumentError(f"leave_out: {file} cannot be read: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"leave_out: `cornstarch data check` did not write {file}: {error!r}") from error
        if found is None:
            raise ArgumentError(f"leave_out: {file} is of version {values['version']}, expected {VERSION}")
        wanted = (path, format, split)
        for part in found:
            if (part.made_of.path, part.made_of.format, part.made_of.split) == wanted:
                return part
        listed = "; ".join(f"{part.made_of.path} ({part.made_of.format})" for part in found) or "nothing"
        raise ArgumentError(
            f"leave_out: {file} is a list of {listed}, not of {path} ({format}): check the data that is trained on"
        )

    def rest_of(self, found: MadeOf) -> Sequence[int]:
        """The numbers of the rows that are left.

        Args:
            found: the data that is there.

        Returns:
            In order.

        Raises:
            ArgumentError: if the list is of other data, or nothing is left.
        """
        if found != self.made_of:
            raise ArgumentError(
                f"leave_out: {self.file} is of {self.made_of.rows:,} rows in {self.made_of.bytes:,} bytes, and "
                f"{found.path} has {found.rows:,} in {found.bytes:,}: the data has changed, so check it anew"
            )
        left_out = set(self.entries)
        rest = array("q", (number for number in range(found.rows) if number not in left_out))
        if not rest:
            raise ArgumentError(f"leave_out: {self.file} leaves nothing of {found.path}")
        return rest


def as_values(parts: Sequence[tuple[MadeOf, Sequence[Mapping[str, Any]], Sequence[str]]]) -> dict[str, Any]:
    """A list as JSON values.

    Args:
        parts: for each source what it is made of, what is left out (`index`, and why), and names of damaged files.

    Returns:
        The values, which `LeftOut.of` reads.
    """
    return {
        "version": VERSION,
        "sources": [
            {**asdict(made_of), "broken": list(broken), "leave_out": list(entries)}
            for made_of, entries, broken in parts
        ],
    }


def size_of(files: Sequence[Path]) -> int:
    """Bytes of files, and of the files in folders.

    Args:
        files: that are there.

    Returns:
        How many.
    """
    inside = (found for file in files for found in (file.rglob("*.arrow") if file.is_dir() else [file]))
    return sum(found.stat().st_size for found in inside if found.is_file() and not found.name.startswith("cache-"))


def _part(file: str, value: Mapping[str, Any]) -> LeftOut:
    made_of = MadeOf(**{name: value[name] for name in ("path", "format", "split", "rows", "bytes")})
    entries = tuple(sorted(entry["index"] for entry in value["leave_out"]))
    if not all(isinstance(entry, int) and 0 <= entry < made_of.rows for entry in entries):
        raise ValueError(f"an index is not from 0 to {made_of.rows - 1}")
    return LeftOut(file=file, made_of=made_of, entries=entries, broken=frozenset(value["broken"]))
