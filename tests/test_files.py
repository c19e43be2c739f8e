"""Sets of files are replaced as one, whatever interrupts the replacing."""

import os
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cornstarch import CheckpointError, UnknownArgumentError, _files


def write(folder: Path, generation: str, names: tuple[str, ...] = ("a.txt", "deep/b.txt")) -> None:
    with _files.replacing(folder, "set") as staging:
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(generation)


def read(folder: Path) -> dict[str, str]:
    current = _files.current(folder, "set")
    return {
        path.relative_to(current).as_posix(): path.read_text()
        for path in current.rglob("*.txt")
        if not any(part.startswith(".") for part in path.relative_to(current).parts)
    }


def test_replaced_whole_and_others_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.md").write_text("a note between the files of the set")
    write(tmp_path, "one", ("a.txt", "old.txt"))
    write(tmp_path, "two")
    assert read(tmp_path) == {"a.txt": "two", "deep/b.txt": "two"}
    assert (tmp_path / "deep" / "mine.md").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set-files.json", "a.txt", "deep", "mine.json"]


def write_and_fail(folder: Path, error: BaseException) -> None:
    with _files.replacing(folder, "set") as staging:
        (staging / "a.txt").write_text("two")
        raise error


def test_a_failing_write_changes_nothing(tmp_path: Path) -> None:
    """An error, or Ctrl-C, in the middle."""
    write(tmp_path, "one")
    for error in (OSError("no space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_and_fail(tmp_path, error)
        assert read(tmp_path) == {"a.txt": "one", "deep/b.txt": "one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set-files.json", "a.txt", "deep"]


def end_at(call: str, nth: int) -> None:
    """End this process without warning at the n-th call of a function."""
    owner: Any = {"rename": pathlib.Path, "unlink": pathlib.Path, "rmtree": shutil}.get(call, os)
    plain, calls = getattr(owner, call), []

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > nth:
            os._exit(9)
        return plain(*args, **kwargs)

    setattr(owner, call, deadly)


KILLED_AT = ["fsync", "rename", "link", "replace", "unlink", "rmtree"]


@pytest.mark.parametrize("call", KILLED_AT)
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_killed_at_any_point(tmp_path: Path, call: str, nth: int) -> None:
    """Ended without warning at the n-th call of each kind: one whole set is read, and the next write works."""
    write(tmp_path, "one", ("a.txt", "deep/b.txt", "old.txt"))
    child = os.fork()  # a process of its own, without the time that starting one takes
    if child == 0:
        end_at(call, nth)
        write(tmp_path, "two")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    one = {"a.txt": "one", "deep/b.txt": "one", "old.txt": "one"}
    two = {"a.txt": "two", "deep/b.txt": "two"}
    assert read(tmp_path) in (one, two)
    write(tmp_path, "three")
    assert read(tmp_path) == {"a.txt": "three", "deep/b.txt": "three"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".set-files.json"]


def write_for_others(folder: Path, generation: str, names: tuple[str, ...]) -> None:
    with _files.replacing(folder, "set", main="main.txt") as staging:
        for name in ("main.txt", *names):
            (staging / name).write_text(generation)


@pytest.mark.parametrize("call", ["replace", "unlink", "link", "rmtree"])
@pytest.mark.parametrize("nth", [0, 1, 2, 3])
def test_killed_while_others_read(tmp_path: Path, call: str, nth: int) -> None:
    """Who reads the files in their places, and nothing without the main one, finds one whole set or none at all."""
    write_for_others(tmp_path, "one", ("a.txt", "b.txt", "old.txt"))
    child = os.fork()
    if child == 0:
        end_at(call, nth)
        write_for_others(tmp_path, "two", ("a.txt", "b.txt"))
        os._exit(0)
    os.waitpid(child, 0)
    if (tmp_path / "main.txt").exists():
        found = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
        one = dict.fromkeys(("main.txt", "a.txt", "b.txt", "old.txt"), "one")
        assert found in (one, dict.fromkeys(("main.txt", "a.txt", "b.txt"), "two"))
    write_for_others(tmp_path, "three", ("a.txt",))
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {"main.txt": "three", "a.txt": "three"}


def test_files_of_others_are_known(tmp_path: Path) -> None:
    write(tmp_path, "one")
    (tmp_path / "mine.txt").write_text("mine")
    assert _files.strangers(tmp_path, "set", ["a.txt", "mine.txt", "new.txt"]) == ["mine.txt"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def refuse(*args: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path, "one")
    write(tmp_path, "two")
    assert read(tmp_path) == {"a.txt": "two", "deep/b.txt": "two"}


# --- reading ----------------------------------------------------------------------------------------------------------


def both(folder: Path, between: Callable[[], None]) -> list[str]:
    first = (folder / "a.txt").read_text()
    between()
    return [first, (folder / "deep" / "b.txt").read_text()]


def test_a_reader_whose_files_were_replaced_reads_again(tmp_path: Path) -> None:
    """Twice in the middle of a read, and once a file was missed while they were: the last set, whole."""
    write(tmp_path, "one")
    saves = iter(["two", "three"])
    reads = []

    def replace() -> None:
        for generation in saves:
            reads.append(generation)
            write(tmp_path, generation)
            if generation == "two":
                raise KeyError("a file that was not there")
            return

    assert _files.read(tmp_path, "set", "a.txt", lambda folder: both(folder, replace)) == ["three", "three"]
    assert reads == ["two", "three"]


@pytest.mark.parametrize(
    "error, expected",
    [
        (KeyError("format"), CheckpointError),
        (TypeError("list"), CheckpointError),
        (UnknownArgumentError("x"), UnknownArgumentError),
        (FileNotFoundError("a.txt"), FileNotFoundError),
        (ValueError("x"), ValueError),
    ],
)
def test_what_a_reader_raises_of_files_that_stayed(tmp_path: Path, error: Exception, expected: type) -> None:
    """Damage where a description was not as expected; anything else as it is."""
    write(tmp_path, "one")
    calls = []

    def fail(folder: Path) -> None:
        calls.append(folder)
        raise error

    with pytest.raises(expected):
        _files.read(tmp_path, "set", "a.txt", fail)
    assert calls == [tmp_path]


def test_files_that_never_stay(tmp_path: Path) -> None:
    write(tmp_path, "one")
    with pytest.raises(CheckpointError, match="again and again"):
        _files.read(tmp_path, "set", "a.txt", lambda folder: both(folder, lambda: write(tmp_path, "more")))
