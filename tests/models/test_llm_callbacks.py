"""Callbacks before the language model: positions in three axes, deep features, features that see each other."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cornstarch import ArgumentError, ModalEncoderModule, ModalityMismatchError, MultimodalModel
from cornstarch.models.multimodal_language_model import callbacks, importing
from cornstarch.models.multimodal_language_model.callbacks import Chain
from cornstarch.models.multimodal_language_model.llm_callbacks import (
    DeepFeatures,
    FeaturesSeeEachOther,
    OutputDeepFeatures,
    RotaryPositions,
)
from tests import tiny
from tests.models.originals import IMAGE, ORIGINALS, VIDEO

# --- positions in three axes ------------------------------------------------------------------------------------------


def positions(ids: Tensor, mask: Tensor | None = None, callback: RotaryPositions | None = None, **grids: Any) -> Tensor:
    callback = callback or RotaryPositions(grids={"vision": "image_grid_thw", "video": "video_grid_thw"}, merge=2)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "inputs_embeds": torch.zeros(*ids.shape, 2),
        "modality_masks": {"vision": ids == IMAGE, "video": ids == VIDEO},
        **grids,
    }
    return callback(inputs)["position_ids"]


@pytest.mark.parametrize("side", ["left", "right", None])
def test_positions_are_those_of_the_original(side: str | None) -> None:
    """Qwen2-VL's own `get_rope_index`, on several images of several shapes, padded on either side."""
    original = ORIGINALS["qwen2-vl"].make()
    inputs = ORIGINALS["qwen2-vl"].inputs(original)
    ids, mask = inputs["input_ids"], torch.ones_like(inputs["input_ids"])
    if side is not None:
        pad = (3, 0) if side == "left" else (0, 3)
        ids = torch.nn.functional.pad(ids, pad)
        mask = torch.nn.functional.pad(mask, pad)
    expected, _ = original.model.get_rope_index(
        ids, (ids == IMAGE).int(), inputs["image_grid_thw"], attention_mask=mask
    )
    found = positions(ids, None if side is None else mask, image_grid_thw=inputs["image_grid_thw"])
    assert torch.equal(found[:, mask.bool()], expected[:, mask.bool()])


def test_neighbouring_images_and_videos() -> None:
    """Two images without text between them, and a video of two frames: by the paper's rule, worked out by hand."""
    ids = torch.tensor([[5, *[IMAGE] * 2, *[IMAGE] * 2, 6, *[VIDEO] * 4, 7]])
    images, videos = torch.tensor([[1, 2, 4], [1, 4, 2]]), torch.tensor([[2, 2, 4]])
    found = positions(ids, image_grid_thw=images, video_grid_thw=videos)[:, 0]
    assert found.T.tolist() == [
        [0, 0, 0],
        *([1, 1, 1], [1, 1, 2]),  # one row of two; the largest is 2
        *([3, 3, 3], [3, 4, 3]),  # two rows of one; the largest is 4
        [5, 5, 5],
        *([6, 6, 6], [6, 6, 7], [7, 6, 6], [7, 6, 7]),  # two frames of one row of two
        [8, 8, 8],
    ]


def test_real_time() -> None:
    """Frames half a second apart at 4 positions a second are 2 positions apart; images have no time."""
    timed = RotaryPositions(
        grids={"vision": "image_grid_thw", "video": "video_grid_thw"}, merge=2, per_second=4.0, timed="video"
    )
    ids = torch.tensor([[VIDEO, VIDEO, VIDEO, 5]])
    step = torch.tensor([0.5])
    found = positions(ids, callback=timed, video_grid_thw=torch.tensor([[3, 2, 2]]), second_per_grid_ts=step)
    assert found[0, 0].tolist() == [0, 2, 4, 5]
    assert found[1, 0].tolist() == [0, 0, 0, 5]


def test_grids_that_do_not_agree_with_positions() -> None:
    one = torch.tensor([[1, 4, 4]])
    with pytest.raises(ModalityMismatchError, match="stands for 4 positions"):
        positions(torch.tensor([[5, IMAGE, IMAGE, 6, IMAGE, IMAGE]]), image_grid_thw=one)
    with pytest.raises(ModalityMismatchError, match="beyond those of its grids"):
        positions(torch.tensor([[IMAGE] * 4 + [5] + [IMAGE] * 4]), image_grid_thw=one)
    with pytest.raises(ModalityMismatchError, match="2 grids, input_ids have positions for 1"):
        positions(torch.tensor([[IMAGE] * 4 + [5]]), image_grid_thw=one.repeat(2, 1))


