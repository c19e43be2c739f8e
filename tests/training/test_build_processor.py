"""A processor for which no weights were read or made, against the one that the whole model has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, WhisperFeatureExtractor

from cornstarch import build_model
from cornstarch.models.multimodal_language_model.parts import load_encoder
from cornstarch.training import EncoderConfig, LanguageModelConfig, ModelConfig, ProjectorConfig
from cornstarch.training.building import build_processor, load_run
from tests import hub, parts
from tests.models.original_processors import MADE
from tests.training.test_building import PROCESSOR, TEXT, VISION

LANGUAGE_MODEL = LanguageModelConfig(config=TEXT, tokenizer="bytes")
WHISPER = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def assert_all_on_meta(model: Any) -> None:
    assert [name for name, parameter in model.named_parameters() if not parameter.is_meta] == []


def assert_same(config: ModelConfig, inputs: Any, text: str) -> None:
    """Batches equal, tensor by tensor, and no memory was spent on weights."""
    torch.manual_seed(0)
    _, expected = build_model(config)
    model, _ = build_model(config, weights=False)
    assert_all_on_meta(model)
    found = build_processor(config)(inputs, {"text": text}, return_tensors="pt")
    wanted = expected(inputs, {"text": text}, return_tensors="pt")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"layers": [-2], "skip_first": 1, "projector": ProjectorConfig(type="mlp")},
        {"pool": 2, "skip_first": 1},
        {"projector": ProjectorConfig(type="resampler", queries=3, heads=2)},
    ],
    ids=["plain", "layer", "pool", "resampler"],
)
def test_random_parts(encoder: dict[str, Any]) -> None:
    vision = EncoderConfig(**{"config": VISION, "processor": PROCESSOR, **encoder})
    config = ModelConfig(encoders={"vision": vision}, language_model=LANGUAGE_MODEL)
    assert_same(config, {"vision": {"images": [parts.image()]}}, "<vision>?")


def test_encoders_side_by_side() -> None:
    towers = {
        "one": {"config": VISION, "processor": PROCESSOR, "skip_first": 1},
        "two": {"config": VISION, "processor": PROCESSOR, "skip_first": 1, "layers": [-2]},
    }
    vision = EncoderConfig(concatenate=towers)
    config = ModelConfig(encoders={"vision": vision}, language_model=LANGUAGE_MODEL)
    assert_same(config, {"vision": {"images": [parts.image()]}}, "<vision>?")


def test_pretrained_parts(tmp_path: Path) -> None:
    """A tower out of a checkpoint of two, an encoder out of an encoder-decoder, a language model in its own dtype."""
    hub.clip(tmp_path / "clip")
    hub.whisper(tmp_path / "whisper")
    hub.qwen(tmp_path / "qwen")
    encoders = {
        "vision": EncoderConfig(path=str(tmp_path / "clip")),
        "audio": EncoderConfig(path=str(tmp_path / "whisper"), pool=5),
    }
    text = LanguageModelConfig(path=str(tmp_path / "qwen"), dtype="auto")
    config = ModelConfig(encoders=encoders, language_model=text)
    sound = {"raw_speech": [parts.sound(16000)], "sampling_rate": 16000}
    assert_same(config, {"vision": {"images": [parts.image()]}, "audio": sound}, "<audio> <vision>")


def test_the_revision_of_a_config_is_that_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a tower that is named by its class, whose config is read by itself."""
    hub.clip(tmp_path)
    asked, read = [], CLIPVisionConfig.from_pretrained

    def recorded(path: Any, **options: Any) -> Any:
        asked.append(options.get("revision"))
        return read(path, **options)

    monkeypatch.setattr(CLIPVisionConfig, "from_pretrained", recorded)
    load_encoder("vision", tmp_path, "CLIPVisionModel", revision="old", weights=False)
    assert asked == ["old"]


@pytest.mark.parametrize("name", sorted(MADE))
def test_finished_models_of_hugging_face(name: str, tmp_path: Path) -> None:
    """Every shape that is imported: tiles, grids, merged rows, sounds."""
    saved = MADE[name](tmp_path)
    config = ModelConfig(path=str(saved.folder))
    processor = build_processor(config)
    (key,) = processor.tokens
    mark = processor.tokens[key]
    argument = processor.media_arguments[key][0]
    media = {argument: [parts.image(), parts.image()] if key == "vision" else [parts.sound(4000)]}
    text = f"{mark} {mark}" if key == "vision" else mark
    assert_same(config, {key: media}, text)


def test_a_saved_model(tmp_path: Path) -> None:
    """Of its files of weights only the headers are read."""
    vision = EncoderConfig(config=VISION, processor=PROCESSOR, skip_first=1)
    model, processor = build_model(ModelConfig(encoders={"vision": vision}, language_model=LANGUAGE_MODEL))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert_same(ModelConfig(path=str(tmp_path)), {"vision": {"images": [parts.image()]}}, "<vision>?")
    bare, _ = load_run(tmp_path, weights=False)
    assert_all_on_meta(bare)


def test_a_projector_of_a_saved_model(tmp_path: Path) -> None:
    vision = EncoderConfig(config=VISION, processor=PROCESSOR)
    model, processor = build_model(ModelConfig(encoders={"vision": vision}, language_model=LANGUAGE_MODEL))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vision = EncoderConfig(config=VISION, processor=PROCESSOR, projector=ProjectorConfig(path=str(tmp_path)))
    config = ModelConfig(encoders={"vision": vision}, language_model=LANGUAGE_MODEL)
    assert_same(config, {"vision": {"images": [parts.image()]}}, "<vision>?")


def test_an_encoder_from_scratch_that_hears() -> None:
    audio = EncoderConfig(config=WHISPER, processor={"class_name": "WhisperFeatureExtractor"})
    config = ModelConfig(encoders={"audio": audio}, language_model=LANGUAGE_MODEL)
    sound = {"raw_speech": [parts.sound(8000)], "sampling_rate": WhisperFeatureExtractor().sampling_rate}
    assert_same(config, {"audio": sound}, "<audio>")
