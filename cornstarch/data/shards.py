"""1b. Rows of WebDataset's tar shards: files of one name are a row, its parts told apart by what follows the dot.

    0001.jpg  0001.txt  0001.json        0002.jpg  0002.txt  ...

Headers are read once, to know where everything is; contents when they are asked for.
"""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cornstarch.data.rows import BrokenFile, Row, broken_files
from cornstarch.errors import ArgumentError

KEY, MEMBERS = "__key__", "__members__"
_KINDS = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"),
    "audio": ("wav", "flac", "mp3", "ogg", "opus", "m4a"),
    "video": ("mp4", "webm", "mkv", "avi", "mov"),
}
_KIND_OF = {ending: kind for kind, endings in _KINDS.items() for ending in endings}
_TEXT = ("txt", "text", "caption", "transcript")
_Member = tuple[str, int, int]  # name, offset, size


class ShardRows:
    """Rows of tar files on this machine.

    Args:
        paths: the files, in order; none compressed.
        salvage: take the rows before the place where a file is damaged.

    Raises:
        ArgumentError: if one cannot be read, without `salvage`; or none holds a file.
    """

    def __init__(self, paths: Sequence[Path], *, salvage: bool = False) -> None:
        self._rows: list[tuple[Path, str, tuple[_Member, ...]]] = []
        self.broken: tuple[BrokenFile, ...] = ()
        for path in paths:
            before, reason = len(self._rows), None
            try:
                with tarfile.open(path, "r:") as shard:
                    self._index(path, shard)
            except (OSError, tarfile.TarError, ValueError) as error:
                reason = f"{path} cannot be read as a tar file that is not compressed: {error}"
            self.broken += broken_files(path, reason, len(self._rows) - before, salvage)
        if not self._rows and not self.broken:
            raise ArgumentError(f"{paths[0]} holds no files")

    def _index(self, path: Path, shard: tarfile.TarFile) -> None:
        """Note the rows of a file; of one that breaks off, those that are known to be whole."""
        members: list[_Member] = []
        last = None
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            key = key_of(member.name)
            if not member.isfile() or member.issparse() or key is None:  # links and folders are none of the row's
                continue
            if key != last and members:
                self._rows.append((path, str(last), tuple(members)))
                members = []
            last = key
            members.append((member.name, member.offset_data, member.size))
        _check_end(path, shard.offset)  # type: ignore[attr-defined]
        if members:
            self._rows.append((path, str(last), tuple(members)))

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """What a row is called in messages."""
        path, key, _ = self._rows[index]
        return f"{path}, sample {key}"

    def row(self, index: int) -> Row:
        """One row; see `Rows`."""
        path, key, members = self._rows[index]
        found = {}
        try:
            with open(path, "rb") as file:
                for name, offset, size in members:
                    file.seek(offset)
                    found[name] = file.read(size)
                    if len(found[name]) != size:
                        raise ArgumentError(f"{self.name(index)}: the tar file ends within {name}")
        except OSError as error:
            raise ArgumentError(f"{path} cannot be read: {error}") from error
        return row_of(key, found, self.name(index))


def _check_end(path: Path, place: int) -> None:
    """Refuse a file that goes on with anything but zeros behind its last member: `tarfile` takes that for its end."""
    with open(path, "rb") as file:
        file.seek(place)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"it is damaged at byte {place:,}")


def key_of(name: str) -> str | None:
    """What a file's name has before the first dot of its last part; None for hidden files."""
    folder, slash, last = name.rpartition("/")
    key, dot, _ = last.partition(".")
    return f"{folder}{slash}{key}" if key and dot else None


def row_of(key: str, members: dict[str, Any], name: str) -> Row:
    """A row of the files with one key.

    Args:
        key: their name without what follows the first dot.
        members: what follows it, or the whole name, to contents.
        name: for messages.

    Returns:
        The fields of a `.json` file; `text` from a `.txt` file; `image`, `audio`, `video` (lists of bytes, by their
        endings) unless the JSON has them; every file under its own ending; and all by their names under `MEMBERS`,
        for JSON that names them.

    Raises:
        ArgumentError: if the JSON is none.
    """
    row: dict[str, Any] = {KEY: key, MEMBERS: {}}
    media: dict[str, list[bytes]] = {}
    told: dict[str, Any] = {}
    for member, data in members.items():
        last = member.rpartition("/")[2]
        ending = last.partition(".")[2] or last
        kind = ending.rpartition(".")[2].lower()
        row[MEMBERS][last] = data
        if kind == "json":
            told |= _object(data, f"{name}: {last}")
            continue
        if kind in _TEXT and isinstance(data, bytes):
            try:
                data = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ArgumentError(f"{name}: {last} is no text: {error}") from error
        row[ending] = data
        if kind in _KIND_OF:
            media.setdefault(_KIND_OF[kind], []).append(data)
        elif kind in _TEXT:
            row.setdefault("text", data)
    return {**media, **row, **told}


def _object(data: Any, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data) if isinstance(data, bytes | str) else data
    except ValueError as error:
        raise ArgumentError(f"{name}: this is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArgumentError(f"{name}: expected an object, found {value!r:.100}")
    return value
