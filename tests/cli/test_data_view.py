"""`cornstarch data view`, as a person types it: the sample that training would get, by number, from any source."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from cornstarch import Batches, Collator, build_model, make_source, parse_config, train
from cornstarch.cli.data_view import view_of
from cornstarch.cli.main import main
from cornstarch.data.steps import Numbered, Steps
from tests.training.test_run import DIGITS, config


def shown(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> tuple[str, str]:
    assert main(["data", *map(str, words)]) == code
    found = capsys.readouterr()
    return found.out, found.err


def test_the_words_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cornstarch data view" in shown(capsys, code=2)[1]
    assert "cornstarch data view" in shown(capsys, "--help")[0]
    assert "cornstarch data view" in shown(capsys, "vieuw", code=2)[1]
    assert "cornstarch data COMMAND" not in shown(capsys, "view", DIGITS)[0]


def test_in_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain where nobody looks, in colours where somebody does, unless they do not want any."""
    plain, _ = shown(capsys, "view", DIGITS)
    assert plain.endswith("  <vision> x 4 Which digit is written here?↵\n  ⟦zero<eos>⟧\n")
    assert "image 0: 8 x 8 -> pixel_values 3 x 8 x 8, 4 positions" in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    coloured, _ = shown(capsys, "view", DIGITS)
    assert "\x1b[1;4;32mzero<eos>\x1b[0m" in coloured
    assert "▀" in coloured
    monkeypatch.setenv("NO_COLOR", "")
    assert shown(capsys, "view", DIGITS)[0] == plain


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are the batch's; keys of the config can be given; other splits can be looked at."""
    options = ["--sample", 4, "--split", "validation", "--format", "json", "--data.max_length", 20]
    found = json.loads(shown(capsys, "view", DIGITS, *options)[0])
    given = parse_config(DIGITS.read_text(), ["--data.max_length", "40"])
    _, processor = build_model(given.model, given.data.template)
    sample = make_source(given.data.validation).sample(4, random.Random(0))
    batch = Collator(processor)([sample])
    assert [entry["id"] for entry in found["positions"]] == batch["input_ids"][0, :20].tolist()
    assert found["source"] == "data.validation: digits, validation"
    assert found["name"] == sample.name
    assert found["truncated"]["before"] == batch["input_ids"].shape[1]
    assert found["unlabelled"] is not None
    whole = json.loads(shown(capsys, "view", DIGITS, *options[:-2])[0])
    labels = [-100 if entry["label"] is None else entry["label"] for entry in whole["positions"]]
    assert labels == batch["labels"][0].tolist()
    assert whole["truncated"] is None


def test_chance_is_that_of_the_first_epoch() -> None:
    """A source that moves and blanks its images shows them as training does, by the seed."""
    for seed in (0, 5):
        given = parse_config(DIGITS.read_text(), ["--training.seed", str(seed), "--data.train.shift", "2"])
        _, processor = build_model(given.model, given.data.template)
        batches = Batches(make_source(given.data.train), Collator(processor), 5, seed=seed, shuffle=False)
        (batch,) = next(batches).micro_batches
        for index in range(5):
            (medium,) = view_of(given, "train", index).media
            assert torch.equal(medium.tensors["pixel_values"], batch["pixel_values"][index])


def test_as_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, _ = shown(capsys, "view", DIGITS, "--format", "html", "--output", tmp_path / "a.html")
    assert out == f"wrote {tmp_path / 'a.html'}\n"
    printed, _ = shown(capsys, "view", DIGITS, "--format", "html")
    assert printed == (tmp_path / "a.html").read_text(encoding="utf-8")
    assert printed.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("number", [-1, 3798, 10**9])
