"""1e. A container of rows and a way to read them -> a source. Which container a path is, it says itself."""

import glob
import random
from collections.abc import Mapping
from pathlib import Path

from cornstarch.data import tables
from cornstarch.data.formats import Reader
from cornstarch.data.media_folder import MediaFolder
from cornstarch.data.rows import JoinedRows, JsonRows, Rows
from cornstarch.data.samples import Sample
from cornstarch.data.shards import ShardRows
from cornstarch.errors import ArgumentError

_JSON = (".json", ".jsonl", ".ndjson")
_TABLES = (".parquet", ".arrow")
_SHARDS = (".tar",)


class RowSource:
    """Conversations in files, in folders or on the hub.

    Args:
        path: a file (`.json`, `.jsonl`, `.parquet`, `.arrow`, `.tar`), a pattern of such with `*`, a folder that
            `datasets.Dataset.save_to_disk` wrote, or a name on the hub.
        format: how rows are read: `llava`, `sharegpt`, `messages`, `cauldron`, `caption`, `transcript`.
        media: the folder that names of media are relative to, and that they may not leave; that of the file if it is
            not given.
        columns: field of the format to what the rows call it.
        prompt: of `caption` and `transcript`: what is asked.
        text_beside_media: keep the text of a question that comes with media; otherwise it is the media alone.
        split: of a data set.
        name: a data set's configuration, on the hub.
        revision: branch, tag or commit on the hub.
        frames_per_second: to take of videos.

    Raises:
        ArgumentError: if it cannot be read; a broken line is named.
        ImportError: if a package that it needs is not installed.
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
    ) -> None:
        folder = MediaFolder(media if media is not None else folder_of(path), frames_per_second)
        self._reader = Reader(
            format=format,
            media=folder,
            columns=dict(columns or {}),
            prompt=prompt,
            text_beside_media=text_beside_media,
        )
        self._rows = open_rows(path, split, name, revision)
        if not len(self._rows):
            raise ArgumentError(f"{path} has no entries")

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, index: int, chance: random.Random) -> Sample:
        """The conversation of one entry, its media as paths or bytes.

        Args:
            index: the entry, from 0.
            chance: not used; nothing here is varied.

        Returns:
            The sample.

        Raises:
            ArgumentError: if the entry is not of the format, or its marks and media do not pair.
            MediaError: if a medium is not there, or lies outside the folder.
        """
        return self._reader.sample(self._rows.row(index), self._rows.name(index))


class LlavaSource(RowSource):
    """Conversations about images in the JSON format of LLaVA's training data.

        [{"id": "7", "image": "7.jpg",
          "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}]

    `image` is a name, a list of names, or absent. Each `<image>` stands for the next image; the line break that sets it
    off from the text is left out. The format is described at
    https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md.

    Args:
        path: a JSON file with a list of entries, one entry a line (`.jsonl`), or any other that `RowSource` takes.
        media: the folder that image names are relative to, and that they may not leave; the file's own by default.

    Raises:
        ArgumentError: if the file cannot be read, or is no list of entries; a broken line is named.
    """

    def __init__(self, path: str | Path, media: str | Path | None = None) -> None:
        super().__init__(path, "llava", media=media)


def open_rows(path: str | Path, split: str = "train", name: str | None = None, revision: str | None = None) -> Rows:
    """The rows of a container.

    Args:
        path: see `RowSource`.
        split: of a data set.
        name: of a data set's configuration.
        revision: on the hub.

    Returns:
        The rows, by number.

    Raises:
        ArgumentError: if it cannot be read.
    """
    files = files_of(path)
    if not files:
        if name is not None or revision is not None or is_hub_name(path):
            return tables.open_on_hub(str(path), name, split, revision)
        raise ArgumentError(f"{path} cannot be read: there is no such file")
    if files[0].is_dir():
        return tables.open_folder(files[0], split)
    kinds = {file.suffix for file in files}
    if len(kinds) > 1 or not kinds <= {*_JSON, *_TABLES, *_SHARDS}:
        raise ArgumentError(
            f"{path} is {' and '.join(sorted(kinds)) or 'of no kind'}; expected files that all end in one of "
            f"{', '.join((*_JSON, *_TABLES, *_SHARDS))}"
        )
    if kinds <= {*_JSON}:
        return JoinedRows([JsonRows(file) for file in files]) if len(files) > 1 else JsonRows(files[0])
    return tables.open_files(files) if kinds <= {*_TABLES} else ShardRows(files)


def files_of(path: str | Path) -> list[Path]:
    """The files that a path or a pattern means, in the order of their names; none for what is not there."""
    if Path(path).exists():
        return [Path(path)]
    return sorted(Path(found) for found in glob.glob(str(path), recursive=True))


def folder_of(path: str | Path) -> Path | None:
    """The folder that media are in if nobody says another: that of the file, or the data set's own."""
    files = files_of(path)
    if not files:
        return None
    return files[0] if files[0].is_dir() else files[0].parent


def is_hub_name(path: str | Path) -> bool:
    """Whether something that is no file can be a data set on the hub: OWNER/NAME, or a name without an ending."""
    text = str(path)
    return text.count("/") <= 1 and not text.startswith((".", "/", "~")) and Path(text).suffix not in (
        *_JSON, *_TABLES, *_SHARDS, ".gz", ".csv", ".txt", ".zip",
    )  # fmt: skip
