"""A sample as it is shown, against one that is written by hand, byte by byte, and against what the collator makes."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models
from torch import nn
from transformers import Siglip2ImageProcessorPil, SiglipImageProcessorPil

from cornstarch import (
    Collator,
    MediaError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    Sample,
    load_run,
    set_template,
    view_as_html,
    view_as_json,
    view_as_text,
    view_sample,
)
from cornstarch.data.pieces_of_text import pieces
from cornstarch.data.view.pictures import originals_of, pictures_of, spectrogram_of, wave_of
from cornstarch.data.viewing import MediumView, SampleView
from cornstarch.models.multimodal_language_model.concatenated_processing import ConcatenatedProcessor
from tests import parts
from tests.models.original_processors import MADE

EOS, MARKS = 258, {"vision": 259, "audio": 260, "speech": 261}
FEATURES = {"vision": 5, "audio": 50}  # positions of an input


@pytest.fixture(scope="module")
def processor() -> MultimodalProcessor:
    _, found = parts.three_modalities()
    set_template(found.llm_tokenizer)
    return found


def image(width: int = 20, height: int = 24, seed: int = 0) -> dict[str, Any]:
    return {"type": "vision", "vision": parts.image(width, height, seed)}


def sound(samples: int = 8000) -> dict[str, Any]:
    return {"type": "audio", "audio": parts.sound(samples)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def sample(*turns: Any, name: str = "one") -> Sample:
    """Turns of user and assistant, one after the other."""
    roles = itertools.cycle(["user", "assistant"])
    messages = tuple({"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False))
    return Sample(messages=messages, name=name)


# --- by hand ----------------------------------------------------------------------------------------------------------


def byte_ids() -> dict[int, int]:
    """Byte to id: the tokenizer's vocabulary is GPT-2's letters for bytes, in the order of their code points."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: byte for byte in plain}
    letters |= {byte: 256 + number for number, byte in enumerate(b for b in range(256) if b not in letters)}
    order = sorted(letters.values())
    return {byte: order.index(letter) for byte, letter in letters.items()}


BYTES = byte_ids()


def written(words: str, learnt: bool) -> list[dict[str, Any]]:
    """The positions of a text: a byte each, the character at the last of its bytes."""
    found = []
    for character in words:
        encoded = character.encode()
        for number, byte in enumerate(encoded, 1):
            shown = character if number == len(encoded) else ""
            label = BYTES[byte] if learnt else None
            found.append({"id": BYTES[byte], "text": shown, "label": label, "modality": None})
    return found


def features(key: str) -> list[dict[str, Any]]:
    return [{"id": MARKS[key], "text": f"<{key}>", "label": None, "modality": key}] * FEATURES[key]


def by_hand(*turns: Any) -> list[dict[str, Any]]:
    """The positions of a conversation in the template `plain`."""
    found = []
    for turn, learnt in zip(turns, itertools.cycle([False, True]), strict=False):
        for part in [text(turn)] if isinstance(turn, str) else turn:
            if part["type"] == "text":
                found += written(part["text"], learnt)
            else:
                found += features(part["type"])
        end = {"id": EOS, "text": "<eos>", "label": EOS, "modality": None}
        found += [end] if learnt else written("\n", False)
    return found


IMAGE = {"key": "vision", "kind": "image", "size": [20, 24], "inputs": {"pixel_values": [3, 16, 16]}}
SOUND = {
    "key": "audio",
    "kind": "audio",
    "seconds": 0.5,
    "sampling_rate": 16000,
    "inputs": {"input_features": [8, 100]},
}


