"""LLaVA's format, the order of batches, and sounds from files."""

import json
import random
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cornstarch import ArgumentError, Batches, Collator, LlavaSource, MediaError, read_audio, set_template
from tests import parts
from tests.training import toy

CHANCE = random.Random(0)


def entry(image: Any = "a.png", question: str = "<image>\nWhat is this?", **others: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A square."}]
    return {"id": "1", "conversations": turns, **({} if image is None else {"image": image}), **others}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "images" / name)
    return tmp_path


def source(folder: Path, entries: Any, name: str = "data.json") -> LlavaSource:
    text = "\n".join(map(json.dumps, entries)) if name.endswith("l") else json.dumps(entries)
    (folder / name).write_text(text)
    return LlavaSource(folder / name, folder / "images")


# --- LLaVA's format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_entries_become_conversations(folder: Path, name: str) -> None:
    """One image, several by name and order, none; and turns by their roles."""
    entries = [
        entry(),
        entry(["b.png", "a.png"], "Compare <image> with <image>."),
        entry(None, "Hello"),
        entry(None, "Hi")
        | {"conversations": [{"from": "system", "value": "Be kind."}, *entry(None, "Hi")["conversations"]]},
    ]
    found = [source(folder, entries, name).sample(index, CHANCE) for index in range(4)]
    path = str(folder / "images")
    assert [list(sample.media) for sample in found] == [
        [("image", f"{path}/a.png")],
        [("image", f"{path}/b.png"), ("image", f"{path}/a.png")],
        [],
        [],
    ]
    assert [part["type"] for part in found[1].messages[0]["content"]] == ["text", "image", "text", "image", "text"]
    assert [message["role"] for message in found[3].messages] == ["system", "user", "assistant"]
    assert {sample.answer for sample in found} == {"A square."}
    assert f"{name}, entry 1" in found[1].name


@pytest.mark.parametrize(
    "value, texts",
    [
        ("<image>\nWhat?", ["", "What?"]),
        ("What?\n<image>", ["What?", ""]),
        ("<image>\n<image>\n\nWhich?\n", ["", "", "\nWhich?\n"]),
        ("a <image> b", ["a ", " b"]),
    ],
)
def test_a_line_break_beside_a_mark_is_no_text(folder: Path, value: str, texts: list[str]) -> None:
    """One on either side; what else there is stays."""
    names = ["a.png"] * value.count("<image>")
    content = source(folder, [entry(names, value)]).sample(0, CHANCE).messages[0]["content"]
    expected = [part for text in texts for part in ("image", text)][1:]
    assert [part.get("text", "image") for part in content] == [part for part in expected if part]


def test_a_batch_of_them_trains(folder: Path) -> None:
    model, processor = parts.vision_pair()
    set_template(processor.llm_tokenizer)
    entries = [entry(), entry(["b.png", "a.png"], "<image><image>Which?"), entry(None, "Hello")]
    samples = [source(folder, entries).sample(index, CHANCE) for index in range(3)]
    assert model(**Collator(processor)(samples)).loss.isfinite()


@pytest.mark.parametrize(
    "broken, error, message",
    [
        (entry("none.png"), MediaError, r"entry 0: there is no image .*none.png"),
        (entry("../data.json"), MediaError, r"entry 0: the image '../data.json' lies outside"),
        (entry("link.png"), MediaError, r"entry 0: the image 'link.png' lies outside"),
        (entry(None), ArgumentError, r"entry 0: 1 marks <image> but 0 images"),
        (entry(question="What?"), ArgumentError, r"entry 0: 0 marks <image> but 1 images"),
        (entry(7), ArgumentError, r"entry 0: `image` must be a name or a list of names, found 7"),
        ({"image": "a.png"}, ArgumentError, r"entry 0: expected an object with a list `conversations`"),
        ("text", ArgumentError, r"entry 0: expected an object"),
        (entry(None, "x") | {"conversations": [{"from": "cat", "value": "x"}]}, ArgumentError, "a turn is from 'cat'"),
        (entry(None, "x") | {"conversations": [{"from": "gpt"}]}, ArgumentError, "object with `from` and `value`"),
        (entry(None, "x") | {"conversations": [{"from": ["gpt"], "value": "x"}]}, ArgumentError, "a turn is from"),
        (entry(None, "\ud800"), ArgumentError, "half a character"),
        (entry("a\0.png"), MediaError, "a character that no name can have"),
    ],
)
def test_broken_entries_are_named(folder: Path, broken: Any, error: type[Exception], message: str) -> None:
    """When they are asked for; others can be had all the same."""
    outside = folder / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    (folder / "images" / "link.png").symlink_to(outside)
    made = source(folder, [broken, entry()])
    with pytest.raises(error, match=message):
        made.sample(0, CHANCE)
    assert made.sample(1, CHANCE).answer == "A square."


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("data.json", "[{]", r"data.json, line 1: this is no JSON"),
        ("data.jsonl", '{"a": 1}\n{broken\n', r"data.jsonl, line 2: this is no JSON"),
        ("data.json", "{}", r"must hold a list of entries"),
        ("data.json", "[]", r"must hold a list of entries"),
        ("data.json", b"\xff\xfe\x00", r"cannot be read"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, text: Any, message: str) -> None:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArgumentError, match=message):
        LlavaSource(folder / name)
    with pytest.raises(ArgumentError, match="cannot be read"):
        LlavaSource(folder / "nowhere.json")
    with pytest.raises(ArgumentError, match="is no folder"):
        LlavaSource(folder / name, folder / "nowhere")


