"""4. Merging: pure functions that say where features go, how many there must be, and put them there.

Shapes: B samples, S positions, D embedding width, N features.
"""

import warnings
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from cornstarch.errors import ArgumentError, ModalityMismatchError

IGNORE_INDEX = -100  # the label of positions that carry no loss, as everywhere in PyTorch


def flatten_features(features: Tensor | list[Tensor]) -> tuple[Tensor, list[int] | None]:
    """One row per feature, and how many of them each input yielded.

    Args:
        features: (inputs, T, D), a list with one (T_i, D) per input, or (N, D) where the inputs' bounds are unknown.

    Returns:
        (N, D), and the count per input, or None where the bounds are unknown.
    """
    if isinstance(features, list):
        return torch.cat(features), [len(rows) for rows in features]
    if features.dim() == 2:
        return features, None
    return features.flatten(0, 1), [features.shape[1]] * features.shape[0]


def check_pairing(key: str, positions: list[int], features: int, per_input: list[int] | None) -> None:
    """Check that features and positions agree, and that every input's features lie within one sample.

    Args:
        key: the modality, for the message.
        positions: how many positions of this modality each sample has.
        features: how many features the encoder yielded in all.
        per_input: how many of them each input yielded, None if unknown.

    Raises:
        ModalityMismatchError: naming the modality, both counts and the first sample that disagrees.
    """
    ends = list(accumulate(positions))
    bounds = {0, *accumulate(per_input)} if per_input is not None else None
    if sum(positions) == features and (bounds is None or bounds.issuperset(ends)):
        return
    sample = next((i for i, end in enumerate(ends) if end > features or (bounds and end not in bounds)), len(ends) - 1)
    detail = ""
    if per_input is not None:
        detail = f"; the {len(per_input)} inputs yield {_shortened(per_input)} features"
    hint = "" if sum(positions) != features else "; an input's features may not be shared by two samples"
    raise ModalityMismatchError(
        f"modality {key!r}: input_ids have {sum(positions)} positions for it, its encoder yielded {features} features; "
        f"the first sample that disagrees is {sample}, with {positions[sample] if positions else 0} positions"
        f"{detail}{hint}. Let MultimodalProcessor write the positions, or repeat each token as often as its input "
        "yields features"
    )


def check_absent(key: str, positions: list[int]) -> None:
    """Check that a modality without an input has no positions either.

    Args:
        key: the modality, for the message.
        positions: how many positions of this modality each sample has.

    Raises:
        ModalityMismatchError: naming the modality, both counts and the first sample that has positions.
    """
    sample = next((index for index, count in enumerate(positions) if count), None)
    if sample is not None:
        raise ModalityMismatchError(
            f"modality {key!r}: input_ids have {sum(positions)} positions for it, its input is absent (0 features); "
            f"the first sample that disagrees is {sample}, with {positions[sample]} positions. Pass the encoder's input"
        )


def scatter_features(inputs_embeds: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """Put features at the positions of their modality, in order.

    Args:
        inputs_embeds: (B, S, D).
        mask: (B, S), True at N positions.
        features: (N, D), cast to the dtype and device of `inputs_embeds`.

    Returns:
        (B, S, D), a new tensor through which gradients flow to both.
    """
    index = mask.flatten().nonzero().squeeze(-1)
    rows = features.to(device=inputs_embeds.device, dtype=inputs_embeds.dtype)
    with torch.autocast(inputs_embeds.device.type, enabled=False):  # which would cast one of the two
        return inputs_embeds.flatten(0, 1).index_copy(0, index, rows).view_as(inputs_embeds)


def mask_labels(labels: Tensor, mask: Tensor) -> Tensor:
    """Labels (B, S) with positions of a modality (B, S) taken out of the loss."""
    return labels.masked_fill(mask.to(labels.device), IGNORE_INDEX)


def unshifted(shift_labels: Tensor) -> Tensor:
    """Labels in their own places, of labels that stand where they are predicted.

    Args:
        shift_labels: (B, S), at each position the label of the next.

    Returns:
        (B, S), for which a causal language model's loss is the same.

    Raises:
        ArgumentError: if the last position has a label, which has no place in the batch.
    """
    if not (shift_labels[:, -1:] == IGNORE_INDEX).all():
        raise ArgumentError(
            "shift_labels have a label at the last position, of a token that is not in the batch; set it to -100, or "
            "pass labels"
        )
    return torch.cat([torch.full_like(shift_labels[:, :1], IGNORE_INDEX), shift_labels[:, :-1]], dim=1)


def warn_if_counted(labels: Tensor | None, kept: Tensor | None, modalities: list[str]) -> None:
    """Warn of labels at modality positions that somebody outside the model counts, or computes a loss on.

    Args:
        labels: (B, S) as they were given, None if they did not reach the model.
        kept: (B, S), those of them that carry a loss.
        modalities: those that the batch has.
    """
    if labels is None and modalities:
        warnings.warn(
            "num_items_in_batch was given, labels did not reach the model (Trainer keeps them for label smoothing and "
            "for a loss of the caller's own): the model cannot ignore labels at modality positions then, they must "
            "be -100 there in the data",
            stacklevel=2,
        )
    if labels is not None and kept is not None and not torch.equal(labels, kept):
        warnings.warn(
            "labels at modality positions are not -100: whoever counted num_items_in_batch counted them too, so the "
            "loss is divided by too much. Set labels to -100 there before they are counted",
            stacklevel=2,
        )


def positions_from_mask(attention_mask: Tensor, length: int) -> Tensor:
    """Position ids (B, length) of the last `length` places of a mask (B, S): padding takes part in no count."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def check_positions(most: int | None, first: int, arguments: Mapping[str, Any], new_tokens: int = 0) -> None:
    """Refuse more positions than a language model has in its table, where it would fail without saying so.

    Args:
        most: how many it has; None where any number will do.
        first: the position id of the first token.
        arguments: the language model's: `inputs_embeds` (B, S, D), and its mask and positions as far as there are any.
        new_tokens: how many are to be generated at most.

    Raises:
        ArgumentError: with both numbers.
    """
    length, mask = arguments["inputs_embeds"].shape[1], arguments.get("attention_mask")
    flat = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None  # covers what a cache holds, too
    if most is None or max(length, 0 if flat is None else flat.shape[1]) + new_tokens <= most:
        return
    positions = arguments.get("position_ids")
    if positions is not None:
        needed = int(positions.max()) + 1 - first
    else:
        needed = length if flat is None else int(flat.sum(-1).max())
    if needed > most:
        raise ArgumentError(
            f"a sample takes {needed} positions, those of its features included, and the language model has {most}: "
            "shorten the text, let the encoder yield fewer features, or take a language model that has more"
        )
    if needed + new_tokens > most:
        warnings.warn(
            f"{new_tokens} new tokens behind {needed} positions are more than the {most} that the language model has: "
            f"it fails if it goes on for more than {most - needed}",
            stacklevel=3,
        )


def _shortened(counts: list[int]) -> str:
    shown = ", ".join(str(count) for count in counts[:8])
    return f"[{shown}{', ...' if len(counts) > 8 else ''}]"
