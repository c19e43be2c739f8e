"""In from Hugging Face: a LLaVA taken apart gives the original's logits."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from cornstarch import ArgumentError, MultimodalModel
from cornstarch.models.multimodal_language_model import importing
from tests import parts

IMAGE = 60


def configs() -> dict:
    return {
        "vision_config": CLIPVisionConfig(**{**parts.clip().config.to_dict(), "num_hidden_layers": 3}),
        "text_config": LlamaConfig(**{**parts.llama(vocabulary=64).config.to_dict()}),
        "image_token_index": IMAGE,
    }


@pytest.mark.parametrize("layer, strategy, positions", [(-2, "default", 4), (-1, "full", 5), ([-3, -1], "default", 4)])
def test_llava(tmp_path: Path, layer: int | list[int], strategy: str, positions: int) -> None:
    """Logits, greedy text and a save of the import equal the original's; fp64, 1e-10."""
    torch.manual_seed(0)
    original = LlavaForConditionalGeneration(
        LlavaConfig(**configs(), vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    )
    original.double().eval().save_pretrained(tmp_path / "llava")
    ids = torch.randint(0, IMAGE, (2, 12))
    ids[0, 1 : 1 + positions] = IMAGE
    ids[1, 3 : 3 + positions] = IMAGE
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64)}
    with torch.no_grad():
        expected = original(**inputs).logits
    text = original.generate(**inputs, max_new_tokens=5, do_sample=False)

    model = MultimodalModel.from_pretrained_multimodal_model(tmp_path / "llava", dtype=torch.float64)
    assert model.modality_token_ids == {"vision": IMAGE}
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    for candidate in (model, MultimodalModel.from_pretrained(tmp_path / "saved")):
        with torch.no_grad():
            torch.testing.assert_close(candidate(**inputs).logits, expected, rtol=0, atol=1e-10)
        assert torch.equal(candidate.generate(**inputs, max_new_tokens=5, do_sample=False), text)


def test_other_shapes_are_refused_with_the_reason() -> None:
    """LLaVA-NeXT has newline features; Qwen2-VL has other parts."""
    with pytest.raises(ArgumentError, match="newline"):
        importing.take_apart(LlavaNextForConditionalGeneration(LlavaNextConfig(**configs())))
    config = AutoConfig.for_model(
        "paligemma",
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        text_config={
            "model_type": "gemma",
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    )
    from transformers import PaliGemmaForConditionalGeneration

    with pytest.raises(ArgumentError, match="two linear layers"):
        importing.take_apart(PaliGemmaForConditionalGeneration(config))
