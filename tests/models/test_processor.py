"""The processor: text and media to what the model takes."""

import base64
import copy
import json
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
import transformers
from PIL import ExifTags, Image, ImageOps
from torch import nn
from transformers import AutoTokenizer, BatchFeature, SiglipVisionConfig, SiglipVisionModel

from cornstarch import (
    ArgumentError,
    CheckpointError,
    MediaError,
    ModalEncoderModule,
    ModalityMismatchError,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    UnknownArgumentError,
)
from cornstarch.models.multimodal_language_model import media
from tests import parts

VISION = 259  # the first id after the tokenizer's own
MIXED = {"vision": {"images": [parts.image(), [parts.image()]]}}


def images(count: int) -> list[Image.Image]:
    return [parts.image(seed=seed) for seed in range(count)]


def call(processor: MultimodalProcessor, pictures: object, text: object, **kwargs: object) -> BatchFeature:
    options = {"text": text, "padding": True, **kwargs.pop("llm", {})}
    return processor(encoder_inputs={"vision": {"images": pictures}}, llm_inputs=options, return_tensors="pt", **kwargs)


# --- marks ------------------------------------------------------------------------------------------------------------


def test_marks_become_special_tokens_and_the_model_knows_their_ids() -> None:
    """The mark is one token, skipped in decoding; the tokenizer's own special tokens stay."""
    tokenizer = parts.tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<mine>"]})
    model = parts.vision_model()
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, tokenizer, model)
    assert {"<mine>", "<vision>", "<pad>", "<bos>", "<eos>"} <= set(tokenizer.all_special_tokens)
    assert model.modality_token_ids == processor.token_ids == {"vision": 260}
    assert processor.tokens == {"vision": "<vision>"}
    assert processor.decode([97, 260, 98], skip_special_tokens=True) == tokenizer.decode([97, 98])


def test_predefined_token_of_the_tokenizer_keeps_its_id() -> None:
    tokenizer = parts.tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "<other>"]})
    model = parts.vision_model()
    processor = MultimodalProcessor(
        {"vision": parts.clip_processor()}, tokenizer, model, predefined_tokens={"vision": "<image>"}
    )
    assert processor.token_ids == {"vision": tokenizer.convert_tokens_to_ids("<image>")}
    assert len(tokenizer) == 261
    assert "<other>" in tokenizer.all_special_tokens


def test_two_processors_share_nothing() -> None:
    """Arguments left out in one processor are not those of another."""
    _, first = parts.vision_pair()
    second_model = parts.vision_model()
    second = MultimodalProcessor(
        {"vision": parts.clip_processor()}, parts.tokenizer(), second_model, predefined_tokens={"vision": "<see>"}
    )
    assert first.tokens == {"vision": "<vision>"}
    assert second.tokens == {"vision": "<see>"}
    assert first.num_feature_calculation_funcs is not second.num_feature_calculation_funcs


@pytest.mark.parametrize("where", ["encoder_processors", "num_feature_calculation_funcs", "predefined_tokens"])
def test_unknown_key(where: str) -> None:
    arguments = {"encoder_processors": {"vision": parts.clip_processor()}, where: {"vison": lambda *_: 1}}
    with pytest.raises(ArgumentError, match=f"{where}.*'vison'.*vision"):
        MultimodalProcessor(llm_tokenizer=parts.tokenizer(), model=parts.vision_model(), **arguments)


def test_one_mark_for_two_modalities() -> None:
    model, _ = parts.three_modalities()
    with pytest.raises(ArgumentError, match="mark of its own"):
        MultimodalProcessor({}, parts.tokenizer(), model, predefined_tokens={"vision": "<x>", "audio": "<x>"})


# --- positions --------------------------------------------------------------------------------------------------------


def test_each_mark_takes_as_many_positions_as_its_input_yields_features() -> None:
    """Five per image; the model runs on the batch as it is and knows nothing else."""
    model, processor = parts.vision_pair()
    batch = call(processor, images(3), ["a<vision>b<vision>", "<vision>"])
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert (batch["input_ids"] == VISION).sum(-1).tolist() == [10, 5]
    assert batch["input_ids"][0, :6].tolist() == [*processor.llm_tokenizer("a")["input_ids"], *[VISION] * 5]
    assert model(**batch).logits.shape == (2, 12, parts.VOCABULARY)