@pytest.mark.parametrize(
    "turns, media",
    [
        (["Why?", "So."], []),
        (["Grüße 日本 👩", "né\n"], []),
        ([[image(), text("What?")], "A ö."], [{**IMAGE, "index": 0, "positions": [[0, 5]]}]),
        (
            [[image(), image(30, 10), sound(), text("?")], "A."],
            [
                {**IMAGE, "index": 0, "positions": [[0, 5]]},
                {**IMAGE, "index": 1, "size": [30, 10], "positions": [[5, 10]]},
                {**SOUND, "index": 0, "positions": [[10, 60]]},
            ],
        ),
        (
            [[sound(), text("a"), image()], [text("b"), image(8, 8)], "c", "d"],
            [
                {**SOUND, "index": 0, "positions": [[0, 50]]},
                {**IMAGE, "index": 0, "positions": [[51, 56]]},
                {**IMAGE, "index": 1, "size": [8, 8], "positions": [[58, 63]]},
            ],
        ),
        (["<eos> <|im_end|> [/INST] <pad>", "<eos>, <bos>"], []),
    ],
    ids=["text", "long characters", "image", "two images and a sound", "in between", "looks special"],
)
def test_positions_and_media(processor: MultimodalProcessor, turns: Any, media: Any) -> None:
    """Ids, texts, labels and modalities, and where every medium is, against the conversation written by hand."""
    found = view_as_json(view_sample(Collator(processor), sample(*turns), source="here", index=7))
    expected = by_hand(*turns)
    assert found["positions"] == expected
    assert found["media"] == media
    assert (found["name"], found["source"], found["index"]) == ("one", "here", 7)
    assert found["truncated"] is found["unlabelled"] is found["error"] is None
    assert found["labelled"] == sum(entry["label"] is not None for entry in expected[1:])
    assert found["inputs"]["input_ids"] == [1, len(expected)]


def test_the_last_turn_alone(processor: MultimodalProcessor) -> None:
    found = view_as_json(view_sample(Collator(processor, turns="last"), sample("a", "b", "c", "d")))
    labels = [(entry["text"], entry["label"] is not None) for entry in found["positions"]]
    assert labels == [(character, False) for character in "a\nb"] + [
        ("<eos>", False), ("c", False), ("\n", False), ("d", True), ("<eos>", True),
    ]  # fmt: skip


def test_what_stands_first_is_not_learnt(processor: MultimodalProcessor) -> None:
    """It has the label that the collator gives it, and is shown as what it is: predicted from nothing."""
    given = Sample(messages=({"role": "assistant", "content": "ab"},), name="one")
    view = view_sample(Collator(processor), given)
    assert [position.label for position in view.positions] == [BYTES[97], BYTES[98], EOS]
    assert view.labelled == 2
    assert view_as_text(view).endswith("  a⟦b<eos>⟧")


@pytest.mark.parametrize("answer", [None, ""])
def test_without_a_label(processor: MultimodalProcessor, answer: str | None) -> None:
    """Shown all the same, and said, in the collator's words."""
    collator = Collator(processor)
    view = view_sample(collator, sample("Nobody answers.") if answer is None else sample(answer))
    assert view.labelled == 0
    assert view.unlabelled is not None
    with pytest.raises(ValueError, match=re.escape(view.unlabelled)):
        collator([sample("Nobody answers.")])
    assert "nothing is learnt: one: no labelled token" in view_as_text(view)
    assert "Nothing is learnt of this sample." in view_as_html(view)


@pytest.mark.parametrize("limit", [1, 4, 5, 7, 11, 12, 13, 18, 62, 63, 68, 69])
def test_cut(processor: MultimodalProcessor, limit: int) -> None:
    """At its end, never through an input; what was left out is said."""
    turns = [[image(), text("What?"), image(), sound()], "Ä."]
    whole, ends = by_hand(*turns), [*range(5, 11), 15, 65, *range(66, 71)]
    after = max([0, *(end for end in ends if end <= limit)])
    collator = Collator(processor, max_length=limit)
    found = view_as_json(view_sample(collator, sample(*turns)))
    assert len(whole) == 70
    assert found["positions"] == whole[:after]
    assert [entry["positions"] for entry in found["media"]] == [
        [list(run)] if run[1] <= after else [] for run in ((0, 5), (10, 15), (15, 65))
    ]
    lost = [(entry["key"], entry["index"]) for entry in found["media"] if not entry["positions"]]
    assert found["truncated"] == {
        "max_length": limit,
        "before": 70,
        "after": after,
        "text": "".join(entry["text"] for entry in whole[after:] if entry["modality"] is None),
        "labelled": sum(entry["label"] is not None for entry in whole[after:]),
        "media": [{"key": key, "index": index} for key, index in lost],
    }
    assert all(not entry["inputs"] for entry in found["media"] if not entry["positions"])
    assert f"cut at {limit}: 70 positions before, {after} after" in view_as_text(view_sample(collator, sample(*turns)))


