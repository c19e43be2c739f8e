"""1e. A container of rows and a way to read them -> a source. Which container a path is, it says itself."""

import glob
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from cornstarch.data import tables
from cornstarch.data.formats import Reader
from cornstarch.data.leaving_out import LeftOut, MadeOf, size_of
from cornstarch.data.media_folder import MediaFolder
from cornstarch.data.rows import JoinedRows, JsonRows, Row, Rows
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
        salvage: of files that are damaged take what can be read; otherwise they are errors.
        leave_out: a list of entries that are none of the source's, as `cornstarch data check` writes it. Damaged files
            that it names are salvaged.

    Attributes:
        broken: files that are damaged, but for those that `leave_out` names.
        known_broken: those that it names.
        left_out: entries that it names.
        made_of: what tells whether a list is of this data.

    Raises:
        ArgumentError: if it cannot be read; a broken line is named. Also if the list is of other data.
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
        salvage: bool = False,
        leave_out: str | Path | None = None,
    ) -> None:
        self._reader = make_reader(
            path, format, media, columns, prompt=prompt, text_beside_media=text_beside_media, rate=frames_per_second
        )
        left_out = LeftOut.of(leave_out, str(path), format, split) if leave_out is not None else None
        self.left_out = left_out.entries if left_out is not None else ()
        self.known_broken = left_out.broken if left_out is not None else frozenset()
        self._rows = open_rows(path, split, name, revision, salvage=salvage or bool(self.known_broken))
        self.broken = tuple(file for file in self._rows.broken if file.path not in self.known_broken)
        if self.broken and not salvage:
            raise ArgumentError(f"{self.broken[0].reason}; {leave_out} does not name it, so check the data anew")
        if not len(self._rows):
            raise ArgumentError(f"{path} has no entries" + "".join(f": {file.reason}" for file in self.broken[:1]))
        self.made_of = MadeOf(
            path=str(path), format=format, split=split, rows=len(self._rows), bytes=size_of(files_of(path))
        )
        self._entries: Sequence[int] = range(len(self._rows))
        if left_out is not None:
            self._entries = left_out.rest_of(self.made_of)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, index: int) -> int:
        """Which entry of the container a sample is; another than its index where some are left out."""
        return self._entries[index]

    def sample(self, index: int, chance: random.Random) -> Sample:
        """The conversation of one entry, its media as paths or bytes.

        Args:
            index: from 0, without those that are left out.
            chance: not used; nothing here is varied.

        Returns:
            The sample.

        Raises:
            ArgumentError: if the entry is not of the format, or its marks and media do not pair.
            MediaError: if a medium is not there, or lies outside the folder.
        """
        entry = self._entries[index]
        return self._reader.sample(self._rows.row(entry), self._rows.name(entry))

    def row(self, index: int) -> tuple[Row, str]:
        """The values of a sample's entry as the container has them, and what it is called.

        Args:
            index: as in `sample`.

        Returns:
            Values and name.

        Raises:
            ArgumentError: if the entry cannot be read.
        """
        entry = self._entries[index]
        return self._rows.row(entry), self._rows.name(entry)

    def name(self, index: int) -> str:
        """What a sample is called, before it is read.

        Args:
            index: as in `sample`.

        Returns:
            The name.
        """
        return self._rows.name(self._entries[index])


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


def open_rows(
    path: str | Path,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    *,
    salvage: bool = False,
) -> Rows:
    """The rows of a container.

    Args:
        path: see `RowSource`.
        split: of a data set.
        name: of a data set's configuration.
        revision: on the hub.
        salvage: take what can be read of damaged files; `broken` of the rows names them.

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
        return tables.open_folder(files[0], split, salvage=salvage)
    kinds = {file.suffix for file in files}
    if len(kinds) > 1 or not kinds <= {*_JSON, *_TABLES, *_SHARDS}:
        raise ArgumentError(
            f"{path} is {' and '.join(sorted(kinds)) or 'of no kind'}; expected files that all end in one of "
            f"{', '.join((*_JSON, *_TABLES, *_SHARDS))}"
        )
    if kinds <= {*_JSON}:
        parts = [JsonRows(file, salvage=salvage) for file in files]
        return JoinedRows(parts) if len(parts) > 1 else parts[0]
    if kinds <= {*_TABLES}:
        return tables.open_files(files, salvage=salvage)
    return ShardRows(files, salvage=salvage)


def files_of(path: str | Path) -> list[Path]:
    """The files that a path or a pattern means, in the order of their names; none for what is not there."""
    if Path(path).exists():
        return [Path(path)]
    return sorted(Path(found) for found in glob.glob(str(path), recursive=True))


def make_reader(
    path: str | Path,
    format: str,
    media: str | Path | None,
    columns: Mapping[str, str] | None,
    *,
    prompt: str,
    text_beside_media: bool,
    rate: float,
) -> Reader:
    """What reads the rows of some data as conversations.

    Args:
        path: of the data.
        format: a name in `FORMATS`.
        media: folder with the media; the data's own if None.
        columns: field of the format to what the rows call it.
        prompt: of `caption` and `transcript`: what is asked.
        text_beside_media: whether a question with media keeps its text.
        rate: frames a second to take of videos.

    Returns:
        The reader.

    Raises:
        ArgumentError: for an unknown format, or a folder that is none.
    """
    folder = MediaFolder(media if media is not None else _folder_of(path), rate)
    return Reader(
        format=format, media=folder, columns=dict(columns or {}), prompt=prompt, text_beside_media=text_beside_media
    )


def _folder_of(path: str | Path) -> Path | None:
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