def test_three_modalities_interleaved_and_ragged() -> None:
    """Sounds of two lengths take their own lengths, padded or not; the batch runs."""
    model, processor = parts.three_modalities()
    batch = processor(
        encoder_inputs={
            "vision": {"images": images(2)},
            "audio": {"raw_speech": [parts.sound(4000)], "sampling_rate": 16000},
            "speech": {"raw_speech": [parts.sound(200), parts.sound(500)], "sampling_rate": 16000, "padding": True},
        },
        llm_inputs={"text": ["<speech>x<vision>", "<vision> <audio>and<speech>"], "padding": True},
        return_tensors="pt",
    )
    encoder = model.vision_encoder.module, model.speech_encoder.module
    lengths = encoder[1]._get_feat_extract_output_lengths(torch.tensor([200, 500])).tolist()
    ids = batch["input_ids"]
    assert (ids == processor.token_ids["speech"]).sum(-1).tolist() == lengths
    assert (ids == processor.token_ids["audio"]).sum(-1).tolist() == [0, 50]
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "pixel_values",
        "input_features",
        "input_values",
        "speech_attention_mask",
    }
    assert torch.isfinite(model(**batch).logits).all()


def test_positions_are_counted_after_callbacks_and_projector() -> None:
    """Dropping the class token, pooling in the projector and repeating after it: ((4 + 1 - 1) / 2) * 3 positions."""

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 24)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.linear(hidden).unflatten(1, (-1, 2)).mean(2)

    model = parts.vision_model(
        projector=MultimodalProjector(None, Pool()),
        postprocess_module_callback=lambda inputs, output: output.last_hidden_state[:, 1:],
        postprocess_projector_callback=lambda inputs, output: output.repeat_interleave(3, dim=1),
    )
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), model)
    batch = call(processor, images(1), "<vision>")
    assert (batch["input_ids"] == VISION).sum().item() == 6
    model(**batch)


def test_encoder_nobody_thought_of() -> None:
    """A plain module with a plain callable for a processor, no counting function."""

    def readings(signals: list, return_tensors: str | None = None) -> dict:
        return {"readings": torch.tensor(signals, dtype=torch.float32), "unused": torch.zeros(1)}

    class Processor:
        def __call__(self, signals: list, return_tensors: str | None = None) -> dict:
            return readings(signals)

    model = MultimodalModel({"sensor": ModalEncoderModule(parts.PerWordEncoder())}, parts.llama())
    processor = MultimodalProcessor({"sensor": Processor()}, parts.tokenizer(), model)
    batch = processor(
        encoder_inputs={"sensor": {"signals": [np.arange(12.0), np.arange(12.0)]}},
        llm_inputs={"text": "<sensor>a<sensor>"},
        return_tensors="pt",
    )
    assert (batch["input_ids"] == processor.token_ids["sensor"]).sum().item() == 8
    assert "unused" not in batch
    model(**batch)


@pytest.mark.parametrize(
    "function",
    [
        lambda inputs, outputs: 5,
        lambda inputs, outputs: [5] * len(outputs["pixel_values"]),
        lambda inputs, outputs: [[5] * len(sample) for sample in inputs["images"]],
        lambda inputs, outputs: torch.full((3,), 5),
        lambda inputs, outputs: np.int64(5),
        lambda inputs, outputs: [torch.tensor(5)] * 3,
        lambda inputs, outputs: [np.array(5), torch.tensor(5), 5],
        lambda inputs, outputs: [[torch.tensor(5)], (np.int32(5), torch.tensor(5))],
        lambda inputs, outputs: [torch.tensor([5]), torch.tensor([5, 5])],
    ],
    ids=["int", "per-input", "per-sample", "tensor", "numpy-int", "scalars", "mixed", "nested-scalars", "tensors"],
)
def test_counting_function_of_the_caller(function: object) -> None:
    model = parts.vision_model()
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), model, {"vision": function})
    batch = call(processor, [images(1), images(2)], ["<vision>", "<vision><vision>"])
    assert (batch["input_ids"] == VISION).sum(-1).tolist() == [5, 10]


