"""1g. Rows that come one after the other, of what is too large to have: on the hub, or in files, through `datasets`."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cornstarch.data import tables
from cornstarch.data.files import files_of, is_hub_name, make_reader
from cornstarch.data.rows import Row
from cornstarch.data.samples import Sample
from cornstarch.data.shards import KEY, row_of
from cornstarch.errors import ArgumentError

_KINDS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
    ".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset",
}  # fmt: skip
_ADDRESS = "__url__"  # that a row of a shard has of the shard


class Streamed(NamedTuple):
    """A row of a stream, and what it is called."""

    row: Row
    name: str


class StreamSource:
    """Conversations that are read one after the other. Nothing is downloaded ahead or kept.

    Args:
        path: as `RowSource`'s; also `https://` or `hf://` addresses of files.
        format: as there.
        media: as there.
        columns: as there.
        prompt: as there.
        text_beside_media: as there.
        split: as there.
        name: as there.
        revision: as there.
        frames_per_second: as there.
        window: rows that are held and shuffled among each other, then the next so many.

    Raises:
        ArgumentError: if there is nothing to read.
        ImportError: if datasets is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        format: str,
        *,
        media: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        prompt: str = "",
        text_beside_media: bool = True,
        split: str = "train",
        name: str | None = None,
        revision: str | None = None,
        frames_per_second: float = 1.0,
        window: int = 1000,
    ) -> None:
        if window < 1:
            raise ArgumentError(f"a window has at least one row, found {window}")
        self._reader = make_reader(
            path, format, media, columns, prompt=prompt, text_beside_media=text_beside_media, rate=frames_per_second
        )
        self._path, self._split, self._name, self._revision = str(path), split, name, revision
        self.window = window

    def __str__(self) -> str:
        return self._path

    def rows(self) -> Any:
        """The stream from its beginning, as a `datasets.IterableDataset`, which knows where it stands.

        Returns:
            The data set; media in it are not decoded.

        Raises:
            ArgumentError: if it cannot be read.
        """
        datasets = tables.library()
        files = [str(file) for file in files_of(self._path)] or [self._path]
        kind = _KINDS.get(Path(files[0]).suffix)
        try:
            if kind is not None:
                found = datasets.load_dataset(kind, data_files=files, split="train", streaming=True)
            elif is_hub_name(self._path):
                options = {"split": self._split, "revision": self._revision, "streaming": True}
                found = datasets.load_dataset(self._path, self._name, **options)
            else:
                raise ArgumentError(f"expected files that end in one of {', '.join(_KINDS)}, or a name on the hub")
            return found.decode(False) if found.features is not None else found
        except Exception as error:
            raise ArgumentError(f"{self._path} cannot be streamed: {tables.reason(error)}") from error

    def read(self, rows: Iterator[Row], number: int, first: int) -> list[Streamed]:
        """The next rows of a stream.

        Args:
            rows: iterated over.
            number: how many at most.
            first: the number of the first, for their names.

        Returns:
            The rows; fewer where the stream ends.

        Raises:
            ArgumentError: if the stream breaks off.
        """
        try:
            found = list(islice(rows, number))
        except Exception as error:
            raise ArgumentError(f"{self._path} cannot be read on after row {first}: {tables.reason(error)}") from error
        return [Streamed(row, f"{self._path}, row {first + place}") for place, row in enumerate(found)]

    def first(self, number: int) -> list[Streamed]:
        """The first rows, in their order.

        Args:
            number: how many at most.

        Returns:
            The rows.
        """
        return self.read(iter(self.rows()), number, 0)

    def nth(self, number: int) -> Streamed | None:
        """One row, for which those before it are read and forgotten.

        Args:
            number: from 0.

        Returns:
            The row; None if the stream ends before it.
        """
        rows = iter(self.rows())
        for start in range(0, number, self.window):
            self.read(rows, min(self.window, number - start), start)
        found = self.read(rows, 1, number)
        return found[0] if found else None

    def sample(self, place: Streamed) -> Sample:
        """The conversation of a row.

        Args:
            place: the row.

        Returns:
            The sample.

        Raises:
            ArgumentError: if the row is not of the format.
            MediaError: if a medium is not there, or lies outside the folder.
        """
        return self._reader.sample(_plain(place.row, place.name), place.name)

    def following(self, place: Streamed) -> None:
        """Nothing: what comes later in a stream is not there yet."""

    def called(self, place: Streamed) -> str:
        """What a row is called."""
        return place.name


def _plain(row: Row, name: str) -> Row:
    """A row; of a shard, in the form that `shards.py` gives it."""
    if KEY not in row or _ADDRESS not in row:
        return row
    key = str(row[KEY])
    members = {
        f"{key}.{ending}": value["bytes"] if isinstance(value, Mapping) and set(value) == {"bytes", "path"} else value
        for ending, value in row.items()
        if ending not in (KEY, _ADDRESS) and value is not None
    }
    return row_of(key, members, name)
