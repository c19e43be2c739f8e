"""Streams: the same samples as from the files by number, the same order with workers and from any state."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from cornstarch import (
    ArgumentError,
    Budget,
    Collator,
    RowSource,
    StreamBatches,
    StreamSource,
    parse_config,
    set_template,
    train,
)
from tests import parts
from tests.data import containers
from tests.data.containers import conversation, make_media


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    make_media(folder)
    return folder


@pytest.fixture(scope="module")
def collator() -> Collator:
    _, processor = parts.vision_pair()
    set_template(processor.llm_tokenizer)
    return Collator(processor)


def write(container: str, media: Path, folder: Path) -> tuple[str, Path]:
    """Ten captions in several files of a kind; the format, and the pattern."""
    rows = [{"image": {"bytes": (media / f"{n}.png").read_bytes()}, "text": f"Number {n}."} for n in range(10)]
    if container == "tar":
        shards = [{"png": row["image"]["bytes"], "txt": row["text"].encode()} for row in rows]
        for number in range(3):
            containers.write_tar(folder / f"s-{number}.tar", shards[4 * number : 4 * number + 4])
        return "caption", folder / "s-*.tar"
    if container == "two parquets":
        return "caption", containers.write_two_parquets(rows, folder)
    rows = [conversation("llava", number, containers.named) for number in range(10)]
    return "llava", containers.CONTAINERS[container](rows, folder)


def steps(made: StreamBatches, number: int) -> list[Any]:
    return [next(made) for _ in range(number)]


def assert_same(one: Any, other: Any) -> None:
    assert one.names == other.names
    for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("container", ["json", "jsonl", "parquet", "two parquets", "arrow stream", "tar"])
def test_a_stream_is_its_files(container: str, media: Path, collator: Collator, tmp_path: Path) -> None:
    """Unshuffled: every tensor is that of the same rows by number. Shuffled: the same ones, with workers and without,
    and from the state behind any step on, through JSON, into the third epoch."""
    format, path = write(container, media, tmp_path)
    stream = StreamSource(path, format, media=media, window=4)
    whole = RowSource(path, format, media=media)
    plain = StreamBatches(stream, collator, 10, shuffle=False)
    by_number = collator([whole.sample(index, None) for index in range(10)])  # type: ignore[arg-type]
    for batch in (next(plain).micro_batches[0], next(plain).micro_batches[0]):
        assert all(torch.equal(batch[name], by_number[name]) for name in by_number)
    here, ahead = StreamBatches(stream, collator, 3), StreamBatches(stream, collator, 3, workers=2)
    states, wanted = [], []
    for _ in range(10):
        states.append(json.loads(json.dumps(here.state_dict())))
        wanted.append(next(here))
    for one, other in zip(wanted, steps(ahead, 10), strict=True):
        assert_same(one, other)
    ahead.close()
    names = [name for step in wanted[:4] for name in step.names]
    assert len(set(names)) == 10
    assert names != sorted(names)
    assert names != [name for step in wanted[4:8] for name in step.names]
    for at in (1, 2, 3, 4, 7):
        again = StreamBatches(stream, collator, 3)
        again.load_state_dict(states[at])
        for one, other in zip(wanted[at:], steps(again, 10 - at), strict=True):
            assert_same(one, other)


def test_bad_rows_of_a_stream(media: Path, collator: Collator, tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "text": f"Number {n}."} for n in range(6)]
    rows[2]["image"] = "none.png"
    path = containers.write_jsonl(rows, tmp_path)
    stream = StreamSource(path, "caption", media=media)
    step = next(StreamBatches(stream, collator, 6, bad_samples="skip", shuffle=False))
    assert [name[-5:] for name in step.names] == ["row 0", "row 1", "row 3", "row 4", "row 5"]
    assert [entry.name for entry in step.bad] == [f"{path}, row 2"]
    made = StreamBatches(stream, collator, 6)
    for _ in range(2):
        with pytest.raises(ValueError, match="row 2: there is no image"):
            next(made)


def test_streams_that_cannot_be(media: Path, collator: Collator, tmp_path: Path) -> None:
    path = containers.write_jsonl([{"text": "a"}], tmp_path)
    with pytest.raises(ArgumentError, match="no other sample to give"):
        StreamBatches(StreamSource(path, "caption"), collator, 2, bad_samples="replace")
    with pytest.raises(ArgumentError, match="at least one row"):
        StreamSource(path, "caption", window=0)
    for wrong in (tmp_path / "none.jsonl", tmp_path / "a.csv", "nobody/nothing"):
        with pytest.raises(ArgumentError, match=r"cannot be (streamed|read on)"):
            next(StreamBatches(StreamSource(wrong, "caption"), collator, 2))
    path.write_text('{"image": "0.png", "text": "a"}\n{broken')
    with pytest.raises(ArgumentError, match=r"cannot be (streamed|read on)"):
        next(StreamBatches(StreamSource(path, "caption", media=media), collator, 2))
    with pytest.raises(ArgumentError, match="steps of a stream cannot share out samples"):
        train(parse_config(CONFIG, ["--training.length_window", "2"]), source=StreamSource(path, "caption"))
    one = StreamBatches(StreamSource(path, "caption", window=2), collator, 2)
    with pytest.raises(ArgumentError, match="window_size was 3 and is 2"):
        one.load_state_dict({**one.state_dict(), "window_size": 3})


CONFIG = """
model:
  encoders:
    vision:
      config: {model_type: clip_vision_model, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,
               num_attention_heads: 2, image_size: 16, patch_size: 8}
      processor: {class_name: CLIPImageProcessor, arguments: {size: {height: 16, width: 16}, do_center_crop: false}}
  language_model:
    tokenizer: bytes
    config: {model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
training: {steps: 4, batch_size: 3, device: cpu}
"""


def test_a_run_on_a_stream_can_be_gone_on_with(media: Path, tmp_path: Path) -> None:
    """Two steps and two more give the losses of four, one of them with a bad row, which the run's folder names."""
    rows = [{"image": f"{n}.png", "text": f"Number {n}."} for n in range(10)]
    rows[4]["image"] = "none.png"
    path = containers.write_jsonl(rows, tmp_path)
    overrides = [
        *("--data.train", f"{{source: caption, path: {path}, media: {media}, streaming: true, window: 5}}"),
        *("--data.bad_samples", "skip"),
    ]
    whole = parse_config(CONFIG, [*overrides, "--run.folder", str(tmp_path / "whole")])
    train(whole)
    parted = [*overrides, "--run.folder", str(tmp_path / "parted")]
    train(parse_config(CONFIG, [*parted, "--training.steps", "2", "--schedule.name", "constant"]))
    train(parse_config(CONFIG, [*parted, "--run.resume", "true"]))
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parted")
    )
    assert [line["samples"] for line in one] == [line["samples"] for line in other]
    assert sum(line.get("bad_samples", 0) for line in one) == 1
    assert one[0]["loss"] == other[0]["loss"]
    bad = [json.loads(line) for line in (tmp_path / "parted" / "bad_samples.jsonl").read_text().splitlines()]
    assert [(line["name"], line["kind"], line["replaced_by"]) for line in bad] == [
        (f"{path}, row 4", "MediaError", None)
    ]
    for wrong, message in [
        (["--training.steps", "null", "--training.epochs", "1"], "nobody knows how long a stream is"),
        (["--data.bad_samples", "replace"], "a stream has no other sample"),
        (["--data.validation", f"{{source: caption, path: {path}, streaming: true}}"], "cannot be streamed"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            parse_config(CONFIG, [*overrides, *wrong])


def test_budgets(media: Path, tmp_path: Path, collator: Collator) -> None:
    """The steps of a stream are divided by length, too: the same samples, none of its batches above the budget."""
    format, path = write("jsonl", media, tmp_path)
    plain = StreamBatches(StreamSource(path, format, media=media, window=4), collator, 5)
    source = StreamSource(path, format, media=media, window=4)
    found = StreamBatches(source, collator, 5, budget=Budget(positions=250, media=3))
    for wanted, step in zip(steps(plain, 4), steps(found, 4), strict=True):
        assert step.names == wanted.names
        assert len(step.micro_batches) > 1
        assert all(micro["input_ids"].numel() <= 250 for micro in step.micro_batches)
    again = StreamBatches(source, collator, 5, budget=Budget(positions=250, media=3))
    again.load_state_dict(found.state_dict())
    assert next(again).names == next(plain).names
