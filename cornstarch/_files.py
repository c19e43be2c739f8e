"""Sets of files that are replaced as one: a reader finds all of the former set or all of the new one.

A set is written into a hidden folder beside its final place. Renaming that folder is the commit: before it the
former set is whole, after it the new one is. Only then are the files put in their places, and until they all are,
`current` reads them from the committed folder. An interrupted or failed write leaves nothing that is read.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from cornstarch.errors import CheckpointError, CornstarchError

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

Read = TypeVar("Read")
_MOST_READS = 50  # of a folder that is saved into all the while
_DAMAGE = (AttributeError, IndexError, KeyError, TypeError)  # from reading a description that is not as it was written


def _committed(directory: Path, kind: str) -> Path:
    return directory / f".{kind}-committed"


def _listing(directory: Path, kind: str) -> Path:
    return directory / f".{kind}-files.json"


def _listed(directory: Path, kind: str) -> set[str]:
    """The files of the set that is in its places; those of others are not listed and so never removed."""
    try:
        names = json.loads(_listing(directory, kind).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def current(directory: Path, kind: str) -> Path:
    """The folder from which the files of `kind` are to be read."""
    committed = _committed(directory, kind)
    return committed if committed.is_dir() else directory


def read(directory: Path, kind: str, main: str, reader: Callable[[Path], Read]) -> Read:
    """Read a set of files while it may be replaced: what was read meanwhile may be of two sets, and is read again.

    Args:
        directory: where the files belong.
        kind: which set.
        main: a file that every set of this kind has.
        reader: reads the set from the folder it is given.

    Returns:
        What the reader returned for a folder in which nothing changed.

    Raises:
        CheckpointError: if the set is damaged, or was replaced again and again.
        Exception: what the reader raised otherwise.
    """
    for _ in range(_MOST_READS):
        before = _generation(directory, kind, main)
        try:
            result = reader(before[0])
        except Exception as error:
            if _generation(directory, kind, main) != before:
                continue
            if isinstance(error, _DAMAGE) and not isinstance(error, CornstarchError):
                raise CheckpointError(f"{before[0]} is damaged, or of another version: {error!r}") from error
            raise
        else:
            if _generation(directory, kind, main) == before:
                return result
    raise CheckpointError(f"{directory} was saved into again and again while it was read")


def _generation(directory: Path, kind: str, main: str) -> tuple[Path, Any]:
    """Where the files of a set are, and something that changes when they are replaced."""
    folder = current(directory, kind)
    try:
        status = (folder / main).stat()
    except OSError:
        return folder, None
    return folder, (status.st_ino, status.st_mtime_ns)


def strangers(directory: Path, kind: str, names: Iterable[str]) -> list[str]:
    """Which of `names` in a folder are files of others, that replacing the files of `kind` by such would overwrite."""
    return sorted(name for name in set(names) - _listed(directory, kind) if (directory / name).exists())


@contextmanager
def replacing(directory: Path, kind: str, main: str | None = None) -> Iterator[Path]:
    """Replace the files of `kind` in `directory` by what is written into the folder this yields.

    Args:
        directory: where the files belong; made if it is not there. Other files in it are left alone.
        kind: a short name that tells apart several sets in one folder (`model`, `processor`).
        main: for sets that others read who do not know of committed folders: a file without which they read nothing.
            It is gone while the others change places.

    Yields:
        An empty folder to write into. If the block raises, the former set stays and the folder is removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        yield from _replace(directory, kind, main)


def _replace(directory: Path, kind: str, main: str | None) -> Iterator[Path]:
    _settle(directory, kind, main)
    for leftover in directory.glob(f".{kind}-writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{kind}-writing-", dir=directory))
    try:
        yield staging
        names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        _listing(staging, kind).write_text(json.dumps(names), encoding="utf-8")
        for path in staging.rglob("*"):
            flush(path)
        staging.rename(_committed(directory, kind))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    flush(directory)
    _settle(directory, kind, main)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes and threads from replacing files in a folder meanwhile; a killed process lets go."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _settle(directory: Path, kind: str, main: str | None) -> None:
    """Put the files of a committed set in their places; safe to repeat after an interruption at any point."""
    committed = _committed(directory, kind)
    if not committed.is_dir():
        return
    former = _listed(directory, kind)
    new = {path.relative_to(committed).as_posix() for path in committed.rglob("*") if path.is_file()}
    last = [name for name in (main, _listing(directory, kind).name) if name in new]
    if main is not None:
        (directory / main).unlink(missing_ok=True)
        flush(directory)
    for name in sorted(new - set(last)):
        _place(committed / name, directory / name, kind)
    for name in former - new:
        with suppress(OSError, ValueError):
            if (directory / name).parent.resolve().is_relative_to(directory.resolve()):
                (directory / name).unlink()
    for name in last:
        _place(committed / name, directory / name, kind)
    # The committed folder counts as long as it bears its name, so it loses the name before it loses a file.
    done = Path(tempfile.mkdtemp(prefix=f".{kind}-writing-", dir=directory))
    committed.rename(done / "done")
    shutil.rmtree(done, ignore_errors=True)


def _place(file: Path, target: Path, kind: str) -> None:
    """Put a committed file in its place; whoever reads it meanwhile has the former or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{kind}-new")
    aside.unlink(missing_ok=True)
    try:
        os.link(file, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, aside)
    os.replace(aside, target)


def flush(path: Path) -> None:
    """Ask the operating system to put a file or folder on disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # folders cannot be opened on every system
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # nor flushed on every file system; the rename that follows still orders the names
    finally:
        os.close(descriptor)