def test_numbers_that_are_none(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = shown(capsys, "view", DIGITS, "--sample", number, code=1)
    assert error == f"error: there is no sample {number}: the source has 3,798, counted from 0\n"


def test_no_weights_are_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw = torch.Tensor.normal_

    def refuse(tensor: torch.Tensor, *options: Any, **more: Any) -> torch.Tensor:
        assert tensor.is_meta, "weights were drawn"
        return draw(tensor, *options, **more)

    monkeypatch.setattr(torch.Tensor, "normal_", refuse)
    shown(capsys, "view", DIGITS)


# --- one's own data ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A config of captions: two that can be used, one that names no image, one whose image is none, one unanswered."""
    (tmp_path / "media").mkdir()
    for name in ("0.png", "1.png"):
        Image.new("RGB", (12, 8), "red").save(tmp_path / "media" / name)
    (tmp_path / "media" / "2.png").write_bytes(b"no picture")
    rows = [("0.png", "Red."), ("1.png", "Also red."), ("3.png", "Lost."), ("2.png", "Torn.\x1b[31m")]
    lines = [json.dumps({"image": image, "text": text}) for image, text in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    values = yaml.safe_load(DIGITS.read_text())
    own = {
        "source": "caption",
        "path": str(tmp_path / "rows.jsonl"),
        "media": str(tmp_path / "media"),
        "prompt": "What?",
    }
    values["data"] = {"train": own}
    values["optimizer"]["learning_rate"] = 0.001  # which YAML's own rules took for text
    values["evaluation"] = {}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def test_samples_that_cannot_be_used(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words of training, what there is of the sample, and an exit code that says so; in every form."""
    given = parse_config((files / "c.yaml").read_text())
    _, processor = build_model(given.model)
    training = Steps(Numbered(make_source(given.data.train), 0), Collator(processor), 1)
    for number, what in ((2, "3.png; is `media` the folder with the images?"), (3, "image 0 (")):
        options = ["view", files / "c.yaml", "--sample", number]
        expected = str(training[[(0, number)]])
        assert what in expected
        assert f"cannot be used: {expected}\n" in shown(capsys, *options, code=1)[0]
        out, error = shown(capsys, *options, "--format", "json", code=1)
        found = json.loads(out)
        assert found["error"] == expected
        assert found["positions"] == []
        assert error == f"error: {expected}\n"
        assert "This sample cannot be used." in shown(capsys, *options, "--format", "html", code=1)[0]
    assert [entry["error"] for entry in found["media"]] == [found["error"].partition(": ")[2]]
    assert [entry["role"] for entry in found["messages"]] == ["user", "assistant"]
    assert "assistant: Torn.⟨U+001B⟩[31m" in shown(capsys, *options, code=1)[0]
    (files / "rows.jsonl").write_text(json.dumps({"image": "\x1b[31m.png", "text": "Gone."}))
    out, error = shown(capsys, "view", files / "c.yaml", "--format", "json", code=1)
    assert "\x1b" not in out + error
    assert "⟨U+001B⟩[31m.png" in error


def test_samples_that_are_too_large(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For training's micro-batches; what they are like is shown."""
    options = ["view", files / "c.yaml", "--training.micro_batch_positions", 8]
    out, _ = shown(capsys, *options, code=1)
    assert "cannot be used: " in out
    assert "and a micro-batch may have 8 (training.micro_batch_positions)" in out
    assert "⟦Red.<eos>⟧" in out


def test_samples_that_the_language_model_has_no_positions_for(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words of training, which stops there; a sample that is cut can be used."""
    values = yaml.safe_load((files / "c.yaml").read_text())
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    values["model"]["language_model"]["config"] = {"model_type": "gpt2", **sizes}
    values["data"]["train"]["prompt"] = "What is this?"
    (files / "table.yaml").write_text(yaml.safe_dump(values))
    given = parse_config((files / "table.yaml").read_text())
    _, processor = build_model(given.model)
    expected = Steps(Numbered(make_source(given.data.train), 0), Collator(processor), 1)[[(0, 0)]]
    assert "the language model has 16 in its table" in str(expected)
    out, _ = shown(capsys, "view", files / "table.yaml", code=1)
    assert f"cannot be used: {expected}\n" in out
    assert "⟦Red.<eos>⟧" in out
    shown(capsys, "view", files / "table.yaml", "--data.max_length", 16)


def test_the_rest_of_data(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limits, turns and template are those of the config."""
    out, _ = shown(capsys, "view", files / "c.yaml", "--data.limits.image_pixels", 95, code=1)
    assert "the limit image_pixels is 95" in out
    out, _ = shown(capsys, "view", files / "c.yaml", "--data.template", "vicuna")
    assert "USER: <vision> x 4 What? ASSISTANT:⟦ Red.<eos>⟧" in out
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant") * 2]
    (files / "turns.jsonl").write_text(json.dumps({"messages": turns}))
    source = f"{{source: messages, path: {files / 'turns.jsonl'}}}"
    for chosen, expected in (("all", "  u↵\n  ⟦a<eos>⟧u↵\n  ⟦a<eos>⟧"), ("last", "  u↵\n  a<eos>u↵\n  ⟦a<eos>⟧")):
        out, _ = shown(capsys, "view", files / "c.yaml", "--data.train", source, "--data.turns", chosen)
        assert out.endswith(f"{expected}\n")


def test_mixtures(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the number in an epoch that is not shuffled; which source it is of is said."""
    values = yaml.safe_load((files / "c.yaml").read_text())
    values["data"]["train"] = {
        "source": "mixture",
        "sources": [{"source": "digits", "split": "test"}, values["data"]["train"]],
        "weights": [1, 1],
    }
    (files / "mixed.yaml").write_text(yaml.safe_dump(values))
    out = [shown(capsys, "view", files / "mixed.yaml", "--sample", number)[0] for number in (0, 1)]
    assert "of data.train, source 0 of the mixture: digits, test" in out[0]
    assert f"of data.train, source 1 of the mixture: caption, {files / 'rows.jsonl'}" in out[1]
    assert "⟦Red.<eos>⟧" in out[1]


def test_streams(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    options = ["view", files / "c.yaml", "--data.train.streaming", "true", "--data.train.window", "1"]
    assert "⟦Also red.<eos>⟧" in shown(capsys, *options, "--sample", 1)[0]
    for number in (4, -1):
        _, error = shown(capsys, *options, "--sample", number, code=1)
        assert f"there is no sample {number} in {files / 'rows.jsonl'}, a stream" in error


def test_what_is_not_there(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.test must be given" in shown(capsys, "view", files / "c.yaml", "--split", "test", code=1)[1]
    assert "no such" in shown(capsys, "view", files / "c.yaml", "--data.max_lenght", 5, code=1)[1].lower()
    assert "cannot be read" in shown(capsys, "view", files / "nowhere.yaml", code=1)[1]


def test_a_run_begins_with_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run prints of its first sample is what this command shows, in brief."""
    train(config(tmp_path / "run", "--training.steps", "1"))
    lines = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("first sample"))
    assert lines[start : start + 4] == [
        "first sample (digits, train, question 0): 38 positions, 4 of them of inputs, 5 labelled",
        "  image 0: 8 x 8 -> pixel_values 3 x 8 x 8, 4 positions",
        "  reads   <vision> x 4 Which digit is written here?↵⟦zero<eos>⟧",
        "  learns  zero<eos>",
    ]