@pytest.mark.parametrize(
    "counts", [[5], [5, 5.0, 5], "five", [[5, 5], [5]], -1, True, None, [torch.tensor(5.0)] * 3, torch.tensor(True)]
)
def test_counting_function_that_miscounts(counts: object) -> None:
    model = parts.vision_model()
    processor = MultimodalProcessor(
        {"vision": parts.clip_processor()}, parts.tokenizer(), model, {"vision": lambda inputs, outputs: counts}
    )
    with pytest.raises(ArgumentError, match=r"num_feature_calculation_funcs\['vision'\]"):
        call(processor, [images(1), images(2)], ["<vision>", "<vision><vision>"])


def test_autocast_is_for_the_model() -> None:
    """Spectra of sounds are bit for bit what they are without it."""
    _, processor = parts.three_modalities()
    given = {"audio": {"raw_speech": [parts.sound(8000)], "sampling_rate": 16000}}
    expected = processor(given, {"text": "<audio>"}, return_tensors="pt")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = processor(given, {"text": "<audio>"}, return_tensors="pt")
    assert torch.equal(found["input_features"], expected["input_features"])
    assert found["input_features"].dtype == torch.float32


# --- pairing ----------------------------------------------------------------------------------------------------------


def test_nested_and_flat_inputs_give_the_same_batch() -> None:
    _, processor = parts.vision_pair()
    text = ["<vision>", "none", "<vision><vision>"]
    flat = call(processor, images(3), text)
    nested = call(processor, [images(3)[:1], [], images(3)[1:]], text)
    assert all(torch.equal(flat[name], nested[name]) for name in flat)


@pytest.mark.parametrize(
    "pictures, text, sample",
    [
        (1, ["<vision>", "<vision>"], 1),
        (3, ["<vision>", "<vision>"], 1),
        (0, ["a", "<vision>"], 1),
        ([1, 1], ["<vision>", "<vision><vision>"], 1),
        ([2, 0], ["<vision>", "<vision>"], 0),
    ],
    ids=["flat-too-few", "flat-too-many", "none", "nested-too-few", "nested-moved"],
)
def test_marks_and_inputs_that_do_not_pair(pictures: object, text: list, sample: int) -> None:
    """A ValueError that names the modality and the sample."""
    _, processor = parts.vision_pair()
    given = images(pictures) if isinstance(pictures, int) else [images(count) for count in pictures]
    with pytest.raises(ModalityMismatchError, match=f"'vision': sample {sample} has"):
        call(processor, given, text)


def test_nested_for_another_number_of_samples() -> None:
    _, processor = parts.vision_pair()
    with pytest.raises(ModalityMismatchError, match="nested for 1 samples, found 2"):
        call(processor, [images(1)], ["<vision>", "a"])


@pytest.mark.parametrize("given", [[], None, [[], []]])
def test_no_images(given: object) -> None:
    """A batch of text only, whatever way the absence is written."""
    model, processor = parts.vision_pair()
    batch = call(processor, given, ["ab", "c"])
    assert set(batch) == {"input_ids", "attention_mask"}
    model(**batch)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<image>",
        "<|placeholder|>",
        "<vision",
        "< vision>",
        "vision>",
        "<placeholder_0>",
    ],
)
def test_text_that_looks_like_a_placeholder_stays_text(text: str) -> None:
    _, processor = parts.vision_pair()
    batch = processor(llm_inputs={"text": text}, return_tensors=None)
    assert processor.decode(batch["input_ids"][0]) == text


def test_the_callers_arguments_are_never_changed() -> None:
    _, processor = parts.vision_pair()
    encoder_inputs = {"vision": {"images": [images(1), images(2)]}}
    llm_inputs = {"text": ["<vision>", "<vision><vision>"], "padding": True, "truncation": True, "max_length": 8}
    before = copy.deepcopy((encoder_inputs, llm_inputs))
    processor(encoder_inputs=encoder_inputs, llm_inputs=llm_inputs, return_tensors="pt")
    assert llm_inputs == before[1]
    assert [len(sample) for sample in encoder_inputs["vision"]["images"]] == [1, 2]
    assert set(encoder_inputs["vision"]) == {"images"}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", range(1, 14))