def test_without_grids_or_with_the_callers_positions_nothing_changes() -> None:
    callback = RotaryPositions(grids={"vision": "image_grid_thw"}, merge=2)
    ids = torch.tensor([[5, 6]])
    text = {"input_ids": ids, "inputs_embeds": torch.zeros(1, 2, 2), "modality_masks": {"vision": ids == IMAGE}}
    assert callback(text) == text
    given = {**text, "position_ids": torch.zeros(3, 1, 2), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    assert callback(given) == given


def test_positions_behind_a_cache_are_the_callers() -> None:
    """They cannot be told from the tokens that follow; with the original's own they give its logits, fp64, 1e-10."""
    original = ORIGINALS["qwen2-vl"].make()
    inputs = ORIGINALS["qwen2-vl"].inputs(original)
    following = torch.tensor([[7], [8]])
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], following], dim=1)}
    whole["mm_token_type_ids"] = (whole["input_ids"] == IMAGE).int()
    with torch.no_grad():
        expected = original(**whole).logits[:, -1]
        found, _ = original.model.get_rope_index(
            whole["input_ids"], whole["mm_token_type_ids"], inputs["image_grid_thw"]
        )
        model = importing.take_apart(original)
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ArgumentError, match="position_ids, going on from the largest"):
            model(input_ids=following, past_key_values=cache)
        logits = model(input_ids=following, past_key_values=cache, position_ids=found[..., -1:]).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_positions_of_one_axis_are_the_callers() -> None:
    """Given (B, S), they are used as the original uses them, and not replaced: fp64, 1e-10."""
    original = ORIGINALS["qwen2-vl"].make()
    inputs = ORIGINALS["qwen2-vl"].inputs(original)
    given = 3 * torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
    expected, otherwise = original(**inputs, position_ids=given).logits, original(**inputs).logits
    found = importing.take_apart(original)(**inputs, position_ids=given).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (expected - otherwise).abs().max() > 1e-3, "positions show"


# --- features that see each other -------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("past", [0, 2])
def test_masks_against_a_slow_loop(window: int | None, past: int) -> None:
    """Every pair of positions by the rule in words: causal, or the same run of features; not padding; within reach."""
    ids = torch.tensor([[5, IMAGE, IMAGE, IMAGE, VIDEO, VIDEO, 6, IMAGE], [0, 0, 5, IMAGE, IMAGE, 5, IMAGE, IMAGE]])
    attended = torch.cat([torch.ones(2, past).long(), (ids != 0).long()], dim=1)

    class Cache:
        def get_seq_length(self) -> int:
            return past

    inputs = {
        "input_ids": ids,
        "attention_mask": attended,
        "inputs_embeds": torch.zeros(*ids.shape, 2, dtype=torch.float64),
        "modality_masks": {"vision": ids == IMAGE, "video": ids == VIDEO},
        **({"past_key_values": Cache()} if past else {}),
    }
    masks = FeaturesSeeEachOther(window=window)(inputs)["attention_mask"]
    by_kind = {"full_attention": masks} if window is None else masks
    whole = torch.cat([torch.zeros(2, past).long(), ids], dim=1).tolist()
    for kind, found in by_kind.items():
        for sample, row in enumerate(whole):
            for query in range(past, len(row)):
                for key in range(len(row)):
                    one_run = row[query] in (IMAGE, VIDEO) and all(
                        row[between] == row[query] for between in range(min(query, key), max(query, key) + 1)
                    )
                    sees = (key <= query or one_run) and attended[sample, key] == 1
                    if kind == "sliding_attention":
                        sees = sees and key > query - window
                    assert (found[sample, 0, query - past, key] == 0) == bool(sees), (kind, sample, query, key)


def test_without_features_the_mask_stays() -> None:
    ids = torch.tensor([[5, 6]])
    inputs = {"input_ids": ids, "inputs_embeds": torch.zeros(1, 2, 2), "modality_masks": {"vision": ids == IMAGE}}
    assert FeaturesSeeEachOther()(inputs) == inputs


# --- in a composition of one's own ------------------------------------------------------------------------------------


def test_saved_by_name() -> None:
    """Description and back, with lists where JSON has no tuples."""
    chain = Chain(
        callbacks=(
            RotaryPositions(grids={"vision": "image_grid_thw"}, merge=2),
            DeepFeatures(keys=("vision",)),
            FeaturesSeeEachOther(window=4),
        )
    )
    assert callbacks.build(callbacks.describe(chain)) == chain
    assert callbacks.build(callbacks.describe(OutputDeepFeatures())) == OutputDeepFeatures()
    assert callbacks.additional_args(chain) == ("mm_token_type_ids", "second_per_grid_ts", "token_type_ids")


def test_features_see_each_other_in_any_language_model() -> None:
    """A Llama with an image: the first feature's logits depend on the last one then, and a save keeps that."""
    encoder = ModalEncoderModule(tiny.encoder("siglip"))
    model = MultimodalModel({"vision": encoder}, tiny.language_model(), FeaturesSeeEachOther()).eval()
    model.set_modality_token_ids({"vision": tiny.IMAGE})
    ids = torch.tensor([[5, *[tiny.IMAGE] * 4, 6]])
    outputs = torch.randn(1, 4, 24)
    other = outputs.clone()
    other[:, -1] += 1
    with torch.no_grad():
        pair = [model(input_ids=ids, encoder_outputs={"vision": rows}).logits[0] for rows in (outputs, other)]
        model.preprocess_llm_callback = None
        causal = [model(input_ids=ids, encoder_outputs={"vision": rows}).logits[0] for rows in (outputs, other)]
    assert (pair[0] - pair[1])[1].abs().max() > 1e-3
    assert torch.equal(causal[0][1], causal[1][1])
    assert torch.allclose(pair[0][0], pair[1][0], atol=1e-6), "text before them stays causal"