def test_inputs_without_positions() -> None:
    """Which a function of the caller's own may say; they are not left out."""
    model, _ = parts.vision_pair()
    functions: Any = {"vision": lambda inputs, _: [[5 * (i.width == 20) for i in own] for own in inputs["images"]]}
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), model, functions)
    set_template(processor.llm_tokenizer)
    view = view_sample(Collator(processor), sample([image(8, 8), image(), text("?")], "!"))
    assert [(medium.index, medium.positions, medium.left_out) for medium in view.media] == [
        (1, ((0, 5),), False), (0, (), False),
    ]  # fmt: skip
    assert "image 0: 8 x 8 -> pixel_values 3 x 16 x 16, 0 positions" in view_as_text(view)
    view_as_html(view)


def test_cut_at_the_beginning() -> None:
    """By a tokenizer that truncates there: the first image goes, and keeps its number."""
    _, processor = parts.vision_pair(truncation_side="left")
    set_template(processor.llm_tokenizer)
    turns = [[image(), text("ab"), image()], "c"]
    found = view_as_json(view_sample(Collator(processor, max_length=9), sample(*turns)))
    assert found["positions"] == by_hand(*turns)[-9:]
    assert [(entry["index"], entry["positions"]) for entry in found["media"]] == [(0, []), (1, [[1, 6]])]
    assert found["truncated"]["text"] == "a"


# --- against the collator, for every shape of a model that is imported ------------------------------------------------


def folder_of(name: str, tmp_path_factory: pytest.TempPathFactory, made: dict[str, Path] = {}) -> Path:  # noqa: B006
    if name not in made:
        made[name] = MADE[name](tmp_path_factory.mktemp(name)).folder
    return made[name]