def test_truncation_never_cuts_through_an_input(side: str, length: int) -> None:
    """Whatever the length, each image keeps all its five positions or none, and the model still runs."""
    model, processor = parts.vision_pair(truncation_side=side)
    batch = call(
        processor, images(3), ["ab<vision>cd<vision>", "<vision>"], llm={"truncation": True, "max_length": length}
    )
    positions = (batch["input_ids"] == VISION).sum(-1)
    assert batch["input_ids"].shape[1] <= length
    assert (positions % 5 == 0).all()
    assert positions.sum().item() == 5 * len(batch.get("pixel_values", []))
    if batch["input_ids"].shape[1]:
        model(**batch)


def test_truncation_keeps_the_right_inputs() -> None:
    """Cut on the left, the second image stays, and it is the second image's pixels that do."""
    _, processor = parts.vision_pair(truncation_side="left")
    whole = call(processor, images(2), ["ab<vision>cd<vision>"])
    cut = call(processor, images(2), ["ab<vision>cd<vision>"], llm={"truncation": True, "max_length": 8})
    assert torch.equal(cut["pixel_values"], whole["pixel_values"][1:])
    assert cut["input_ids"][0].tolist() == whole["input_ids"][0, -7:].tolist()


def test_truncation_keeps_the_tokens_around_a_text() -> None:
    """The tokenizer's own first and last tokens stay when the text is cut."""
    _, processor = parts.vision_pair(with_bos_and_eos=True)
    batch = call(processor, images(1), "abcdef<vision>", llm={"truncation": True, "max_length": 5})
    assert batch["input_ids"][0].tolist() == [
        257,
        *processor.llm_tokenizer("abc", add_special_tokens=False)["input_ids"],
        258,
    ]


def test_padding_options() -> None:
    """To a length, to a multiple, on either side: as the tokenizer does."""
    _, processor = parts.vision_pair()
    text = ["<vision>", "abc"]
    assert call(processor, images(1), text, llm={"pad_to_multiple_of": 8})["input_ids"].shape == (2, 8)
    fixed = call(processor, images(1), text, llm={"padding": "max_length", "max_length": 12, "padding_side": "left"})
    assert fixed["attention_mask"].sum(-1).tolist() == [5, 3]
    assert fixed["attention_mask"][:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 5},
        {"max_length": 5, "padding": True},
        {"max_length": 5, "padding": "max_length"},
        {"max_length": 5, "padding": "do_not_pad"},
        {"max_length": 5, "truncation": False},
        {"max_length": 5, "truncation": "do_not_truncate"},
        {"max_length": 8, "truncation": True, "padding": True, "pad_to_multiple_of": 4},
        {"max_length": 5, "truncation": True, "padding": True, "pad_to_multiple_of": 4},
        {"max_length": 5, "truncation": True, "padding": "max_length", "pad_to_multiple_of": 4},
        {"max_length": 5, "truncation": True, "pad_to_multiple_of": 4},
        {"truncation": True, "padding": True, "pad_to_multiple_of": 4},
        {"max_length": 20, "padding": True, "pad_to_multiple_of": 16},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*max_length:UserWarning")
def test_lengths_are_those_of_the_tokenizer(options: dict) -> None:
    """Without marks: ids equal the tokenizer's own, or both refuse, whichever of its options are given."""
    _, processor = parts.vision_pair(model_max_length=6)
    text = ["abcdefgh", "ab"]
    try:
        expected = processor.llm_tokenizer(text, **options)
    except ValueError:
        with pytest.raises(ArgumentError, match="pad_to_multiple_of"):
            processor(llm_inputs={"text": text, **options})
    else:
        found = processor(llm_inputs={"text": text, **options})
        assert found["input_ids"] == expected["input_ids"]
        assert found["attention_mask"] == expected["attention_mask"]


def test_max_length_that_is_ignored_warns() -> None:
    _, processor = parts.vision_pair()
    with pytest.warns(UserWarning, match="max_length is ignored"):
        processor(llm_inputs={"text": "abc", "max_length": 2, "padding": True})


