"""A data set with damage of every kind at known places, in several containers, and the same data set without.

Every second entry is good. Which damage stands where is drawn from a seed; `wrong` says it, whatever the code says.
"""

import io
import json
import random
import struct
import tarfile
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data.containers import write_tar
from tests.training.test_building import PROCESSOR, TEXT, VISION

Row = dict[str, Any]
MAX_LENGTH, MADE_FOR = 330, 300
WHISPER = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 50, "num_mel_bins": 8,
}  # fmt: skip
HEARS = {"class_name": "WhisperFeatureExtractor", "arguments": {"feature_size": 8, "chunk_length": 1}}
# User and assistant take turns, after a system's; anything else is refused.
TEMPLATE = """{% set ns = namespace(next='user') %}{% for m in messages %}{% if m['role'] == 'system' %}
{%- if not loop.first %}{{ raise_exception('a system turn inside') }}{% endif %}
{%- elif m['role'] != ns.next %}{{ raise_exception('roles must alternate') }}
{%- else %}{% set ns.next = 'assistant' if ns.next == 'user' else 'user' %}{% endif %}
{%- if m['role'] == 'assistant' %}{{ 'A: ' + m['content'] + eos_token }}{% else %}{{ m['role'] + ': ' + m['content'] }}
{%- endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"""


