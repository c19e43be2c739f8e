"""Where parts came from, and projectors by themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionModel, LlamaForCausalLM

from cornstarch import ArgumentError, ModalEncoderModule, MultimodalModel, MultimodalProjector
from cornstarch.models.multimodal_language_model import parts as loading
from tests import parts
from tests.models.original_processors import MADE
from tests.models.originals import ORIGINALS

LLAVA = "LlavaForConditionalGeneration"


def sources(model: Any) -> dict[str, tuple[Any, Any, str, Any]]:
    """Name to path, revision, last word of the class, and what it was part of."""
    return {
        name: (entry["path"], entry["revision"], entry["class"].rpartition(".")[2], entry["part_of"])
        for name, entry in model.manifest.items()
    }


def test_parts_of_many_places(tmp_path: Path) -> None:
    """Loaded with transformers, with this package, and made here; kept through saving, adapters and saving again."""
    parts.clip().save_pretrained(tmp_path / "clip")
    parts.llama().save_pretrained(tmp_path / "llama")
    tower = CLIPVisionModel.from_pretrained(tmp_path / "clip")
    tower.config._commit_hash = "a1b2c3"  # as `from_pretrained` leaves it for a name on the hub
    text = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    model = MultimodalModel({"vision": ModalEncoderModule(tower)}, get_peft_model(text, LoraConfig(r=2)))
    expected = {
        "vision_encoder": (str(tmp_path / "clip"), "a1b2c3", "CLIPVisionModel", None),
        "vision_projector": (None, None, "MultimodalProjector", None),
        "language_model": (str(tmp_path / "llama"), None, "LlamaForCausalLM", None),
    }
    assert sources(model) == expected
    for number in range(2):
        model.save_pretrained(tmp_path / str(number))
        model = MultimodalModel.from_pretrained(tmp_path / str(number))
        assert sources(model) == expected
    model.replace_part("language_model", parts.llama())
    assert sources(model)["language_model"] == (None, None, "LlamaForCausalLM", None)


def test_imports_and_parts_of_one(tmp_path: Path) -> None:
    """Of an import, all parts; of a checkpoint of several parts, what was taken out of it."""
    original = ORIGINALS["llava"].make(torch.float32)
    original.save_pretrained(tmp_path / "llava")
    place = str(tmp_path / "llava")
    model = MultimodalModel.from_pretrained_multimodal_model(place)
    towers = {
        "vision_encoder": (place, None, "CLIPVisionModel", LLAVA),
        "language_model": (place, None, "LlamaForCausalLM", LLAVA),
    }
    assert sources(model) == {**towers, "vision_projector": (place, None, "MultimodalProjector", LLAVA)}
    encoder = loading.load_encoder("vision", place)
    composed = MultimodalModel({"vision": ModalEncoderModule(encoder)}, loading.load_language_model(place))
    assert sources(composed) == {**towers, "vision_projector": (None, None, "MultimodalProjector", None)}


def test_projectors_by_themselves(tmp_path: Path) -> None:
    """Out of a saved model and out of an original: its weights, and where it came from."""
    MADE["llava"](tmp_path / "llava")
    model = MultimodalModel.from_pretrained_multimodal_model(tmp_path / "llava")
    model.save_pretrained(tmp_path / "saved")
    mine = parts.vision_model()
    mine.save_pretrained(tmp_path / "mine")
    cases = (("llava", model, "llava", LLAVA), ("saved", model, "llava", LLAVA), ("mine", mine, "mine", None))
    for name, whole, source, part_of in cases:
        projector = loading.load_projector("vision", tmp_path / name)
        expected = whole.encoders["vision"].projector
        found, wanted = projector.state_dict(), expected.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        rows = torch.randn(3, 16)
        assert torch.equal(projector(rows), expected(rows))
        composed = MultimodalModel({"image": ModalEncoderModule(parts.clip(), projector)}, parts.llama())
        assert sources(composed)["image_projector"] == (
            str(tmp_path / source), None, "MultimodalProjector", part_of,
        )  # fmt: skip


def test_projectors_that_cannot_be_taken(tmp_path: Path) -> None:
    encoder = ModalEncoderModule(parts.clip(), MultimodalProjector(None, torch.nn.Linear(16, 24)))
    MultimodalModel({"vision": encoder}, parts.llama()).save_pretrained(tmp_path / "own")
    with pytest.raises(ArgumentError, match="a module of the caller's own"):
        loading.load_projector("vision", tmp_path / "own")
    model, _ = parts.three_modalities()
    model.save_pretrained(tmp_path / "three")
    with pytest.raises(ArgumentError, match="no projector for 'touch'; its modalities: vision, audio, speech"):
        loading.load_projector("touch", tmp_path / "three")