def test_no_word_of_long_texts_that_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    """With truncation Hugging Face says nothing of indexing errors; without, it does."""
    logger = transformers.logging.get_logger("transformers")
    _, processor = parts.vision_pair(model_max_length=4)
    logger.addHandler(caplog.handler)
    level = logger.level
    try:
        logger.setLevel("WARNING")
        processor(llm_inputs={"text": "abcdefgh", "truncation": True})
        assert "indexing errors" not in caplog.text
        processor(llm_inputs={"text": "abcdefgh"})
        assert "indexing errors" in caplog.text
    finally:
        logger.setLevel(level)
        logger.removeHandler(caplog.handler)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("return_tensors, kind", [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_return_tensors(return_tensors: str | None, kind: type) -> None:
    _, processor = parts.vision_pair()
    batch = processor(
        encoder_inputs={"vision": {"images": images(2)}},
        llm_inputs={"text": ["<vision>", "<vision>"]},
        return_tensors=return_tensors,
    )
    assert {type(value) for value in batch.values()} == {kind}
    assert np.asarray(batch["pixel_values"]).shape == (2, 3, 16, 16)


def test_shared_keywords_go_to_whoever_takes_them() -> None:
    """do_rescale to the image processor, add_special_tokens to the tokenizer; nobody's keyword is an error."""
    _, processor = parts.vision_pair(with_bos_and_eos=True)
    plain = call(processor, images(1), "<vision>")
    other = call(processor, images(1), "<vision>", do_rescale=False, add_special_tokens=False)
    assert other["pixel_values"].abs().max() > 10 * plain["pixel_values"].abs().max()
    assert other["input_ids"].shape[1] == plain["input_ids"].shape[1] - 2
    with pytest.raises(UnknownArgumentError, match="do_rescaling"):
        call(processor, images(1), "<vision>", do_rescaling=False)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"llm_inputs": {}}, "text"),
        ({"llm_inputs": {"text": [1]}}, "text"),
        ({"llm_inputs": {"text": "a"}, "return_tensors": "tf"}, "return_tensors"),
        ({"llm_inputs": {"text": "a", "return_overflowing_tokens": True}}, "return_overflowing_tokens"),
        ({"llm_inputs": {"text": "a", "truncation": "only_second"}}, "truncation"),
        ({"llm_inputs": {"text": "a"}, "encoder_inputs": {"vison": {"images": []}}}, "'vison'"),
        ({"llm_inputs": {"text": "a"}, "encoder_inputs": {"vision": {"image": []}}}, "'images'"),
        (
            {"llm_inputs": {"text": "a"}, "encoder_inputs": {"vision": {"images": [parts.image(), [parts.image()]]}}},
            "nested|side",
        ),
        ({"llm_inputs": {"text": "a"}, "encoder_inputs": [parts.image()]}, "encoder_inputs must be a dict.*found list"),
        ({"llm_inputs": {"text": "a", "max_length": "2"}}, "max_length .*'2'"),
        ({"llm_inputs": {"text": "a", "max_length": 2.0, "truncation": True}}, r"max_length .*2\.0"),
        ({"llm_inputs": {"text": "a", "max_length": 0, "truncation": True}}, "max_length .*0"),
        ({"llm_inputs": {"text": "a", "padding": True, "pad_to_multiple_of": "4"}}, "pad_to_multiple_of .*'4'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict, message: str) -> None:
    _, processor = parts.vision_pair()
    with pytest.raises(ArgumentError, match=message):
        processor(**arguments)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    """No such file, no image, cut short, and nothing that could be an image."""
    _, processor = parts.vision_pair()
    good, text, short = tmp_path / "good.png", tmp_path / "text.png", tmp_path / "short.png"
    parts.image().save(good)
    text.write_text("not an image")
    short.write_bytes(good.read_bytes()[:200])
    assert call(processor, [str(good), good, good.read_bytes()], ["<vision>" * 3])["pixel_values"].shape[0] == 3
    for broken in (tmp_path / "missing.png", text, short):
        for given in (broken, str(broken)):
            with pytest.raises(MediaError, match=f"image 1 .*{broken.name}"):
                call(processor, [good, given], ["<vision><vision>"])
    with pytest.raises(MediaError, match=r"image 0 .*short"):
        call(processor, [Image.open(short)], ["<vision>"])
    with pytest.raises(MediaError, match="image 0 is a int"):
        call(processor, [3], ["<vision>"])


def pixels(processor: MultimodalProcessor, picture: object) -> torch.Tensor:
    return call(processor, [picture], ["<vision>"])["pixel_values"][0]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, mode: str, orientation: int) -> None:
    """However a picture is given, it is that of Pillow's own `exif_transpose`; the caller's image is as it was."""
    _, processor = parts.vision_pair()
    exif, path = Image.Exif(), tmp_path / "turned.png"
    exif[ExifTags.Base.Orientation] = orientation
    parts.image(20, 28).convert(mode).save(path, exif=exif)
    opened = Image.open(path)
    expected = pixels(processor, np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))
    encoded = base64.b64encode(path.read_bytes()).decode()
    for given in (path, str(path), path.read_bytes(), encoded, f"data:image/png;base64,{encoded}", opened):
        assert torch.equal(pixels(processor, given), expected)
    assert opened.size == (20, 28)
    assert opened.getexif()[ExifTags.Base.Orientation] == orientation


