"""1b. Rows of Parquet, Arrow, and data sets of Hugging Face on disk or on the hub: mapped into memory, not read.

Everything goes through the package `datasets`, which keeps an Arrow copy of what is no Arrow yet in its cache.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cornstarch.data.rescue import rescued
from cornstarch.data.rows import BrokenFile, JoinedRows, Row, Rows, broken_files
from cornstarch.errors import ArgumentError

_KINDS = {".parquet": "parquet", ".arrow": "arrow"}


class TableRows:
    """Rows of a `datasets.Dataset`. Images and sounds in it stay encoded.

    Args:
        table: the data set.
        called: what it is called in messages.
        broken: files of it that are damaged.
    """

    def __init__(self, table: Any, called: str, broken: tuple[BrokenFile, ...] = ()) -> None:
        self._table = table.with_format("arrow")  # plain values; no medium is decoded on the way
        self._called = called
        self.broken = broken

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        """What a row is called in messages."""
        return f"{self._called}, entry {index}"

    def row(self, index: int) -> Row:
        """One row; see `Rows`."""
        row: Row = self._table[index : index + 1].to_pylist()[0]
        return row


def open_files(paths: Sequence[Path], *, salvage: bool = False) -> Rows:
    """Rows of Parquet or Arrow files, all of one kind.

    Args:
        paths: the files, in order.
        salvage: of damaged files, take the blocks that can be read.

    Returns:
        The rows.

    Raises:
        ArgumentError: if one cannot be read, without `salvage`.
        ImportError: if datasets is not installed.
    """
    called = ", ".join(map(str, paths[:1])) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    try:
        return TableRows(_together(paths), called)
    except Exception as error:
        if not salvage and len(paths) > 1:
            for path in paths:  # which of them it is
                _one_file(path, salvage)
        if len(paths) == 1:
            return _salvaged(paths[0], error, salvage)
        if not salvage:
            raise ArgumentError(f"{called} cannot be read: {reason(error)}") from error
    return JoinedRows([_one_file(path, salvage) for path in paths])


def _together(paths: Sequence[Path]) -> Any:
    datasets = library()
    kind = _KINDS[paths[0].suffix]
    if kind == "arrow":
        try:
            return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in paths])
        except ValueError:  # a file in Arrow's other format, of random access
            pass
    return datasets.load_dataset(kind, data_files=[str(path) for path in paths], split="train")


def _one_file(path: Path, salvage: bool) -> TableRows:
    try:
        return TableRows(_together([path]), str(path))
    except Exception as error:
        return _salvaged(path, error, salvage)


def _salvaged(path: Path, error: Exception, salvage: bool) -> TableRows:
    """What can be read of a damaged file; without `salvage`, an error that says how much that is."""
    table = rescued(path, Path(library().config.HF_DATASETS_CACHE))
    why = f"{path} cannot be read: {reason(error)}"
    return TableRows(table, str(path), broken_files(path, why, len(table), salvage))


def open_folder(path: Path, split: str, *, salvage: bool = False) -> Rows:
    """Rows of a data set that `save_to_disk` wrote.

    Args:
        path: the folder.
        split: of a set with several.
        salvage: of damaged files, take the blocks that can be read.

    Returns:
        The rows.

    Raises:
        ArgumentError: if it cannot be read, or has no such split.
        ImportError: if datasets is not installed.
    """
    datasets = library()
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:
        files = _files_of_folder(path, split)
        if not files:
            raise ArgumentError(f"{path} cannot be read as a data set: {reason(error)}") from error
        return JoinedRows([_one_file(file, salvage) for file in files])
    if not isinstance(table, datasets.DatasetDict):
        return TableRows(table, str(path))
    if split not in table:
        raise ArgumentError(f"{path} has no split {split!r}; it has {', '.join(table)}")
    return TableRows(table[split], f"{path}, {split}")


def _files_of_folder(path: Path, split: str) -> list[Path]:
    """The files that a folder says it has of a split; none if it does not say."""
    for folder in (path / split, path):
        try:
            listed = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
            return [folder / entry["filename"] for entry in listed]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def open_on_hub(path: str, name: str | None, split: str, revision: str | None) -> TableRows:
    """Rows of a data set on the hub, downloaded whole.

    Args:
        path: its name.
        name: of a configuration of it.
        split: of it; may be a slice such as `train[:1000]`.
        revision: branch, tag or commit.

    Returns:
        The rows.

    Raises:
        ArgumentError: if there is none, or it cannot be reached.
        ImportError: if datasets is not installed.
    """
    try:
        table = library().load_dataset(path, name, split=split, revision=revision)
    except Exception as error:
        raise ArgumentError(
            f"{path} is no file or folder, and no data set on the hub that can be read: {reason(error)}"
        ) from error
    return TableRows(table, f"{path}, {split}")


def library() -> Any:
    """The package `datasets`.

    Returns:
        The module.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Parquet, Arrow and data sets of Hugging Face need: pip install 'cornstarch[train]'"
        ) from error
    return datasets


def reason(error: Exception) -> str:
    """What an error of another library says, in a line; of one that only says that there was one, that one."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
