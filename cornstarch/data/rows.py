"""1b. Where rows come from: files of JSON, by number and without holding them; other containers in their own files.

A row is what one entry of a container holds, as plain values; `formats.py` reads it as a conversation.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cornstarch.errors import ArgumentError

Row = Mapping[str, Any]


class Rows(Protocol):
    """A container of rows by number. It holds where they are, not what they are."""

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

    Raises:
        ArgumentError: if the file cannot be read, or is no list of entries; a broken line is named. Of a file of lines
            the first and the last are looked at, the others when they are asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        lines = self._path.suffix in (".jsonl", ".ndjson")
        try:
            self._places = _places_of_lines(self._path) if lines else _places_in_list(self._path)
            self._size = self._path.stat().st_size
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"{self._path} cannot be read: {error}") from error
        if not len(self):
            raise ArgumentError(f"{self._path} must hold a list of entries, found none")
        if lines:
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


def _places_in_list(path: Path) -> "array[int]":
    """(start, end, line) in bytes of every entry of a JSON list, flat. The text is held here, and only here."""
    text = path.read_text(encoding="utf-8")
    try:
        return array("q", _entries(text, path))
    except RecursionError as error:
        raise ArgumentError(f"{path}: objects within objects, too deep to read") from error


def _entries(text: str, path: Path) -> Iterator[int]:
    decoder = json.JSONDecoder()
    at = _skip_space(text, 0)
    if text[at : at + 1] != "[":
        _whole(text, path)
        raise ArgumentError(f"{path} must hold a list of entries, found {text[at : at + 60]!r}")
    byte, place, line = len(text[:at].encode()), at, text.count("\n", 0, at) + 1
    at = _skip_space(text, at + 1)
    while text[at : at + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _no_json(path, 1, error) from error
        byte += len(text[place:at].encode())
        line += text.count("\n", place, at)
        size = len(text[at:end].encode())
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