def ramp(dtype: type, top: float) -> np.ndarray:
    """Brightness from black to white in `dtype`, white being `top`; (24, 20)."""
    return (np.linspace(0, 255, 24 * 20).round().reshape(24, 20) * (top / 255)).astype(dtype)


DEEP = {
    "I;16": Image.fromarray(ramp(np.uint16, 65535)),
    "I;16B": Image.fromarray(ramp(np.uint16, 65535)).convert("I").convert("I;16B"),
    "I": Image.fromarray(ramp(np.int32, 65535)),
    "I-8-bit": Image.fromarray(ramp(np.int32, 255)),
    "F-1": Image.fromarray(ramp(np.float32, 1)),
    "F-255": Image.fromarray(ramp(np.float32, 255)),
    "F-65535": Image.fromarray(ramp(np.float32, 65535)),
    "uint16-array": ramp(np.uint16, 65535),
    "uint16-channels": np.stack([ramp(np.uint16, 65535)] * 3, axis=-1),
    "uint16-tensor": torch.from_numpy(ramp(np.uint16, 65535)),
    "uint8-array": ramp(np.uint8, 255),
    "uint8-tensor": torch.from_numpy(ramp(np.uint8, 255)),
}


@pytest.mark.parametrize("name", DEEP)
def test_brightness_of_16_bits_and_more(name: str) -> None:
    """As the same picture in 8 bits; greyscale arrays as greyscale images."""
    _, processor = parts.vision_pair()
    assert torch.equal(pixels(processor, DEEP[name]), pixels(processor, Image.fromarray(ramp(np.uint8, 255))))


def test_16_bits_from_a_file(tmp_path: Path) -> None:
    _, processor = parts.vision_pair()
    DEEP["I;16"].save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I")
    expected = pixels(processor, Image.fromarray(ramp(np.uint8, 255)))
    assert torch.equal(pixels(processor, tmp_path / "deep.png"), expected)
    assert torch.equal(pixels(processor, (tmp_path / "deep.png").read_bytes()), expected)


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "LA", "1", "YCbCr", "HSV"])
def test_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    _, processor = parts.vision_pair()
    picture = parts.image().convert(mode)
    assert torch.equal(pixels(processor, picture), pixels(processor, picture.convert("RGB")))
    assert picture.mode == mode


