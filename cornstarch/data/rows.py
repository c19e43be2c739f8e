"""1b. Where rows come from: files of JSON, by number and without holding them; other containers in their own files.

A row is what one entry of a container holds, as plain values; `formats.py` reads it as a conversation.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cornstarch.errors import ArgumentError

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BrokenFile:
    """A file of which only a part can be read, or nothing.

    Attributes:
        path: the file.
        reason: what is wrong with it; begins with the path.
        rows: how many can be read all the same.
    """

    path: str
    reason: str
    rows: int


class Rows(Protocol):
    """A container of rows by number. It holds where they are, not what they are.

    Attributes:
        broken: files of it that are damaged; those of their rows that can be read are among the rows.
    """

    broken: tuple[BrokenFile, ...]

    def __len__(self) -> int:
        """How many rows there are."""

    def row(self, index: int) -> Row:
        """One row.

        Args:
            index: from 0.

        Returns:
            Its values, media not decoded.

        Raises:
            ArgumentError: if it cannot be read.
        """

    def name(self, index: int) -> str:
        """What a row is called in messages."""


class JsonRows:
    """A JSON file with a list of entries, or one entry a line (`.jsonl`, `.ndjson`).

    Args:
        path: the file.
        salvage: take the entries before the place where a list is damaged, and lines as they are. Otherwise of a file
            of lines the first and the last are looked at, the others when they are asked for.

    Raises:
        ArgumentError: without `salvage`, if the file cannot be read, or is no list of entries; a broken line is named.
    """

    def __init__(self, path: str | Path, *, salvage: bool = False) -> None:
        self._path = Path(path)
        lines = self._path.suffix in (".jsonl", ".ndjson")
        self._places, self._size, reason = array("q"), 0, None
        try:
            if lines:
                self._places = _places_of_lines(self._path)
            else:
                self._places, reason = _places_in_list(self._path, salvage)
            self._size = self._path.stat().st_size
        except OSError as error:
            reason = f"{self._path} cannot be read: {error}"
        if reason is None and not len(self):
            reason = f"{self._path} must hold a list of entries, found none"
        self.broken = broken_files(self._path, reason, len(self), salvage)
        if lines and not salvage:
            self._entry(0)
            self._entry(len(self) - 1)

    def __len__(self) -> int:
        return len(self._places) // 3

    def name(self, index: int) -> str:
        """What an entry is called in messages."""
        return f"{self._path}, entry {index}"

    def row(self, index: int) -> Row:
        """One entry; see `Rows`."""
        entry = self._entry(index)
        if not isinstance(entry, Mapping):
            raise ArgumentError(f"{self.name(index)}: expected an object, found {entry!r:.100}")
        return entry

    def _entry(self, index: int) -> Any:
        start, end, line = self._places[3 * index : 3 * index + 3]
        try:
            with open(self._path, "rb") as file:
                file.seek(start)
                data = file.read(end - start)
            if self._path.stat().st_size != self._size:
                raise ArgumentError(f"{self._path} was changed while it was read; start anew")
            return json.loads(data.decode("utf-8"))
        except OSError as error:
            raise ArgumentError(f"{self._path} cannot be read: {error}") from error
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{self._path}, line {line} cannot be read: {error}") from error
        except json.JSONDecodeError as error:
            raise _no_json(self._path, line, error) from error
        except RecursionError as error:
            raise ArgumentError(f"{self._path}, line {line}: objects within objects, too deep to read") from error


class JoinedRows:
    """Several containers, one after the other.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = list(parts)
        self._sizes = [len(part) for part in self._parts]
        self.broken = tuple(file for part in self._parts for file in part.broken)

    def __len__(self) -> int:
        return sum(self._sizes)

    def name(self, index: int) -> str:
        """What a row is called in messages."""
        part, place = self._place(index)
        return part.name(place)

    def row(self, index: int) -> Row:
        """One row; see `Rows`."""
        part, place = self._place(index)
        return part.row(place)

    def _place(self, index: int) -> tuple[Rows, int]:
        for part, size in zip(self._parts, self._sizes, strict=True):
            if index < size:
                return part, index
            index -= size
        raise IndexError(f"there are {len(self)} rows")


def broken_files(path: str | Path, reason: str | None, rows: int, salvage: bool) -> tuple[BrokenFile, ...]:
    """What becomes of a file that is damaged.

    Args:
        path: the file.
        reason: what is wrong with it; None if nothing is.
        rows: how many can be read all the same.
        salvage: they are to be used.

    Returns:
        The file, if it is damaged.

    Raises:
        ArgumentError: for a damaged file, if it is not to be used; the message says how far it can be read.
    """
    if reason is None:
        return ()
    if salvage:
        return (BrokenFile(path=str(path), reason=reason, rows=rows),)
    left = f"; {rows:,} entries of it can be read, which data.bad_samples skip uses" if rows else ""
    raise ArgumentError(f"{reason}{left}")


def _places_of_lines(path: Path) -> "array[int]":
    """(start, end, number) of every line with text in it, flat."""
    places = array("q")
    start, number = 0, 1
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                places.extend((start, start + len(line), number))
            start, number = start + len(line), number + 1
    return places


def _places_in_list(path: Path, salvage: bool) -> tuple["array[int]", str | None]:
    """(start, end, line) in bytes of every entry of a JSON list, flat; and what is wrong behind the last of them.

    The text is held here, and only here. What is no UTF-8 in it is an entry's own affair if the file is to be salvaged.
    """
    data, places = path.read_bytes(), array("q")
    wrong = reason = None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text, wrong = data.decode("utf-8", "surrogateescape"), error
    try:
        for number in _entries(text, path):
            places.append(number)
    except ArgumentError as error:
        reason = str(error)
    except RecursionError:
        reason = f"{path}: objects within objects, too deep to read"
    if wrong is None or (salvage and len(places)):
        return places, reason
    before = next((place for place in range(0, len(places), 3) if places[place + 1] > wrong.start), len(places))
    return places[:before], f"{path} cannot be read: {wrong}"


def _entries(text: str, path: Path) -> Iterator[int]:
    decoder = json.JSONDecoder()
    at = _skip_space(text, 0)
    if text[at : at + 1] != "[":
        _whole(text, path)
        raise ArgumentError(f"{path} must hold a list of entries, found {text[at : at + 60]!r}")
    byte, place, line = _bytes(text[:at]), at, text.count("\n", 0, at) + 1
    at = _skip_space(text, at + 1)
    while text[at : at + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _no_json(path, 1, error) from error
        byte += _bytes(text[place:at])
        line += text.count("\n", place, at)
        size = _bytes(text[at:end])
        yield from (byte, byte + size, line)
        byte, line, place = byte + size, line + text.count("\n", at, end), end
        at = _skip_space(text, end)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
            if text[at : at + 1] == "]":
                _whole(text, path)  # a comma before the end
        elif text[at : at + 1] != "]":
            _whole(text, path)
            break
    if text[_skip_space(text, at + 1) :]:
        _whole(text, path)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _whole(text: str, path: Path) -> None:
    """Have the reader of JSON say what is wrong with a text."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise _no_json(path, 1, error) from error


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _no_json(path: Path, line: int, error: json.JSONDecodeError) -> ArgumentError:
    place = f"{path}, line {line + error.lineno - 1}"
    return ArgumentError(f"{place}: this is no JSON: {error.msg} (column {error.colno})")