@pytest.mark.parametrize("name", sorted(MADE))
def test_shapes_of_models(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ids and labels are the batch's, texts make up what it is decoded to, media's runs are all positions of inputs and
    no others, and their tensors together are the batch's."""
    _, processor = load_run(folder_of(name, tmp_path_factory), weights=False)
    (key,) = processor.tokens
    kind = "audio" if key == "audio" else "image"
    items = [parts.sound(8000), parts.sound(3000)] if kind == "audio" else [parts.image(96, 64), parts.image(60, 80)]
    content = [*({"type": kind, kind: item} for item in items), text("word1 word2")]
    collator, given = Collator(processor), sample(content, "word3")
    view = view_sample(collator, given)
    batch = collator([given])
    ids = batch["input_ids"][0].tolist()
    assert [position.id for position in view.positions] == ids
    assert [-100 if p.label is None else p.label for p in view.positions] == batch["labels"][0].tolist()
    whole = processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert "".join(position.text for position in view.positions) == whole
    runs = [run for medium in view.media for run in medium.positions]
    covered = [place for start, end in runs for place in range(start, end)]
    assert covered == [place for place, token_id in enumerate(ids) if token_id == processor.token_ids[key]]
    assert covered == [place for place, position in enumerate(view.positions) if position.modality == key]
    assert [medium.index for medium in view.media] == [0, 1]
    for tensor in ("pixel_values", "input_features", "image_grid_thw", "image_sizes"):
        if tensor in batch:
            parts_of_it = torch.cat([medium.tensors[tensor].flatten() for medium in view.media])
            assert torch.equal(parts_of_it, batch[tensor].flatten()), tensor


def test_tiles(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Idefics 3: a run for each tile, in the order of the signs before them, and a picture for each run."""
    _, processor = load_run(folder_of("idefics3", tmp_path_factory), weights=False)
    given = sample([{"type": "image", "image": parts.image(96, 96)}, text("word1")], "word2")
    view = view_sample(Collator(processor), given)
    (medium,) = view.media
    signs = [view.positions[start - 1].text for start, _ in medium.positions]
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    assert signs == [*tiles, "<global-img>"]
    assert {end - start for start, end in medium.positions} == {4}
    assert len(pictures_of(medium, view.processors["vision"])) == 5
    assert "20 positions in 5 runs" in view_as_text(view)
    assert view_as_html(view).count('class="run"') == 5


class Frames:
    """A video processor that needs nothing that is not installed: every frame as it is."""

    def __call__(self, videos: Any, return_tensors: Any = None) -> dict[str, Any]:
        stacked = [np.stack([np.asarray(frame) for frame in video]) for video in videos]
        return {"pixel_values_videos": torch.tensor(np.stack(stacked)).permute(0, 1, 4, 2, 3).float() / 255}


class RowsOfFrames(nn.Module):
    """Two rows for every frame."""

    hidden_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 16)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        return self.layer(pixel_values_videos.mean((3, 4))).repeat_interleave(2, dim=1)


def test_video() -> None:
    model = MultimodalModel({"clip": ModalEncoderModule(RowsOfFrames())}, parts.llama())
    processor = MultimodalProcessor({"clip": Frames()}, parts.tokenizer(), model)
    set_template(processor.llm_tokenizer)
    frames = [parts.image(12, 10, seed) for seed in range(3)]
    view = view_sample(Collator(processor), sample([{"type": "video", "video": frames}, text("?")], "!"))
    (found,) = view_as_json(view)["media"]
    assert found == {
        "key": "clip", "kind": "video", "index": 0, "size": [12, 10], "frames": 3,
        "inputs": {"pixel_values_videos": [3, 3, 10, 12]}, "positions": [[0, 6]],
    }  # fmt: skip
    shown = pictures_of(view.media[0], processor.encoder_processors["clip"])
    for frame, pixels in zip(frames, shown, strict=True):
        assert np.array_equal(np.asarray(frame), pixels)
    assert "video 0: 3 frames of 12 x 10 -> pixel_values_videos 3 x 3 x 10 x 12, 6 positions" in view_as_text(view)


# --- pictures ---------------------------------------------------------------------------------------------------------


def smooth(width: int, height: int) -> Image.Image:
    """No two places alike, and nothing that resizing to another size would lose."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1).astype(np.uint8))


def shown_by(processor: Any, picture: Image.Image, **names: str) -> list[np.ndarray]:
    made = processor(images=[picture], return_tensors="pt")
    tensors = {name: value[0] if value.shape[0] == 1 else value for name, value in made.items()}
    return pictures_of(MediumView(key="vision", kind="image", index=0, tensors=tensors, item=picture), processor)


def test_pictures_are_what_was_normalised() -> None:
    """Of a picture that is of the right size already, to a grey level: CLIP's planes, and SigLIP 2's patches."""
    for processor, size in (
        (parts.clip_processor(32), (32, 32)),
        (SiglipImageProcessorPil(size={"height": 24, "width": 40}), (40, 24)),
        (Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24), (48, 32)),
    ):
        (found,) = shown_by(processor, smooth(*size))
        assert found.shape == (size[1], size[0], 3)
        assert np.abs(found.astype(int) - np.asarray(smooth(*size)).astype(int)).max() <= 1


def test_pictures_of_merged_patches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Qwen-VL's patches, which stand in the order in which they are merged."""
    for name in ("qwen2-vl", "qwen3-vl"):
        _, processor = load_run(folder_of(name, tmp_path_factory), weights=False)
        inner = processor.encoder_processors["vision"]
        (found,) = shown_by(inner, smooth(32, 24))
        assert found.shape == (24, 32, 3)
        assert np.abs(found.astype(int) - np.asarray(smooth(32, 24)).astype(int)).max() <= 1


def test_pictures_for_encoders_side_by_side() -> None:
    """Each by its own mean and size."""
    both = ConcatenatedProcessor(
        {"one": parts.clip_processor(32), "two": SiglipImageProcessorPil(size={"height": 32, "width": 32})}
    )
    found = shown_by(both, smooth(32, 32))
    assert len(found) == 2
    for pixels in found:
        assert np.abs(pixels.astype(int) - np.asarray(smooth(32, 32)).astype(int)).max() <= 1


def test_padding_is_no_picture() -> None:
    tensors = {"pixel_values": torch.cat([torch.ones(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)])}
    medium = MediumView(key="vision", kind="image", index=0, tensors=tensors)
    assert len(pictures_of(medium, parts.clip_processor(8))) == 2


def test_sounds(processor: MultimodalProcessor) -> None:
    """A spectrogram is the encoder's table; raw sound is a wave."""
    given = sample([sound(), {"type": "speech", "speech": parts.sound(400)}, text("?")], "!")
    view = view_sample(Collator(processor), given)
    hears, speaks = view.media
    table = spectrogram_of(hears, view.processors["audio"])
    assert table is not None
    assert np.array_equal(table, hears.tensors["input_features"].numpy())
    samples = wave_of(speaks)
    assert samples is not None
    assert samples.shape == (400,)
    page = view_as_html(view)
    assert page.count('aria-label="spectrogram"') == page.count('aria-label="waveform"') == 1
    assert "1 s</text>" in page
    assert "here the sound ends" in page


# --- text of tokens ---------------------------------------------------------------------------------------------------


class Joins:
    """A tokenizer whose decoder lets a later id change what earlier ones look like."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join("ab"[number] for number in ids).replace("ab", "X")


def test_pieces_make_up_the_whole() -> None:
    for ids in itertools.product(range(2), repeat=5):
        assert "".join(pieces(Joins(), ids)) == Joins().decode(ids)
    tokenizer = parts.tokenizer()
    for words in ("", "a", "日本", "� half �", "é" * 3, "👩‍🚀"):
        ids = tokenizer(words, add_special_tokens=False)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == words
        cut = ids[:-1]
        assert "".join(pieces(tokenizer, cut)) == tokenizer.decode(cut, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("words", ["a word ", "日本", "\ufffd"])
def test_pieces_of_a_long_text_take_no_longer_each(words: str) -> None:
    """A run begins with them; twice the text is about twice the ids that are decoded."""
    tokenizer = parts.tokenizer()
    decoded = 0

    class Counting:
        def decode(self, ids: Any, **options: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(tokenizer.decode(ids, **options))

    ids = tokenizer(words * 200, add_special_tokens=False)["input_ids"]
    found = pieces(Counting(), ids)
    assert "".join(found) == words * 200
    assert [text for text in found if text] == list(words * 200)
    assert decoded < 20 * len(ids)


def test_pieces_of_a_long_text_that_ends_within_a_character() -> None:
    """Where one byte of several in a row is missing, some tokenizers make nothing of all of them."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"word": 256, "\u2581": 257}
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True)
    inner = Tokenizer(model)
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    decoded = 0

    class Counting:
        def decode(self, ids: Any, **_: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(inner.decode(ids))

    ids = [*[256, 257] * 500, *"日本".encode()[:-1]]
    found = pieces(Counting(), ids)
    assert "".join(found) == "word " * 500 + 5 * "\ufffd"
    assert found[:1000] == ["word", " "] * 500
    assert decoded < 20 * len(ids)


# --- the page ---------------------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script> \"'><img src=x onerror=alert(1)> &lt; \u202eevil\u202c\u200b \x1b[31m\x00 </span>\ta"
)


