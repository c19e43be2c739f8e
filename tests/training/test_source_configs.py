"""The sources that a config can name, up to a run on a mixture with bad samples in it."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cornstarch import ArgumentError, MediaError, MixtureSource, RowSource, make_source, parse_config, to_yaml, train
from cornstarch.cli.main import main
from cornstarch.training.folder import refuse_other_config
from tests.data.test_streams import CONFIG

CHANCE = random.Random(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six captions, of which the third has no image and the fifth one that is none; the limit is 40 x 40."""
    rows = [{"image": f"{number}.png", "text": f"Number {number}."} for number in range(6)]
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "4.png").write_text("none")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(data: Any, *more: str) -> Any:
    return parse_config(CONFIG, ["--data", json.dumps(data), *more])


def test_every_kind_of_source(folder: Path) -> None:
    """Keys reach the source; the config that a run writes has them again."""
    row = {"image": "0.png", "text": "A.", "messages": [{"role": "user", "content": "a"}]}
    row["conversations"] = [{"from": "human", "value": "<image>b"}]
    row["texts"] = [{"user": "a", "assistant": "b"}]
    path = folder / "all.json"
    path.write_text(json.dumps([row]))
    for source in ("llava", "sharegpt", "messages", "cauldron", "caption"):
        entry = {"source": source, "path": str(path), "columns": {"image": "image"}}
        read = config({"train": entry | ({"prompt": "What?"} if source == "caption" else {})})
        assert parse_config(to_yaml(read)) == read
        made = make_source(read.data.train)
        assert isinstance(made, RowSource)
        if source != "messages":  # whose message has no place for the image
            assert next(iter(made.sample(0, CHANCE).media)) == ("image", str(folder / "0.png"))


