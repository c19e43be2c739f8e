"""Merging: pure functions against slow obvious loops."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cornstarch import ModalityMismatchError
from cornstarch.models.multimodal_language_model import merge
from tests import parts

POSITIONS = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=4)


def square(rows: list[list[bool]]) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [False] * (width - len(row)) for row in rows])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=POSITIONS, width=st.integers(1, 3))
def test_scatter_is_a_loop_over_positions(rows: list[list[bool]], width: int) -> None:
    """Each modality position takes the next feature; gradients of both sides are those of the loop; exact."""
    mask = square(rows)
    embeds = torch.randn(*mask.shape, width, dtype=torch.float64, requires_grad=True)
    features = torch.randn(int(mask.sum()), width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(embeds)
    following = iter(features)
    slow = torch.stack(
        [
            torch.stack([next(following) if here else embeds[i, j] for j, here in enumerate(row)])
            for i, row in enumerate(mask.tolist())
        ]
    )
    fast = merge.scatter_features(embeds, mask, features)
    assert torch.equal(fast, slow)
    expected = torch.autograd.grad((slow * weights).sum(), (embeds, features), allow_unused=True)
    found = torch.autograd.grad((fast * weights).sum(), (embeds, features), allow_unused=True)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(torch.zeros(()) if a is None else a, b if a is not None else b.sum() * 0)


def obviously_pairs(positions: list[int], counts: list[int]) -> bool:
    """Give inputs to samples one by one; every sample must be filled exactly, and nothing be left."""
    left = list(counts)
    for wanted in positions:
        while wanted > 0 and left:
            wanted -= left.pop(0)
        if wanted != 0:
            return False
    return sum(left) == 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(positions=st.lists(st.integers(0, 6), min_size=1, max_size=4), counts=st.lists(st.integers(0, 4), max_size=6))
def test_pairing_is_giving_inputs_to_samples(positions: list[int], counts: list[int]) -> None:
    """Accepted exactly when handing out inputs one by one works."""
    if obviously_pairs(positions, counts):
        merge.check_pairing("x", positions, sum(counts), counts)
    else:
        with pytest.raises(ModalityMismatchError, match="modality 'x'"):
            merge.check_pairing("x", positions, sum(counts), counts)


@pytest.mark.parametrize(
    "positions, counts, sample",
    [([4, 4], [4], 1), ([4, 4], [4, 4, 4], 1), ([3, 5], [4, 4], 0), ([4, 2, 4], [4, 4, 2], 1), ([0, 0, 1], [], 2)],
)
def test_the_first_sample_that_disagrees_is_named(positions: list[int], counts: list[int], sample: int) -> None:
    with pytest.raises(ModalityMismatchError, match=f"{sum(positions)} positions.*{sum(counts)} features") as caught:
        merge.check_pairing("x", positions, sum(counts), counts)
    assert f"first sample that disagrees is {sample}, with {positions[sample]} positions" in str(caught.value)


def test_counted_labels_without_loss_are_warned_about() -> None:
    """When num_items_in_batch comes with labels at modality positions, and only then."""
    model = parts.vision_model()
    model.set_modality_token_ids({"vision": 300})
    ids = torch.tensor([[5, *[300] * 5, 6]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    with pytest.warns(UserWarning, match="num_items_in_batch"):
        model(**inputs, labels=ids, num_items_in_batch=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs, labels=ids.masked_fill(ids == 300, -100), num_items_in_batch=1)
        model(**inputs, labels=ids)


def test_bounds_unknown_means_the_total_counts() -> None:
    merge.check_pairing("x", [3, 5], 8, None)
    with pytest.raises(ModalityMismatchError):
        merge.check_pairing("x", [3, 5], 7, None)


def test_flatten_features() -> None:
    """Blocks, lists and packed rows, in order."""
    block = torch.arange(12.0).view(2, 3, 2)
    rows, counts = merge.flatten_features(block)
    assert torch.equal(rows, block.view(6, 2))
    assert counts == [3, 3]
    rows, counts = merge.flatten_features([block[0], block[1, :1]])
    assert torch.equal(rows, block.view(6, 2)[:4])
    assert counts == [3, 1]
    rows, counts = merge.flatten_features(block[0])
    assert torch.equal(rows, block[0])
    assert counts is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=POSITIONS, length=st.integers(1, 6))
def test_positions_count_what_the_mask_keeps(rows: list[list[bool]], length: int) -> None:
    """Kept places are numbered from 0 in order, on either side of padding and in between."""
    mask = square(rows).long()
    length = min(length, mask.shape[1])
    found = merge.positions_from_mask(mask, length)
    for row, kept in zip(found.tolist(), mask.tolist(), strict=True):
        numbers, following = [], 0
        for keep in kept:
            numbers.append(following)
            following += keep
        assert [n for n, k in zip(row, kept[-length:], strict=True) if k] == [
            n for n, k in zip(numbers[-length:], kept[-length:], strict=True) if k
        ]


def test_labels_at_modality_positions_carry_no_loss() -> None:
    labels = torch.tensor([[5, 6, 7]])
    masked = merge.mask_labels(labels, torch.tensor([[False, True, False]]))
    assert masked.tolist() == [[5, -100, 7]]
    assert labels.tolist() == [[5, 6, 7]], "the caller's labels are not changed"


def test_scatter_casts_features_and_leaves_its_arguments_alone() -> None:
    """Features come in the embeddings' dtype, neither argument is written to, strides do not matter; exact."""
    embeds = torch.randn(3, 2, 4, dtype=torch.bfloat16).transpose(0, 1)
    features = torch.randn(3, 4)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    before = embeds.clone(), features.clone()
    merged = merge.scatter_features(embeds, mask, features)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged[mask], features.to(torch.bfloat16))
    assert torch.equal(merged[~mask], embeds[~mask])
    assert torch.equal(embeds, before[0])
    assert torch.equal(features, before[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(positions=st.lists(st.integers(0, 3), max_size=4))
def test_absent_means_no_position_anywhere(positions: list[int]) -> None:
    """Accepted exactly when every sample has none; else the first that has some is named, with both counts."""
    if not any(positions):
        merge.check_absent("x", positions)
        return
    first = min(i for i, count in enumerate(positions) if count)
    message = f"'x'.* {sum(positions)} positions.*0 features.*disagrees is {first}, with {positions[first]} positions"
    with pytest.raises(ModalityMismatchError, match=message):
        merge.check_absent("x", positions)
