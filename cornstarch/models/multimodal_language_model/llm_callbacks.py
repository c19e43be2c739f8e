"""4a. Callbacks before the language model: positions in three axes, deep features, features that see each other.

Shapes: B samples, S positions, P positions in the cache, D embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cornstarch.errors import ArgumentError, ModalityMismatchError
from cornstarch.models.multimodal_language_model import anatomy, ready_mask


@dataclass(frozen=True, kw_only=True)
class RotaryPositions:
    """A `preprocess_llm_callback` that gives features positions in time, height and width (M-RoPE).

    Text counts on in all three at once; the features of an image or a video start at the position that is next and are
    told apart by their place in the grid; what follows goes on behind the largest of them
    (Qwen2-VL, https://arxiv.org/abs/2409.12191).

    Attributes:
        grids: modality key to the argument that holds its inputs' grids (inputs, 3), in patches: time, height, width.
        merge: patches per side that become one feature.
        per_second: positions in time per second, where time is real time (Qwen2.5-VL,
            https://arxiv.org/abs/2502.13923); None counts frames. Seconds per frame come as `second_per_grid_ts`, for
            each input of the modality `timed`.
        timed: the modality whose inputs have real time, if any.
    """

    grids: Mapping[str, str]
    merge: int = 1
    per_second: float | None = None
    timed: str | None = None
    additional_args: ClassVar[tuple[str, ...]] = ("mm_token_type_ids", "second_per_grid_ts")

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add `position_ids`.

        Args:
            inputs: what the model was called with, and `modality_masks`.

        Returns:
            The same with `position_ids` (3, B, S); unchanged where there are none to work out: the caller gave some, or
            no modality is in the batch.

        Raises:
            ModalityMismatchError: if grids and positions do not agree.
            ArgumentError: if a modality has positions and no grids, or tokens follow others in a cache and the caller
                gave no positions.
        """
        given = inputs.get("position_ids")
        masks = {key: mask for key, mask in inputs["modality_masks"].items() if key in self.grids}
        grids = {key: inputs[name] for key, name in self.grids.items() if inputs.get(name) is not None and key in masks}
        callers = "position_ids" in inputs.get("called_with", ())
        if callers or (given is not None and given.dim() == 3) or inputs["input_ids"] is None:
            return inputs
        for key, mask in masks.items():
            if key not in grids and bool(mask.any()):
                raise ArgumentError(
                    f"modality {key!r}: positions need {self.grids[key]}, also beside encoder_outputs; or give "
                    "position_ids of three axes"
                )
        cache = next((inputs[name] for name in anatomy.CACHE_NAMES if inputs.get(name) is not None), None)
        if cache is not None and cache.get_seq_length():
            raise ArgumentError(
                "nothing tells which positions the tokens in a cache have, where some are of images: give "
                "position_ids, going on from the largest so far; generate does so by itself"
            )
        if not grids:
            return inputs
        queues = {
            key: [self._places(key, index, cells, inputs) for index, cells in enumerate(grid)]
            for key, grid in grids.items()
        }
        length, batch = inputs["input_ids"].shape[1], inputs["input_ids"].shape[0]
        attended = inputs.get("attention_mask")
        seen = torch.ones(batch, length, dtype=torch.bool)
        if isinstance(attended, Tensor) and attended.dim() == 2:
            seen = attended[:, -length:].bool().cpu()
        device = inputs["inputs_embeds"].device
        rows = [
            self._of_sample({key: masks[key][sample].cpu() for key in queues}, seen[sample], queues)
            for sample in range(batch)
        ]
        left = [key for key, queue in queues.items() if queue]
        if left:
            raise ModalityMismatchError(
                f"modality {left[0]!r}: {self.grids[left[0]]} has {len(grids[left[0]])} grids, input_ids have "
                f"positions for {len(grids[left[0]]) - len(queues[left[0]])} of them"
            )
        return {**inputs, "position_ids": torch.stack(rows, dim=1).to(device)}

    def _places(self, key: str, index: int, grid: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Time, height and width (3, features) of each feature of an input, from 0."""
        frames, height, width = (int(cells) for cells in grid.tolist())
        time = torch.arange(frames)
        if self.per_second is not None and key == self.timed:
            seconds = inputs.get("second_per_grid_ts")
            step = 1.0 if seconds is None else float(seconds[index])
            time = (time * (self.per_second * step)).long()
        axes = time, torch.arange(height // self.merge), torch.arange(width // self.merge)
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)

    def _of_sample(self, masks: Mapping[str, Tensor], seen: Tensor, queues: dict[str, list[Tensor]]) -> Tensor:
        """Positions (3, S) of one sample; grids are taken off the front of the queues."""
        positions = torch.zeros(3, seen.shape[0], dtype=torch.long)
        owners = {int(place): key for key, mask in masks.items() for place in mask.nonzero().squeeze(-1)}
        places = seen.nonzero().squeeze(-1)
        at = following = 0
        while at < len(places):
            key = owners.get(int(places[at]))
            if key is None:
                run = at
                while run < len(places) and int(places[run]) not in owners:
                    run += 1
                positions[:, places[at:run]] = torch.arange(run - at) + following
                at, following = run, following + run - at
                continue
            if not queues[key]:
                raise ModalityMismatchError(f"modality {key!r}: input_ids have positions beyond those of its grids")
            block = queues[key].pop(0)
            mine = places[at : at + block.shape[1]]
            if mine.shape[0] != block.shape[1] or any(owners.get(int(place)) != key for place in mine):
                raise ModalityMismatchError(
                    f"modality {key!r}: a grid stands for {block.shape[1]} positions, input_ids have fewer in a row"
                )
            positions[:, mine] = block + following
            at, following = at + block.shape[1], int(block.max()) + 1 + following
        return positions


@dataclass(frozen=True, kw_only=True)
class DeepFeatures:
    """A `preprocess_llm_callback` that hands features of inner encoder layers to inner layers of the language model.

    DeepStack (https://arxiv.org/abs/2406.04334), as Qwen3-VL's text backbone takes it. The encoder needs
    `OutputDeepFeatures` behind it.

    Attributes:
        keys: the modalities whose encoders have such features.
    """

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add `visual_pos_masks` (B, S) and `deepstack_visual_embeds`, a list of (N, D) with a row per true entry.

        Args:
            inputs: what the model was called with, `modality_masks`, and `{key}_deep`.

        Returns:
            The same with both; unchanged where no such modality is in the batch.

        Raises:
            ArgumentError: if a modality has features and none for inner layers.
        """
        found = {key: inputs[f"{key}_deep"] for key in self.keys if inputs.get(f"{key}_deep") is not None}
        lacking = [key for key in self.keys if key not in found and key in inputs["modality_masks"]]
        lacking = [key for key in lacking if bool(inputs["modality_masks"][key].any())]
        if lacking:
            raise ArgumentError(
                f"modality {lacking[0]!r}: its features come without those of inner layers; give as encoder_outputs "
                "what the module callback returned (Features with the extra 'deep')"
            )
        if not found:
            return inputs
        masks = {key: inputs["modality_masks"][key] for key in found}
        together = torch.stack(list(masks.values())).any(0)
        layers = len(next(iter(found.values())))
        rows = []
        for layer in range(layers):
            embeds = inputs["inputs_embeds"]
            rows_of_layer = embeds.new_zeros(*together.shape, embeds.shape[-1])
            for key, deep in found.items():
                rows_of_layer = rows_of_layer.masked_scatter(
                    masks[key][..., None].to(embeds.device), deep[layer].to(embeds)
                )
            rows.append(rows_of_layer[together.to(embeds.device)])
        return {**inputs, "visual_pos_masks": together, "deepstack_visual_embeds": rows}


@dataclass(frozen=True, kw_only=True)
class OutputDeepFeatures:
    """A `postprocess_module_callback` that keeps what a tower yields for inner layers (see `DeepFeatures`)."""

    def __call__(self, inputs: dict[str, Any], output: Any) -> Any:
        """The tower's merged rows, with its `deepstack_features` beside them."""
        deep = getattr(output, "deepstack_features", None)
        if deep is None:
            raise ArgumentError(f"OutputDeepFeatures: {type(output).__name__} has no deepstack_features")
        return anatomy.Features(output.pooler_output, {"deep": list(deep)})


@dataclass(frozen=True, kw_only=True)
class FeaturesSeeEachOther:
    """A `preprocess_llm_callback` for language models whose features of one input see each other (Gemma 3).

    Text stays causal; neighbouring positions of one modality see each other in both directions
    (https://arxiv.org/abs/2503.19786).

    Attributes:
        window: positions that layers with a sliding window see; None if there are no such layers.
    """

    window: int | None = None
    additional_args: ClassVar[tuple[str, ...]] = ("token_type_ids", "mm_token_type_ids")

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Replace `attention_mask` (B, P + S) by ready masks (B, 1, S, P + S), one per kind of layer with a window."""
        features = [mask for mask in inputs["modality_masks"].values() if bool(mask.any())]
        mask, embeds = inputs.get("attention_mask"), inputs["inputs_embeds"]
        if not features or (isinstance(mask, Tensor) and mask.dim() == 4):
            return inputs
        length = embeds.shape[1]
        cache = next((inputs[name] for name in anatomy.CACHE_NAMES if inputs.get(name) is not None), None)
        past = 0 if cache is None else int(cache.get_seq_length())
        seen = torch.ones(embeds.shape[0], past + length, dtype=torch.bool) if mask is None else mask.bool()
        seen = seen.to(embeds.device)[:, None, None]
        queries = torch.arange(past, past + length, device=embeds.device)[:, None]
        keys = torch.arange(past + length, device=embeds.device)[None]
        visible = (keys <= queries) | _same_block(features, past).to(embeds.device)[:, None]
        full = ready_mask.additive(visible & seen, embeds.dtype)
        if self.window is None:
            return {**inputs, "attention_mask": full}
        near = visible & (keys > queries - self.window) & seen
        return {
            **inputs,
            "attention_mask": {"full_attention": full, "sliding_attention": ready_mask.additive(near, embeds.dtype)},
        }


def _same_block(features: list[Tensor], past: int) -> Tensor:
    """(B, S, P + S), whether two positions lie in one run of one modality."""
    blocks = torch.full_like(features[0], -1, dtype=torch.long)
    highest = 0
    for mask in features:
        starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
        blocks = torch.where(mask, starts.cumsum(-1) + highest, blocks)
        highest = int(blocks.max())
    keys = torch.nn.functional.pad(blocks, (past, 0), value=-2)
    return (blocks[:, :, None] == keys[:, None]) & (blocks >= 0)[:, :, None]