def test_media_alone(folder: Path) -> None:
    """A config's choice reaches the source."""
    rows = [{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\nb"}]}]
    (folder / "talk.json").write_text(json.dumps(rows))
    for both in (True, False):
        entry = {"source": "llava", "path": str(folder / "talk.json"), "text_beside_media": both}
        read = config({"train": entry})
        assert parse_config(to_yaml(read)) == read
        parts = make_source(read.data.train).sample(0, CHANCE).messages[0]["content"]
        assert [part["type"] for part in parts] == ["image", "text"][: 1 + both]


def test_a_mixture(folder: Path) -> None:
    entries = [{"source": "caption", "path": str(folder / "data.jsonl")}, {"source": "digits", "split": "train"}]
    read = config({"train": {"source": "mixture", "sources": entries, "weights": [1, 3], "when_one_ends": "stop"}})
    assert parse_config(to_yaml(read)) == read
    made = make_source(read.data.train)
    assert isinstance(made, MixtureSource)
    assert made.counts == [6, 18]


@pytest.mark.parametrize(
    "data, message",
    [
        ({"train": {"source": "caption", "pth": "a"}}, "data.train.pth: there is no such field; did you mean 'path'"),
        ({"train": {"source": "llava", "path": "a", "prompt": "b"}}, "prompt: is for caption and transcript"),
        (
            {"train": {"source": "caption", "path": "a", "prompt": "b", "text_beside_media": False}},
            "prompt: stands beside a medium, and `text_beside_media: false` leaves such text out",
        ),
        ({"train": {"source": "csv", "path": "a"}}, "'digits'.*'llava'.*'mixture'"),
        ({"train": {"source": "mixture", "sources": []}}, "sources: at least one"),
        (
            {"train": {"source": "mixture", "sources": [{"source": "caption", "path": "a"}], "weights": [1, 2]}},
            "weights: one for each of 1 sources",
        ),
        (
            {"train": {"source": "mixture", "sources": [{"source": "caption", "pth": "a"}]}},
            r"data.train.sources.0.pth: there is no such field; did you mean 'path'",
        ),
        (
            {"train": {"source": "mixture", "sources": [{"source": "caption", "path": "a", "streaming": True}]}},
            "a stream cannot be mixed",
        ),
        ({"limits": {"image_pixels": 0}}, "image_pixels: must be above 0"),
        ({"bad_samples": "cry"}, "bad_samples: .*'stop', 'skip' or 'replace'"),
    ],
)
def test_configs_that_are_wrong(data: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        config(data)


def run(folder: Path, name: str, *more: str) -> list[dict[str, Any]]:
    """Two epochs over the six captions in steps of three; the lines about bad samples."""
    entry = {"source": "caption", "path": str(folder / "data.jsonl"), "prompt": "What?"}
    data = {"train": entry, "validation": entry, "limits": {"image_pixels": 1600}}
    train(config(data, "--run.folder", str(folder / name), "--evaluation.max_new_tokens", "2", *more))
    text = (folder / name / "bad_samples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_skips_and_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of six in each of two epochs: named in the log, the folder and the metrics, counted at the end."""
    bad = run(folder, "skip", "--data.bad_samples", "skip")
    assert {entry["name"][-7:] for entry in bad} == {"entry 2", "entry 4"}
    assert len(bad) == 4
    assert {entry["kind"] for entry in bad} == {"MediaError"}
    lines = [json.loads(line) for line in (folder / "skip" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("bad_samples", 0) for line in lines) == 4
    assert sum(line.get("samples", 0) for line in lines) == 8
    assert any("eval_loss" in line for line in lines)  # on the four that are good
    errors = capsys.readouterr().err
    assert "entry 2: there is no image" in errors
    assert "entry 4: modality 'vision': image 0" in errors
    assert "bad samples: 4 (4 MediaError), 2 different, 4 left out, 0 replaced" in errors
    assert main(["eval", str(folder / "skip"), "--evaluation.generate", "false"]) == 0
    assert "samples 4 " in capsys.readouterr().out


def test_a_run_replaces(folder: Path) -> None:
    bad = run(folder, "replace", "--data.bad_samples", "replace")
    assert {(entry["name"][-1], entry["replaced_by"][-1]) for entry in bad} == {("2", "3"), ("4", "5")}
    lines = [json.loads(line) for line in (folder / "replace" / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines if "samples" in line] == [3] * 4


def test_a_run_stops(folder: Path) -> None:
    """With an error that names the sample, and the limit if it is one."""
    with pytest.raises(MediaError, match="entry 2: there is no image"):
        run(folder, "stop")
    Image.new("RGB", (16, 16)).save(folder / "2.png")
    Image.new("RGB", (41, 40)).save(folder / "4.png")
    with pytest.raises(MediaError, match=r"entry 4: .* 41 x 40 are 1,640 pixels, the limit image_pixels is 1,600"):
        run(folder, "limit")


def test_a_run_goes_on_with_another_policy_and_other_limits(folder: Path) -> None:
    """But not with other data."""
    entry = {"source": "caption", "path": str(folder / "data.jsonl")}
    (folder / "config.yaml").write_text(to_yaml(config({"train": entry})))
    refuse_other_config(
        folder / "config.yaml", config({"train": entry, "bad_samples": "skip", "limits": {"image_ratio": 3}})
    )
    with pytest.raises(ArgumentError, match=r"data\.train\.columns"):
        refuse_other_config(folder / "config.yaml", config({"train": {**entry, "columns": {"text": "image"}}}))


@pytest.mark.parametrize("name", ["micro_batch_size", "micro_batch_positions", "micro_batch_media"])
def test_a_run_goes_on_with_less_on_the_device_at_once(folder: Path, name: str) -> None:
    """What a run that went out of memory needs; who meets whom in a step may not change."""
    former = config({"train": {"source": "digits", "split": "train"}})
    (folder / "config.yaml").write_text(to_yaml(former))
    refuse_other_config(folder / "config.yaml", replace(former, training=replace(former.training, **{name: 64})))
    other = replace(former, training=replace(former.training, length_window=2))
    with pytest.raises(ArgumentError, match=r"training\.length_window was 1 and is 2"):
        refuse_other_config(folder / "config.yaml", other)
