"""In from Hugging Face: models taken apart give the original's logits, gradients and text."""

import copy
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, DynamicCache, LogitsProcessorList, PaliGemmaForConditionalGeneration

from cornstarch import ArgumentError, MultimodalModel
from cornstarch.models.multimodal_language_model import importing
from tests.models.originals import IMAGE, ORIGINALS

GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(params=ORIGINALS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def padded(inputs: dict[str, Any], side: str) -> dict[str, Any]:
    """The same batch with four positions of padding at one side of the second sample, text cut off the other side."""
    ids, mask = inputs["input_ids"].clone(), torch.ones_like(inputs["input_ids"])
    here, there = (slice(None, 4), slice(4, None)) if side == "left" else (slice(-4, None), slice(None, -4))
    gap = torch.full((4,), 0)
    ids[1, there] = inputs["input_ids"][1, : ids.shape[1] - 4]
    ids[1, here], mask[1, here] = gap, 0
    lost = inputs["input_ids"][1, -4:]
    assert (lost != IMAGE).all(), "only text is cut off"
    changed = {**inputs, "input_ids": ids, "attention_mask": mask}
    for types in ("mm_token_type_ids", "token_type_ids"):
        if types in inputs:
            changed[types] = (ids == IMAGE).to(inputs[types].dtype)
    return changed


@torch.no_grad()
def test_logits(name: str, tmp_path: Path) -> None:
    """Dense and padded, several images, loaded from a folder, saved and loaded again; fp64, 1e-10.

    The originals of padded batches are given the positions that `generate` gives them, as they count padding in
    `forward` otherwise; those with positions in three axes make them themselves.
    """
    row = ORIGINALS[name]
    made = row.make()
    made.save_pretrained(tmp_path / "original")
    original = type(made).from_pretrained(tmp_path / "original", dtype=torch.float64)
    model = MultimodalModel.from_pretrained_multimodal_model(tmp_path / "original", dtype=torch.float64)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert list(model.modality_token_ids.values()) == [IMAGE]
    model.save_pretrained(tmp_path / "saved")
    again = MultimodalModel.from_pretrained(tmp_path / "saved")
    dense = row.inputs(original)
    for inputs in (dense, padded(dense, "left"), padded(dense, "right")):
        mask = inputs.get("attention_mask")
        known = {}
        if mask is not None and "mm_token_type_ids" not in inputs:
            known = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        expected = original(**inputs, **known).logits
        real = torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()
        for candidate in (model, again):
            close(candidate(**inputs).logits[real], expected[real])
    with torch.no_grad():
        main = next(value for value in dense if value in ("pixel_values", "input_features"))
        other = model(**{**dense, main: dense[main].flip(-1)}).logits
    assert (other - model(**dense).logits).abs().max() > 1e-3, "the input shows"


def test_gradients(name: str) -> None:
    """In every weight of the original that gets one, of a loss that keeps fp64 (Hugging Face's does not); 1e-10."""
    row = ORIGINALS[name]
    original = row.make()
    inputs = row.inputs(original)
    text = inputs["input_ids"] != IMAGE
    original(**inputs).logits[text].logsumexp(-1).mean().backward()
    expected = {id(parameter): parameter.grad for parameter in original.parameters()}
    names = {id(parameter): place for place, parameter in original.named_parameters()}
    original.zero_grad(set_to_none=True)
    model = importing.take_apart(original)
    model.train(encoders_mode=dict.fromkeys(model.encoders, (True, True)), llm_mode=True)
    model(**inputs).logits[text].logsumexp(-1).mean().backward()
    found = {names[id(parameter)]: (parameter.grad, expected[id(parameter)]) for parameter in model.parameters()}
    assert set(found) == set(names.values())
    for place, (mine, theirs) in found.items():
        assert (mine is None) == (theirs is None), place
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10, msg=place)


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_text(name: str, beams: int) -> None:
    """Of a left-padded batch, with and without beams; and the scores of every token."""
    row = ORIGINALS[name]
    original = row.make()
    inputs = padded(row.inputs(original), "left")
    if beams > 1 and name == "qwen2-audio":
        # The original repeats sounds for beams one by one, so that of two sounds in a sample a beam hears one twice.
        inputs = {key: value[-1:] for key, value in inputs.items()}  # the second sample has one sound, the third
    asked = {**GREEDY, "num_beams": beams, "return_dict_in_generate": True, "output_scores": True}
    expected = original.generate(**inputs, **asked)
    found = importing.take_apart(copy.deepcopy(original)).generate(**inputs, **asked)
    assert torch.equal(found.sequences, expected.sequences)
    for mine, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # `generate` takes them in fp32