@dataclass(kw_only=True)
class Made:
    """A container.

    Attributes:
        source: values for a config.
        wrong: entry to the kind of what is wrong with it.
        broken: files that are damaged.
        folder: where it lies.
    """

    source: dict[str, Any]
    folder: Path
    wrong: dict[int, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def config(made: Made, folder: Path, **data: Any) -> dict[str, Any]:
    """Values of a run on a container."""
    (folder / "template.jinja").write_text(TEMPLATE)
    vision = {"config": VISION, "processor": PROCESSOR}
    return {
        "model": {
            "encoders": {"vision": vision, "audio": {"config": WHISPER, "processor": HEARS}},
            "language_model": {"config": {**TEXT, "max_position_embeddings": MADE_FOR}, "tokenizer": "bytes"},
        },
        "data": {
            "train": made.source,
            "template": str(folder / "template.jinja"),
            "max_length": MAX_LENGTH,
            "limits": {"image_pixels": 6000, "image_ratio": 30, "audio_seconds": 2},
            **data,
        },
        "training": {"epochs": 1, "batch_size": 6, "micro_batch_size": 3, "device": "cpu", "threads": 1},
        "run": {"folder": str(folder / "run"), "trackers": []},
    }


# --- good entries -----------------------------------------------------------------------------------------------------


def picture(number: int, size: tuple[int, int] = (20, 14), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def sound(samples: Any) -> bytes:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.asarray(samples, dtype="<i2").tobytes())
    return data.getvalue()


def noise(number: int, samples: int = 3200) -> Any:
    return np.random.default_rng(number).integers(-9000, 9000, samples)


def put(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return name


def row_of(number: int, folder: Path) -> Row:
    """An image, every third time a sound instead."""
    turns = [{"from": "human", "value": f"<image>\nWhat is {number}?"}, {"from": "gpt", "value": f"It is {number}é."}]
    if number % 3 == 2:
        turns[0]["value"] = f"Listen: <audio> What is {number}?"
        return {"conversations": turns, "audios": [put(folder, f"{number}.wav", sound(noise(number)))]}
    return {"conversations": turns, "images": [put(folder, f"{number}.png", picture(number))]}


def as_messages(row: Row, number: int) -> Row:
    """The same as OpenAI and Hugging Face write it."""
    kind = "audio" if "audios" in row else "image"
    asked = [{"type": kind, kind: row[f"{kind}s"][0]}, {"type": "text", "text": row["conversations"][0]["value"][9:]}]
    answer = row["conversations"][1]["value"]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


# --- damage -----------------------------------------------------------------------------------------------------------

Damage = Callable[[Row, int, Path], Row | bytes]
DAMAGES: list[tuple[str, Damage]] = []


def damage(kind: str) -> Callable[[Damage], Damage]:
    def register(made: Damage) -> Damage:
        DAMAGES.append((kind, made))
        return made

    return register


def seen(row: Row, medium: str) -> Row:
    turns = [{"from": "human", "value": "<image>\n" + row["conversations"][0]["value"][-12:]}, row["conversations"][1]]
    return {"conversations": turns, "images": [medium]}


def heard(row: Row, medium: str) -> Row:
    turns = [{"from": "human", "value": "<audio>\n" + row["conversations"][0]["value"][-12:]}, row["conversations"][1]]
    return {"conversations": turns, "audios": [medium]}


def said(row: Row, question: str | None = None, answer: Any = None) -> Row:
    asked = row["conversations"][0]["value"] if question is None else row["conversations"][0]["value"] + question
    replied = row["conversations"][1]["value"] if answer is None else answer
    return {**row, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": replied}]}


def more(row: Row, turn: Row) -> Row:
    return {**row, "conversations": [*row["conversations"], turn]}


def cut_line(row: Row, number: int, folder: Path) -> bytes:
    return json.dumps(row).encode()[:-9]


def float_wav(samples: Any) -> bytes:
    data = np.asarray(samples, dtype="<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32)
    return head + struct.pack("<4sI", b"data", len(data)) + data


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def of_image(name: str, data: Callable[[int], bytes]) -> Damage:
    return lambda row, number, folder: seen(row, put(folder, f"{number}-{name}", data(number)))


def of_sound(name: str, data: Callable[[int], bytes]) -> Damage:
    return lambda row, number, folder: heard(row, put(folder, f"{number}-{name}", data(number)))


def of_row(change: Callable[[Row], Row | bytes]) -> Damage:
    return lambda row, number, folder: change(row)


def picture_of_colour(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 14), (number % 250, 80, 10)).save(data, "PNG")
    return data.getvalue()


DAMAGES += [
    # media
    ("missing_medium", of_row(lambda row: seen(row, "nowhere.png"))),
    ("outside_folder", of_row(lambda row: seen(row, "../template.jinja"))),
    ("outside_folder", of_row(lambda row: seen(row, "/etc/hostname"))),
    ("address", of_row(lambda row: seen(row, "https://example.invalid/a.png"))),
    ("empty_medium", of_image("empty.png", lambda number: b"")),
    ("empty_medium", of_sound("empty.wav", lambda number: b"")),
    ("empty_medium", of_sound("none.wav", lambda number: sound([]))),
    ("truncated_medium", of_image("half.png", lambda number: half(picture(number)))),
    ("truncated_medium", of_image("half.jpg", lambda number: half(picture(number, (90, 60), "JPEG")))),
    ("truncated_medium", of_sound("half.wav", lambda number: half(sound(noise(number))))),
    ("unreadable_medium", of_image("text.png", lambda number: b"this is no picture at all")),
    ("unreadable_medium", of_sound("text.wav", lambda number: b"this is no sound at all")),
    ("too_large", of_image("large.png", lambda number: picture(number, (120, 90)))),
    ("too_large", of_image("thin.png", lambda number: picture(number, (200, 2)))),
    ("too_large", of_sound("long.wav", lambda number: sound(noise(number, 40000)))),
    ("not_a_number", of_sound("nan.wav", lambda number: float_wav([0.1, float("nan")] * 900))),
    ("silent_sound", of_sound("silent.wav", lambda number: sound([0] * (900 + number)))),
    ("single_colour", of_image("plain.png", picture_of_colour)),
    ("extreme_shape", of_image("wide.png", lambda number: picture(number, (125, 5)))),
    # marks
    ("mark_without_medium", of_row(lambda row: said(seen(row, row_medium(row)), " <image>"))),
    ("medium_without_mark", of_row(lambda row: {**seen(row, row_medium(row)), "images": [row_medium(row)] * 2})),
    ("mark_as_text", of_row(lambda row: said(seen(row, row_medium(row)), " see <video> there"))),
    ("mark_in_text", of_row(lambda row: said(row, " the word <vision> itself"))),
    # conversations
    ("no_turns", of_row(lambda row: {"conversations": []})),
    ("unlabelled", of_row(lambda row: {**row, "conversations": row["conversations"][:1]})),
    ("unlabelled", of_row(lambda row: said(row, " why?" * 100))),
    ("empty_answer", of_row(lambda row: said(row, answer=""))),
    ("cut", of_row(lambda row: said(row, answer="long " * 90))),
    ("beyond_positions", lambda row, number, folder: said({"conversations": said(row)["conversations"]}, None, None)),
    ("unknown_role", of_row(lambda row: more(row, {"from": "x", "value": "y"}))),
    ("refused_by_template", of_row(lambda row: more(row, row["conversations"][1]))),
    # types
    ("wrong_type", of_row(lambda row: said(row, answer=7))),
    ("wrong_type", of_row(lambda row: {"talk": []})),
    ("wrong_type", of_row(lambda row: {**seen(row, "a"), "images": [5]})),
    ("wrong_type", of_row(lambda row: {**row, "conversations": "hello"})),
    ("wrong_type", of_row(lambda row: b"[1, 2]")),
    # text
    ("broken_json", cut_line),
    ("broken_json", of_row(lambda row: b'{"conversations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    ("bad_encoding", of_row(lambda row: json.dumps(said(row, answer="caf#")).encode().replace(b"#", b"\xe9"))),
    ("bad_encoding", of_row(lambda row: said(row, answer="half \ud83d"))),
    ("replacement_character", of_row(lambda row: said(row, " caf\ufffd"))),
    ("mojibake", of_row(lambda row: said(row, " caf\u00c3\u00a9"))),
    ("control_characters", of_row(lambda row: said(row, " a\x00b"))),
]  # fmt: skip


def row_medium(row: Row) -> str:
    """The name of a picture: the row's own, or the first."""
    return str(row["images"][0]) if "images" in row else "0.png"


# --- containers -------------------------------------------------------------------------------------------------------


def jsonl(folder: Path, damaged: bool, seed: int = 0) -> Made:
    """ShareGPT's format, a line each, media in a folder: all damages that such a file can have."""
    media = folder / "media"
    media.mkdir(parents=True)
    made = Made(source={"source": "sharegpt", "path": str(folder / "data.jsonl"), "media": str(media)}, folder=folder)
    order = list(DAMAGES)
    random.Random(seed).shuffle(order)
    lines = []
    for number in range(2 * len(order) + 2):
        row: Row | bytes = row_of(number, media)
        if damaged and number % 2 and number // 2 < len(order):
            kind, change = order[number // 2]
            made.wrong[number] = kind
            row = change(dict(row), number, media)
            if kind == "beyond_positions":
                row = of_length(row, MADE_FOR + 5)
        elif damaged and number == 2 * len(order) + 1:
            row, made.wrong[number] = row_of(4, media), "duplicate"
        lines.append(row if isinstance(row, bytes) else json.dumps(row).encode())
    (folder / "data.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return made


def of_length(row: Any, positions: int) -> Row:
    """A conversation of text with so many positions: a byte each, and the end of the turn."""
    question, answer = "Why?", ""
    own = len("user: \nA: \n") + len(question) + 1
    answer = "x" * (positions - own)
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def messages(folder: Path, damaged: bool, seed: int = 0) -> Made:
    """Messages, in two files of lines."""
    media = folder / "media"
    media.mkdir(parents=True)
    source = {"source": "messages", "path": str(folder / "part-*.jsonl"), "media": str(media)}
    made = Made(source=source, folder=folder)
    changes: list[tuple[str, Callable[[Row], Any]]] = [
        ("unknown_role", lambda row: [{**row["messages"][0], "role": "robot"}, row["messages"][1]]),
        ("wrong_type", lambda row: [{"role": "user", "content": [{"type": "smell"}]}, row["messages"][1]]),
        ("wrong_type", lambda row: [{"role": "user", "content": 5}, row["messages"][1]]),
        ("wrong_type", lambda row: [row["messages"][0], {**row["messages"][1], "tool_calls": ["x"]}]),
        ("mark_without_medium", lambda row: [{"role": "user", "content": [{"type": "image"}]}, row["messages"][1]]),
        ("refused_by_template", lambda row: [row["messages"][1], row["messages"][0]]),
        ("no_turns", lambda row: []),
    ]
    random.Random(seed).shuffle(changes)
    lines = []
    for number in range(2 * len(changes) + 2):
        row = as_messages(row_of(number, media), number)
        if damaged and number % 2 and number // 2 < len(changes):
            made.wrong[number], change = changes[number // 2]
            row = {"messages": change(row)}
        lines.append(json.dumps(row) + "\n")
    middle = len(lines) // 2 + 1
    (folder / "part-0.jsonl").write_text("".join(lines[:middle]))
    (folder / "part-1.jsonl").write_text("".join(lines[middle:]))
    return made


def llava(folder: Path, damaged: bool, seed: int = 0) -> Made:
    """LLaVA's format, one list that is cut off within its last entry."""
    folder.mkdir(parents=True)
    made = Made(source={"source": "llava", "path": str(folder / "data.json"), "media": str(folder)}, folder=folder)
    rows = []
    for number in range(9):
        turns = [
            {"from": "human", "value": f"<image>\nWhat is {number}?"},
            {"from": "gpt", "value": f"It is {number}."},
        ]
        rows.append({"image": put(folder, f"{number}.png", picture(number)), "conversations": turns})
    if damaged:
        rows[1]["image"], rows[3]["image"] = 5, "nowhere.png"
        rows[5]["conversations"] = rows[5]["conversations"][::-1]
        made.wrong = {1: "wrong_type", 3: "missing_medium", 5: "refused_by_template"}
        made.broken = [str(folder / "data.json")]
    text = json.dumps(rows, indent=1)
    (folder / "data.json").write_text(text[:-30] if damaged else text)
    return made


def parquet(folder: Path, damaged: bool, seed: int = 0) -> Made:
    """Images as bytes in two files; the second has a damaged block in its middle."""
    folder.mkdir(parents=True)
    made = Made(source={"source": "caption", "path": str(folder / "part-*.parquet")}, folder=folder)
    rows = [{"image": {"bytes": picture(number), "path": None}, "text": f"It is {number}."} for number in range(12)]
    if damaged:
        rows[1]["image"] = {"bytes": b"", "path": None}
        rows[3]["image"] = {"bytes": half(picture(3)), "path": None}
        rows[4]["text"] = None
        rows[5] = {"image": {"bytes": None, "path": "../a.png"}, "text": "x"}
        made.wrong = {1: "empty_medium", 3: "truncated_medium", 4: "wrong_type", 5: "outside_folder"}
        made.broken = [str(folder / "part-1.parquet")]
    schema = pa.Table.from_pylist(rows).schema
    for name, part in (("part-0", rows[:6]), ("part-1", rows[6:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"{name}.parquet", row_group_size=2)
    if damaged:
        path = folder / "part-1.parquet"
        column = pq.ParquetFile(path).metadata.row_group(1).column(0)
        data = bytearray(path.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        path.write_bytes(bytes(data))
    return made


def arrow(folder: Path, damaged: bool, seed: int = 0) -> Made:
    """A stream of batches, cut off within the third."""
    folder.mkdir(parents=True)
    made = Made(source={"source": "caption", "path": str(folder / "data.arrow")}, folder=folder)
    rows = [{"image": {"bytes": picture(number), "path": None}, "text": f"It is {number}."} for number in range(8)]
    if damaged:
        rows[2]["image"], made.wrong[2] = {"bytes": b"no picture", "path": None}, "unreadable_medium"
        made.broken = [str(folder / "data.arrow")]
    table = pa.Table.from_pylist(rows)
    ends = []
    with open(folder / "data.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for start in range(0, 8, 2):
            writer.write_table(table.slice(start, 2))
            ends.append(file.tell())
    if damaged:
        data = (folder / "data.arrow").read_bytes()
        (folder / "data.arrow").write_bytes(data[: (ends[1] + ends[2]) // 2])
    return made


def tar(folder: Path, damaged: bool, seed: int = 0) -> Made:
    """Two shards of pictures with texts; the second is cut off within a member."""
    folder.mkdir(parents=True)
    made = Made(source={"source": "caption", "path": str(folder / "shard-*.tar")}, folder=folder)
    samples = [{"png": picture(number), "txt": f"It is {number}.".encode()} for number in range(12)]
    if damaged:
        samples[1]["txt"] = b"caf\xe9"
        samples[2] = {"txt": b"no picture"}
        samples[4]["png"] = half(samples[4]["png"])
        samples[5] = {"png": samples[5]["png"], "json": b'{"text": "cut'}
        made.wrong = {1: "bad_encoding", 2: "wrong_type", 4: "truncated_medium", 5: "broken_json"}
        made.broken = [str(folder / "shard-1.tar")]
    write_tar(folder / "shard-0.tar", samples[:6])
    write_tar(folder / "shard-1.tar", samples[6:])
    if damaged:
        with tarfile.open(folder / "shard-1.tar") as shard:
            place = shard.getmember("part/0004.png").offset_data
        data = (folder / "shard-1.tar").read_bytes()
        (folder / "shard-1.tar").write_bytes(data[: place + 100])
    return made


CONTAINERS: dict[str, Callable[..., Made]] = {
    "jsonl": jsonl,
    "messages": messages,
    "llava": llava,
    "parquet": parquet,
    "arrow": arrow,
    "tar": tar,
}
