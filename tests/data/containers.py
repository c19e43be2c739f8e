"""The same ten conversations, written in every format and into every container."""

import base64
import io
import json
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]
FORMATS = ("llava", "sharegpt", "messages")


def make_media(folder: Path) -> None:
    """Ten images and ten sounds, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 255, (12 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            noise = np.random.default_rng(number).integers(-9000, 9000, 4000 + 100 * number, dtype=np.int16)
            file.writeframes(noise.tobytes())


def images_of(number: int) -> list[str]:
    """None, one or two images."""
    return [f"{number}.png", f"{(number + 1) % 10}.png"][: number % 3]


def conversation(format: str, number: int, medium: Callable[[str], Any]) -> dict[str, Any]:
    """The row of one conversation; a medium as `medium` writes it."""
    images = [medium(name) for name in images_of(number)]
    question, answer, second = f"What is {number}? é\u2028", f"It is {number * 7}.", "Sure?"
    if format == "messages":
        asked = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
        turns = [
            ("system", "Be kind."),
            ("user", asked),
            ("assistant", answer),
            ("user", second),
            ("assistant", "Yes."),
        ]
        # One type in a column: text as a list of one part, as tables have it.
        return {
            "messages": [
                {"role": role, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}
                for role, content in turns
            ]
        }
    marks = "<image>\n" * len(images)
    turns = [("human", marks + question), ("gpt", answer), ("human", second), ("gpt", "Yes.")]
    conversations = [{"from": said_by, "value": value} for said_by, value in turns]
    if format == "sharegpt":
        return {"system": "Be kind.", "conversations": conversations, "images": images}
    return {"image": images, "conversations": [{"from": "system", "value": "Be kind."}, *conversations]}


def named(name: str) -> str:
    return name


def in_base64(folder: Path) -> Callable[[str], str]:
    return lambda name: base64.b64encode((folder / name).read_bytes()).decode()


def as_uri(folder: Path) -> Callable[[str], str]:
    return lambda name: f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}"


def as_bytes(folder: Path) -> Callable[[str], dict[str, Any]]:
    return lambda name: {"bytes": (folder / name).read_bytes(), "path": None}


# --- containers -------------------------------------------------------------------------------------------------------


def write_json(rows: Rows, folder: Path) -> Path:
    (folder / "data.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder / "data.json"


def write_jsonl(rows: Rows, folder: Path) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    return folder / "data.jsonl"


def write_parquet(rows: Rows, folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet", row_group_size=3)
    return folder / "data.parquet"


def write_two_parquets(rows: Rows, folder: Path) -> Path:
    schema = pa.Table.from_pylist(rows).schema
    for name, part in (("b-00", rows[:4]), ("b-01", rows[4:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"{name}.parquet")
    return folder / "b-*.parquet"


def write_arrow_stream(rows: Rows, folder: Path) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "data.arrow"


def write_arrow_file(rows: Rows, folder: Path) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    return folder / "data.arrow"


def write_disk(rows: Rows, folder: Path) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def write_splits(rows: Rows, folder: Path) -> Path:
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name in ("train", "test")})
    made.save_to_disk(folder / "splits")
    return folder / "splits"


CONTAINERS: dict[str, Callable[[Rows, Path], Path]] = {
    "json": write_json,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "two parquets": write_two_parquets,
    "arrow stream": write_arrow_stream,
    "arrow file": write_arrow_file,
    "disk": write_disk,
    "splits": write_splits,
}


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> Path:
    """A shard: for each sample its parts, by what follows the dot."""
    with tarfile.open(path, "w") as shard:
        for number, parts in enumerate(samples):
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"part/{number:04d}.{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return path