def test_static_and_given_caches(name: str) -> None:
    """Give the text of the model's own cache."""
    original = ORIGINALS[name].make()
    inputs = ORIGINALS[name].inputs(original)
    model = importing.take_apart(original)
    expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), expected)
    given = DynamicCache(config=model.language_model.config)
    assert torch.equal(model.generate(**inputs, **GREEDY, past_key_values=given), expected)


@pytest.mark.parametrize("name", ["gemma3", "qwen3-vl"])
def test_threads_do_not_see_each_others_prompts(name: str) -> None:
    """One generates from text of another length while another is in the midst of an image's."""
    original = ORIGINALS[name].make()
    inputs = ORIGINALS[name].inputs(original)
    model = importing.take_apart(original)
    ids = torch.arange(3, 12)[None]
    expected, found = model.generate(ids, torch.ones_like(ids), **GREEDY), []

    def meanwhile(_: Tensor, scores: Tensor) -> Tensor:
        thread = Thread(target=lambda: found.append(model.generate(ids, torch.ones_like(ids), **GREEDY)))
        thread.start()
        thread.join()
        return scores

    model.generate(**inputs, **GREEDY, logits_processor=LogitsProcessorList([meanwhile]))
    assert len(found) == GREEDY["max_new_tokens"]
    assert all(torch.equal(text, expected) for text in found)


def test_a_cache_that_holds_a_part_of_the_prompt_is_refused() -> None:
    """Where the prompt's masks are ready ones; nothing is left behind."""
    original = ORIGINALS["gemma3"].make()
    inputs = ORIGINALS["gemma3"].inputs(original)
    model = importing.take_apart(original)
    expected = model.generate(**inputs, **GREEDY)
    cache = model.generate(**inputs, **GREEDY, return_dict_in_generate=True).past_key_values
    longer = {"input_ids": torch.cat([expected, expected[:, -1:]], dim=1), "pixel_values": inputs["pixel_values"]}
    with pytest.raises(ArgumentError, match="generate without a cache that holds the others"):
        model.generate(**longer, **GREEDY, past_key_values=cache)
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)


@torch.no_grad()
def test_ready_outputs_that_lack_something() -> None:
    """Rows alone have nothing for inner layers, and no places in a grid."""
    original = ORIGINALS["qwen3-vl"].make()
    inputs = ORIGINALS["qwen3-vl"].inputs(original)
    model = importing.take_apart(original)
    expected = model(**inputs).logits
    pixels = inputs.pop("pixel_values")
    tower = model.vision_encoder.module(pixels, grid_thw=inputs["image_grid_thw"])
    whole = model.vision_encoder.postprocess_module_callback({}, tower)
    close(model(**inputs, encoder_outputs={"vision": whole}).logits, expected)
    with pytest.raises(ArgumentError, match="without those of inner layers"):
        model(**inputs, encoder_outputs={"vision": whole.rows})
    del inputs["image_grid_thw"]
    with pytest.raises(ArgumentError, match="need image_grid_thw"):
        model(**inputs, encoder_outputs={"vision": whole})


@torch.no_grad()
def test_no_images_at_all() -> None:
    """Empty tensors of a batch without images, beside counts that are not empty, are text alone."""
    original = ORIGINALS["llava-onevision"].make()
    inputs = ORIGINALS["llava-onevision"].inputs(original)
    model = importing.take_apart(original)
    ids = torch.arange(3, 21).reshape(2, 9)
    none = {name: inputs[name][:0] for name in ("pixel_values", "image_sizes")}
    found = model(input_ids=ids, **none, batch_num_images=torch.tensor([0, 0])).logits
    close(found, model(input_ids=ids).logits)


@pytest.mark.parametrize("layer, strategy, positions", [(-1, "full", 17), ([-3, -1], "default", 16)])
@torch.no_grad()
def test_chosen_layers(layer: int | list[int], strategy: str, positions: int) -> None:
    """One layer with its class token, and two side by side."""
    row = ORIGINALS["llava"]
    changed = {**row.config, "vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    original = row._replace(config=changed).make()
    ids = torch.randint(3, IMAGE - 1, (1, 24))
    ids[0, 2 : 2 + positions] = IMAGE
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16, dtype=torch.float64)}
    expected = original(**inputs).logits
    close(importing.take_apart(original)(**inputs).logits, expected)


def test_other_shapes_are_refused_with_the_reason() -> None:
    """PaliGemma's features are masked and scaled in a way of their own."""
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {
        "model_type": "gemma",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    config = AutoConfig.for_model("paligemma", vision_config=tower, text_config=text)
    with pytest.raises(ArgumentError, match=r"vision_tower, multi_modal_projector.*two_linears"):
        importing.take_apart(PaliGemmaForConditionalGeneration(config))
