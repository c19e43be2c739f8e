"""Back into the format that a model came from: plain transformers loads what was trained, with the same logits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from cornstarch import ArgumentError, AveragePool, CornstarchError, ModalEncoderModule, MultimodalModel
from cornstarch.models.multimodal_language_model import importing, returning
from tests import parts
from tests.models.originals import ORIGINALS
from tests.models.test_importing import GREEDY, close, padded


def trained(name: str, tmp_path: Path) -> tuple[MultimodalModel, type, dict[str, Any]]:
    """An import, saved and loaded again, every weight of which was changed since."""
    row = ORIGINALS[name]
    original = row.make()
    inputs = row.inputs(original)
    importing.take_apart(original).save_pretrained(tmp_path / "saved")
    model = MultimodalModel.from_pretrained(tmp_path / "saved")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, type(original), inputs


@pytest.mark.parametrize("name", ORIGINALS)
@torch.no_grad()
def test_trained_weights_go_back(name: str, tmp_path: Path) -> None:
    """Logits of the reloaded original are the composition's, fp64 1e-10, and so is greedy text of a padded batch."""
    model, cls, inputs = trained(name, tmp_path)
    expected = model(**inputs).logits
    batch = padded(inputs, "left")
    text = model.generate(**batch, **GREEDY)
    returning.original_of(model).save_pretrained(tmp_path / "back")
    reloaded, report = cls.from_pretrained(tmp_path / "back", dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    close(reloaded(**inputs).logits, expected)
    assert torch.equal(reloaded.generate(**batch, **GREEDY), text)


@pytest.mark.parametrize("change", ["fewer layers", "tied"])
@torch.no_grad()
def test_the_config_says_what_the_parts_are_now(change: str, tmp_path: Path) -> None:
    """A language model of the same class with fewer layers and other positions; a head that was tied since."""
    model, cls, inputs = trained("llava", tmp_path)
    if change == "tied":
        model.language_model.set_output_embeddings(nn.Linear(24, 64, bias=False, dtype=torch.float64))
        model.language_model.lm_head.weight = model.language_model.get_input_embeddings().weight
    else:
        config = copy.deepcopy(model.language_model.config)
        config.num_hidden_layers, config.rope_parameters["rope_theta"] = 2, 77.0
        model.replace_part("language_model", LlamaForCausalLM(config).double().eval())
    expected = model(**inputs).logits
    returning.original_of(model).save_pretrained(tmp_path / "back")
    reloaded, report = cls.from_pretrained(tmp_path / "back", dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"]
    close(reloaded(**inputs).logits, expected)


def test_a_tied_head_that_the_format_cannot_tie_is_refused(tmp_path: Path) -> None:
    model, *_ = trained("qwen2-audio", tmp_path)
    model.language_model.lm_head.weight = model.language_model.get_input_embeddings().weight
    with pytest.raises(ArgumentError, match="cannot tie them"):
        returning.original_of(model)


def test_what_the_format_has_no_place_for(tmp_path: Path) -> None:
    """A model of one's own, a changed callback, another projector, a further encoder: each is refused by its place."""
    with pytest.raises(ArgumentError, match="was not imported"):
        returning.original_of(parts.vision_model())

    model, *_ = trained("llava", tmp_path)
    model.vision_encoder.postprocess_projector_callback = AveragePool(size=2)
    with pytest.raises(ArgumentError, match=r"vision_encoder.postprocess_projector_callback is AveragePool"):
        returning.original_of(model)
    model.vision_encoder.postprocess_projector_callback = None
    model.vision_encoder.projector.projection = nn.Sequential(nn.Identity(), nn.GELU(), nn.Linear(16, 24))
    with pytest.raises(ArgumentError, match=r"projection.0 is a Identity"):
        returning.original_of(model)

    both = {"vision": model.vision_encoder, "speech": ModalEncoderModule(parts.wav2vec2())}
    larger = MultimodalModel(both, model.language_model)
    larger.origin = model.origin
    with pytest.raises(ArgumentError, match=r"encoders vision, speech.*'vision' only"):
        returning.original_of(larger)


@pytest.mark.parametrize(
    "damage, message",
    [
        ({"shape": "other"}, "the shape 'other', which this version does not know"),
        ({"class": "os.system"}, "os.system, which is no class of transformers"),
        ({"class": "transformers.configuration_utils.PreTrainedConfig"}, "is no PreTrainedModel of transformers"),
        ({"config_class": None}, "names None, which is no PreTrainedConfig"),
        ({"config": "llava"}, "was imported with is damaged"),
        ({"config": {"vision_config": 3}}, "was imported with is damaged"),
    ],
)
def test_a_damaged_origin(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Each is said, and nothing that is not of transformers is ever imported."""
    model, *_ = trained("llava", tmp_path)
    model.origin = {**model.origin, **damage}
    with pytest.raises(CornstarchError, match=message):
        returning.original_of(model)