@pytest.mark.parametrize(
    "convert", [lambda t: t.bfloat16(), lambda t: t.half(), lambda t: t.requires_grad_(), lambda t: t.numpy()]
)
def test_tensors_of_any_dtype(convert: Callable[[torch.Tensor], object]) -> None:
    """The pixels of the plain tensor, to the precision of the dtype; a sound likewise."""
    _, processor = parts.vision_pair()
    plain = torch.from_numpy(np.asarray(parts.image())).permute(2, 0, 1) / 255
    found = pixels(processor, convert(plain.clone()))
    torch.testing.assert_close(found, pixels(processor, plain), rtol=0, atol=0.05)
    sound = media._as_sound("audio", 0, convert(torch.linspace(-1, 1, 9)))
    np.testing.assert_allclose(sound, np.linspace(-1, 1, 9), atol=0.01)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((0, 0, 3), np.uint8), r"shape is \(0, 0, 3\)"),
        (torch.zeros(3, 0, 4), r"shape is \(3, 0, 4\)"),
        (np.zeros(7, np.uint8), r"shape is \(7,\)"),
        (np.array([["a"]]), "dtype <U1"),
        (np.zeros((4, 4, 3), complex), "dtype complex128"),
        (Image.fromarray(np.full((4, 4), 1e6, np.float32)), r"from 1000000\.0 to"),
        (Image.fromarray(np.full((4, 4), -5, np.int32)), "from -5 to"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "from nan to"),
    ],
)
def test_arrays_that_are_no_image(array: object, message: str) -> None:
    """Named by modality and place, by their shape or dtype and not by their contents."""
    _, processor = parts.vision_pair()
    with pytest.raises(MediaError, match=f"'vision': image 1 .*{message}") as caught:
        call(processor, [parts.image(), array], ["<vision><vision>"])
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("wrap", [BatchFeature, MappingProxyType, UserDict])
def test_any_mapping_will_do(wrap: Callable[[dict], Mapping]) -> None:
    _, processor = parts.vision_pair()
    given, text = {"images": images(1)}, {"text": "<vision>"}
    found = processor(wrap({"vision": wrap(given)}), wrap(text), return_tensors="pt")
    expected = processor({"vision": given}, text, return_tensors="pt")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_two_encoders_with_inputs_of_one_name() -> None:
    """Two image encoders: each batch entry says whose it is, and the model runs both."""
    torch.manual_seed(0)
    siglip = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=24,
            patch_size=8,
        )
    )
    model = MultimodalModel(
        {"near": ModalEncoderModule(parts.clip()), "far": ModalEncoderModule(siglip)}, parts.llama()
    )
    processor = MultimodalProcessor(
        {"near": parts.clip_processor(), "far": parts.clip_processor(24)}, parts.tokenizer(), model
    )
    batch = processor(
        encoder_inputs={"near": {"images": images(1)}, "far": {"images": images(2)}},
        llm_inputs={"text": "<near><far>x<far>"},
        return_tensors="pt",
    )
    assert {name: tuple(value.shape) for name, value in batch.items() if "pixel" in name} == {
        "near_pixel_values": (1, 3, 16, 16),
        "far_pixel_values": (2, 3, 24, 24),
    }
    assert model(**batch).logits.shape[1] == 5 + 9 + 1 + 9


# --- the tokenizer's side ---------------------------------------------------------------------------------------------