class Page(HTMLParser):
    """What is on a page: elements, addresses, and the text of every token."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append(tag)
        self.addresses += [
            value for name, value in given.items() if name in ("src", "href", "srcset", "action", "data")
        ]
        self.handlers += [name for name in given if name.startswith("on")]
        if tag == "span":
            is_token = "t" in given.get("class", "").split()
            self._open.append("token" if is_token else "other")
            if is_token:
                self.tokens.append((given["title"], ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "token":
            title, words = self.tokens[-1]
            self.tokens[-1] = (title, words + data)


def coded(words: str) -> str:
    """With what is hidden by its number."""
    hidden = "\u202e\u202c\u200b\x1b\x00"
    return "".join(f"U+{ord(character):04X}" if character in hidden else character for character in words)


def hostile(processor: MultimodalProcessor) -> SampleView:
    given = sample([image(), sound(), text(HOSTILE)], HOSTILE, name=f"{HOSTILE}, entry 3")
    return view_sample(Collator(processor), given, source=HOSTILE, index=3)


def test_a_page_needs_nothing_and_runs_nothing(processor: MultimodalProcessor) -> None:
    view = hostile(processor)
    page = view_as_html(view)
    found = Page(page)
    assert {"script", "iframe", "object", "link", "base", "form"} & set(found.elements) == set()
    assert found.handlers == []
    assert found.addresses
    assert [entry for entry in found.addresses if not entry.startswith(("data:image/", "#medium-"))] == []
    assert not re.search(r"https?:|url\(|@import|src=[\"']?//", page.replace("data:image/", ""))
    assert "default-src 'none'" in page
    assert not set("\u202e\u202c\u200b\x1b\x00") & set(page)


def test_a_page_has_every_token(processor: MultimodalProcessor) -> None:
    """With id, label and place, and its text but for what is hidden, which is named."""
    view = hostile(processor)
    expected = []
    for place, position in enumerate(view.positions):
        if position.modality is None:
            label = "no label" if position.label is None else f"label {position.label}"
            expected.append((f"id {position.id}, {label}, position {place}", coded(position.text)))
    assert Page(view_as_html(view)).tokens == expected
    joined = "".join(words for _, words in expected)
    assert joined.count(coded(HOSTILE)) == 2


def test_a_page_of_what_was_cut_off(processor: MultimodalProcessor) -> None:
    view = view_sample(Collator(processor, max_length=8), sample([image(), text("abcd"), image()], "e"))
    page = view_as_html(view)
    assert "Cut at 8 positions:" in page
    assert "image 1, 2 labels" in page
    places = [int(title.rpartition(" ")[2]) for title, _ in Page(page).tokens]
    assert places == [5, 6, 7, 8, 14, 15, 16]  # d stands at 8, the image that was cut off at 9 to 13


def test_originals_beside_what_the_encoder_gets(processor: MultimodalProcessor) -> None:
    view = view_sample(Collator(processor), sample([image(), text("?")], "!"))
    page = view_as_html(view)
    assert "as given, 20 x 24" in page
    assert "as the encoder gets it, 16 x 16" in page
    (original,) = originals_of(view.media[0])
    assert np.array_equal(original, np.asarray(parts.image()))


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_without_colours(processor: MultimodalProcessor) -> None:
    """What is learnt stands in brackets, runs are folded, media have their sizes."""
    view = view_sample(
        Collator(processor), sample([image(), sound(), text("What\nnow?")], "A.\nB."), source="s", index=2
    )
    assert view_as_text(view) == (
        "one\n"
        "sample 2 of s\n"
        "71 positions, 55 of them of inputs, 6 labelled\n"
        "  image 0: 20 x 24 -> pixel_values 3 x 16 x 16, 5 positions\n"
        "  audio 0: 0.50 s at 16,000 Hz -> input_features 8 x 100, 50 positions\n"
        "\n"
        "reads, ⟦what is learnt⟧\n"
        "  <vision> x 5 <audio> x 50 What↵\n"
        "  now?↵\n"
        "  ⟦A.↵\n"
        "  B.<eos>⟧"
    )


def test_text_in_brief(processor: MultimodalProcessor) -> None:
    view = view_sample(Collator(processor), sample([image(), text("?" * 1000)], "A."))
    lines = view_as_text(view, brief=True).splitlines()
    assert lines[0] == "1,009 positions, 5 of them of inputs, 3 labelled"
    assert lines[2] == "  reads   <vision> x 5 " + "?" * 387 + "…"
    assert lines[3] == "  learns  A.<eos>"


@pytest.mark.parametrize(
    "character", ["\u3164", "\u034f", "\ufe0f", "\U000e0041", "\U000e0100", "\x7f", "\x9b", "\u2028"]
)
def test_characters_that_are_drawn_as_nothing(processor: MultimodalProcessor, character: str) -> None:
    """Letters and marks among them, in which texts can be hidden."""
    view = view_sample(Collator(processor), sample("a?", f"so{character}me"))
    code = f"U+{ord(character):04X}"
    assert f"so⟨{code}⟩me" in view_as_text(view)
    assert character not in view_as_html(view)
    assert f'<b class="c">{code}</b>' in view_as_html(view)


def test_colours(processor: MultimodalProcessor) -> None:
    """Without them nothing commands a terminal; with them nothing but they; the text is the same."""
    view = hostile(processor)
    plain, coloured = view_as_text(view), view_as_text(view, colours=True, blocks=True)
    assert "\x1b" not in plain
    assert "⟨U+001B⟩[31m" in plain
    assert re.findall(r"\x1b(?!\[[\d;]*m)", coloured) == []
    assert "\x1b[1;4;32m<script>" in coloured
    assert "▀" in coloured
    bare = "\n".join(line for line in re.sub(r"\x1b\[[\d;]*m", "", coloured).splitlines() if "▀" not in line)
    assert bare == plain.replace("⟦", "").replace("⟧", "")
    assert not set("\u202e\u200b\x00") & set(plain + coloured)


def test_errors_are_the_collators(processor: MultimodalProcessor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    given = sample([{"type": "vision", "vision": str(tmp_path / "a.png")}, text("?")], "!")
    with pytest.raises(MediaError) as expected:
        Collator(processor)([given])
    with pytest.raises(MediaError) as found:
        view_sample(Collator(processor), given)
    assert str(found.value) == str(expected.value)