def test_line_breaks_inside_strings_are_none(folder: Path) -> None:
    """Those of Unicode, which JSON writes as they are."""
    (folder / "data.jsonl").write_text(json.dumps(entry(None, "a\u2028b\x85c"), ensure_ascii=False) + "\n")
    assert LlavaSource(folder / "data.jsonl").sample(0, CHANCE).messages[0]["content"][0]["text"] == "a\u2028b\x85c"


# --- the order of batches ---------------------------------------------------------------------------------------------


def batches(**options: Any) -> Batches:
    _, collator = toy.model_and_collator()
    return Batches(toy.Colours(10), collator, **{"batch_size": 4, **options})


def names(made: Batches, steps: int) -> list[tuple[str, ...]]:
    return [next(made).names for _ in range(steps)]


def test_every_sample_once_an_epoch() -> None:
    """Steps of 4, 4 and 2, in another order every epoch and for every seed, the same for the same seed."""
    found = names(batches(), 6)
    assert [len(step) for step in found] == [4, 4, 2] * 2
    for epoch in (found[:3], found[3:]):
        assert set(Counter(name for step in epoch for name in step).values()) == {1}
    assert found[:3] != found[3:]
    assert found == names(batches(), 6) != names(batches(seed=1), 6)
    assert names(batches(shuffle=False), 3)[0] == tuple(f"colour {index}" for index in range(4))


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_state_is_where_it_stands(at: int) -> None:
    """Another iterator that is given the state yields the same from there on, tensors too."""
    first, second = batches(), batches()
    names(first, at)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(4):
        one, other = next(first), next(second)
        assert one.names == other.names
        assert torch.equal(one.micro_batches[0]["input_ids"], other.micro_batches[0]["input_ids"])


def test_micro_batches_hold_the_same_samples() -> None:
    whole, pieces = next(batches()), next(batches(micro_batch_size=3))
    assert whole.names == pieces.names
    assert [micro["input_ids"].shape[0] for micro in pieces.micro_batches] == [3, 1]


def test_workers_prepare_the_same() -> None:
    """And leave the random numbers that training uses alone."""
    here, ahead = batches(), batches(workers=2)
    before = torch.get_rng_state()
    assert names(here, 5) == names(ahead, 5)
    assert torch.equal(before, torch.get_rng_state())


def test_batches_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="a micro-batch has at least one sample, found 0"):
        batches(micro_batch_size=0)
    for options in ({"batch_size": 0}, {"length_window": 0}):
        with pytest.raises(ArgumentError, match="a step has a sample and a window a step"):
            batches(**options)
    _, collator = toy.model_and_collator()
    with pytest.raises(ArgumentError, match="has no samples"):
        Batches(toy.Colours(0), collator, 2)


# --- sounds -----------------------------------------------------------------------------------------------------------

TONE = np.sin(np.arange(4000) / 8000 * 2 * np.pi * 440).astype(np.float32) * 0.5


def write_wav(path: Path, width: int, channels: int = 1) -> None:
    scaled = (TONE * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        scaled = scaled + 128
    data = b"".join(int(value).to_bytes(width, "little", signed=width > 1) * channels for value in scaled)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, 8000, 0, "NONE", ""))
        file.writeframes(data)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files(tmp_path: Path, width: int, channels: int) -> None:
    """Of every width and number of channels: the tone that was written, to the last bit that it has."""
    write_wav(tmp_path / "a.wav", width, channels)
    assert np.abs(read_audio(tmp_path / "a.wav", 8000) - TONE).max() < 2.0 ** (2 - 8 * width) + 1e-6


def test_other_formats_and_rates(tmp_path: Path) -> None:
    """FLAC through soundfile; at twice the rate the tone is the tone, but for the ends of the filter."""
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", TONE, 8000)
    found = read_audio(tmp_path / "a.flac", 16000)
    expected = np.sin(np.arange(8000) / 16000 * 2 * np.pi * 440) * 0.5
    assert found.dtype == np.float32
    assert np.abs(found - expected)[200:-200].max() < 1e-2


def test_sounds_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "empty.wav").write_bytes(b"")
    write_wav(tmp_path / "a.wav", 2)
    for name in ("broken.wav", "empty.wav", "nowhere.wav"):
        with pytest.raises(MediaError, match=name):
            read_audio(tmp_path / name, 8000)