def test_chat_template_with_typed_content() -> None:
    _, processor = parts.vision_pair()
    processor.llm_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    content = [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "vision"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "That."}]
    written = processor.apply_chat_template(messages)
    assert written == "user: <vision>What?<vision>\nassistant: That.\n"
    assert processor.apply_chat_template([messages, messages]) == [written, written]
    assert content[0] == {"type": "image"}
    with pytest.raises(ArgumentError, match="'smell'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "smell"}]}])


@pytest.mark.parametrize(
    "content, message",
    [
        (["What?"], "found str"),
        ([{"type": "text"}], "needs its `text`"),
        ([{"type": "text", "text": 3}], "needs its `text`"),
        ({"type": "text", "text": "What?"}, "found str"),
    ],
)
def test_typed_content_that_is_none(content: object, message: str) -> None:
    _, processor = parts.vision_pair()
    with pytest.raises(ArgumentError, match=message):
        processor.apply_chat_template([{"role": "user", "content": content}])


def test_decoding() -> None:
    _, processor = parts.vision_pair()
    ids = processor.llm_tokenizer(["ab", "cd"])["input_ids"]
    assert processor.batch_decode(ids) == ["ab", "cd"]
    assert processor.decode(ids[0]) == "ab"


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path: Path) -> None:
    """The same batch from a loaded processor, with the marks it had."""
    model = parts.vision_model()
    processor = MultimodalProcessor(
        {"vision": parts.clip_processor()}, parts.tokenizer(), model, predefined_tokens={"vision": "<see>"}
    )
    processor.save_pretrained(tmp_path)
    other_model = parts.vision_model()
    loaded = MultimodalProcessor.from_pretrained(tmp_path, other_model)
    assert loaded.tokens == {"vision": "<see>"}
    assert other_model.modality_token_ids == model.modality_token_ids
    first, second = (call(p, images(2), ["<see>a", "<see>"]) for p in (processor, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_counting_functions_must_be_given_again(tmp_path: Path) -> None:
    model = parts.vision_model()
    function = lambda inputs, outputs: 5  # noqa: E731
    MultimodalProcessor(
        {"vision": parts.clip_processor()}, parts.tokenizer(), model, {"vision": function}
    ).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="counting function of the caller's own for vision"):
        MultimodalProcessor.from_pretrained(tmp_path, model)
    assert MultimodalProcessor.from_pretrained(tmp_path, model, {"vision": function}).num_feature_calculation_funcs


def _changed(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


FILE, TOKENIZER = "multimodal_processor.json", "tokenizer/tokenizer.json"
PREPROCESSOR = "processors/vision/preprocessor_config.json"
DAMAGE: dict[str, tuple[str, Callable[[str], str | None]]] = {  # a file, and what it becomes; None removes it
    "missing": (FILE, lambda text: None),
    "no-json": (FILE, lambda text: "{"),
    "no-keys": (FILE, lambda text: "{}"),
    "a-list": (FILE, lambda text: "[]"),
    "newer": (FILE, _changed(format=9)),
    "strange-format": (FILE, _changed(format="a")),
    "no-class": (FILE, _changed(encoder_processors={"vision": 3})),
    "outside": (FILE, _changed(encoder_processors={"../x": "transformers.CLIPImageProcessor"})),
    "no-tokens": (FILE, _changed(tokens=None)),
    "tokenizer-missing": (TOKENIZER, lambda text: None),
    "tokenizer-no-json": (TOKENIZER, lambda text: "{"),
    "tokenizer-empty": (TOKENIZER, lambda text: "{}"),
    "tokenizer-cut": (TOKENIZER, lambda text: text[: len(text) // 2]),
    "tokenizer-strange": (TOKENIZER, lambda text: json.dumps({**json.loads(text), "model": {"type": "Odd"}})),
    "tokenizer-config-missing": ("tokenizer/tokenizer_config.json", lambda text: None),
    "tokenizer-config-empty": ("tokenizer/tokenizer_config.json", lambda text: "{}"),
    "processor-missing": (PREPROCESSOR, lambda text: None),
    "processor-no-json": (PREPROCESSOR, lambda text: "{"),
    "processor-a-list": (PREPROCESSOR, lambda text: "[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_save(tmp_path: Path, damage: str) -> None:
    """A CheckpointError, which says where; the model is not touched."""
    _, processor = parts.vision_pair()
    processor.save_pretrained(tmp_path)
    name, change = DAMAGE[damage]
    changed = change((tmp_path / name).read_text())
    if changed is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(changed)
    other = parts.vision_model()
    with pytest.raises(CheckpointError, match=tmp_path.name):
        MultimodalProcessor.from_pretrained(tmp_path, other)
    assert other.modality_token_ids == {}


@pytest.mark.parametrize("times", [1, 3])
def test_a_reader_never_gets_two_saves_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Another processor is saved while the files are read: what is loaded is all of one, mark, tokenizer and pixels."""
    pair = [
        MultimodalProcessor(
            {"vision": parts.clip_processor(size)},
            parts.tokenizer(model_max_length=size),
            parts.vision_model(),
            predefined_tokens={"vision": f"<{size}>"},
        )
        for size in (16, 24)
    ]
    saves, plain = iter([*pair, *pair][1 : times + 1]), AutoTokenizer.from_pretrained

    def interrupted(*args: object, **kwargs: object) -> object:
        other = next(saves, None)
        if other is not None:
            other.save_pretrained(tmp_path)
        return plain(*args, **kwargs)

    pair[0].save_pretrained(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", interrupted)
    loaded = MultimodalProcessor.from_pretrained(tmp_path, parts.vision_model())
    assert loaded.tokens == {"vision": "<24>"}
    assert loaded.llm_tokenizer.model_max_length == loaded.encoder_processors["vision"].crop_size["height"] == 24
    assert len(loaded.llm_tokenizer) == parts.VOCABULARY + 1


def test_torchvision_is_not_needed() -> None:
    """Importing the package imports no torchvision."""
    script = "import sys, cornstarch; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
