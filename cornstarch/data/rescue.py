"""1b1. What can still be read of a damaged table: its blocks, one by one, into an Arrow file in the cache."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC = b"ARROW1"  # that a file of random access begins with; a stream follows, and behind it a table of contents


def rescued(path: Path, cache: Path) -> Any:
    """The blocks of a Parquet or Arrow file that can be read.

    Args:
        path: the file.
        cache: folder for what was read; a file that was rescued before is not read again.

    Returns:
        A `datasets.Dataset`, mapped into memory; of no rows if nothing can be read.
    """
    import datasets
    import pyarrow as pa

    try:
        status = path.stat()
    except OSError:
        return datasets.Dataset.from_dict({})
    known = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = cache / "cornstarch-rescued" / f"{hashlib.sha256(known.encode()).hexdigest()}.arrow"
    if not target.is_file():
        blocks = _of_parquet(path) if path.suffix == ".parquet" else _of_arrow(path)
        first = next(blocks, None)
        if first is None:
            return datasets.Dataset.from_dict({})
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=target.parent)
        try:
            with open(descriptor, "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
                writer.write_table(first)
                for block in blocks:
                    writer.write_table(block)
            os.replace(aside, target)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
    return datasets.Dataset.from_file(str(target))


def _of_parquet(path: Path) -> Iterator[Any]:
    """Groups of rows; none if the end of the file, where they are listed, is lost."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException):
        return
    with file:
        for number in range(file.num_row_groups):
            try:
                yield file.read_row_group(number)
            except (OSError, pa.ArrowException, ValueError):
                continue


def _of_arrow(path: Path) -> Iterator[Any]:
    """Batches up to the first that is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as data:
            if data.read(len(_MAGIC)) != _MAGIC:
                data.seek(0)
            else:
                data.seek(8)  # behind the padding
            with pa.ipc.open_stream(data) as stream:
                for batch in stream:
                    batch.validate(full=True)
                    yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException, ValueError):
        return
