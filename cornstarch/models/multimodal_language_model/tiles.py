"""2b. Callbacks for images that come as several pictures: tiles of a large image, and images padded to a common number.

Shapes: N images, K pictures an image has at most, M pictures in all, T rows a picture yields, D embedding width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.image_processing_utils import select_best_resolution

from cornstarch.errors import ArgumentError, ModalityMismatchError


def _grid(size: Sequence[int], resolutions: Sequence[Sequence[int]], tile: int) -> tuple[int, int]:
    """Rows and columns of tiles that an image of a size (height, width) was cut into."""
    height, width = select_best_resolution(tuple(size), [tuple(resolution) for resolution in resolutions])
    return -(-height // tile), -(-width // tile)


def _sizes(inputs: Mapping[str, Any], name: str) -> list[tuple[int, int]]:
    if inputs.get("image_sizes") is None:
        raise ArgumentError(f"{name} needs image_sizes (images, 2), height and width of each, beside pixel_values")
    return [(int(height), int(width)) for height, width in torch.as_tensor(inputs["image_sizes"]).tolist()]


def _is_cut(inputs: Mapping[str, Any], images: int) -> list[bool]:
    """Whether each image was cut: where the number of images of each sample is given, only one that is alone was."""
    per_sample = inputs.get("batch_num_images")
    if per_sample is None:
        return [True] * images
    cut = [count == 1 for count in torch.as_tensor(per_sample).tolist() for _ in range(count)]
    if len(cut) != images:
        raise ModalityMismatchError(
            f"batch_num_images counts {len(cut)} images, image_sizes has {images}: they must be of the same images"
        )
    return cut


@dataclass(frozen=True, kw_only=True)
class SplitTiles:
    """A `preprocess_callback` that makes one batch of the tiles of all images (LLaVA-NeXT).

    An image is an overview and, row-major, the tiles of the resolution that fits it best
    (https://llava-vl.github.io/blog/2024-01-30-llava-next). Where `batch_num_images` is given, images that are not
    alone in their sample come uncut (LLaVA-OneVision, https://arxiv.org/abs/2408.03326).

    Attributes:
        resolutions: (height, width) of each layout of tiles that the image processor knows (`image_grid_pinpoints`).
        tile: pixels per side of a tile.
    """

    resolutions: tuple[tuple[int, int], ...]
    tile: int
    additional_args: ClassVar[tuple[str, ...]] = ("image_sizes", "batch_num_images")

    def __post_init__(self) -> None:
        pairs = tuple((int(height), int(width)) for height, width in self.resolutions)  # JSON has lists only
        object.__setattr__(self, "resolutions", pairs)

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take off padding.

        Args:
            inputs: `pixel_values` (N, K, channels, tile, tile), padded behind each image's own tiles, and `image_sizes`
                (N, 2).

        Returns:
            The same with `pixel_values` (M, channels, tile, tile).

        Raises:
            ModalityMismatchError: if tiles and sizes do not agree.
        """
        pixels, sizes = inputs["pixel_values"], _sizes(inputs, "SplitTiles")
        counts = self.pictures(inputs, sizes)
        if isinstance(pixels, Tensor) and pixels.dim() == 4:  # one batch of tiles already
            if pixels.shape[0] != sum(counts):
                raise ModalityMismatchError(
                    f"pixel_values has {pixels.shape[0]} tiles, by image_sizes there are {sum(counts)} of them"
                )
            return inputs
        return {**inputs, "pixel_values": torch.cat([own[:count] for own, count in zip(pixels, counts, strict=True)])}

    def pictures(self, inputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> list[int]:
        """How many pictures each image is: the overview, and its tiles where it was cut."""
        cut = _is_cut(inputs, len(sizes))
        return [
            1 + (math.prod(_grid(size, self.resolutions, self.tile)) if was_cut else 0)
            for size, was_cut in zip(sizes, cut, strict=True)
        ]


class JoinTiles(nn.Module):
    """A `postprocess_projector_callback` that joins the tiles of each image again (LLaVA-NeXT, LLaVA-OneVision).

    Tiles are put together to the map of the whole image, the rows that the image was padded with are taken off, and a
    learned vector is put behind every line of the map. The overview comes first.

    Args:
        resolutions: as in `SplitTiles`.
        tile: pixels per side of a tile.
        width: of the features, D.
        most_tiles: a map of more than so many tiles is shrunk to their number (LLaVA-OneVision's `anyres_max_9` is 9);
            None leaves every map as it is.
    """

    def __init__(
        self, resolutions: Sequence[Sequence[int]], tile: int, width: int, most_tiles: int | None = None
    ) -> None:
        super().__init__()
        self.split = SplitTiles(resolutions=tuple(resolutions), tile=tile)  # type: ignore[arg-type]
        self.width = width
        self.most_tiles = most_tiles
        self.newline = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))

    @property
    def arguments(self) -> dict[str, Any]:
        """What this was made with, as JSON values."""
        return {
            "resolutions": [list(resolution) for resolution in self.split.resolutions],
            "tile": self.split.tile,
            "width": self.width,
            "most_tiles": self.most_tiles,
        }

    def forward(self, inputs: dict[str, Any], features: Tensor) -> list[Tensor]:
        """Join the features of tiles.

        Args:
            inputs: the encoder's arguments, with `image_sizes` (N, 2).
            features: (M, T, D), T a square number.

        Returns:
            (T_i, D) for each image.

        Raises:
            ArgumentError: if `image_sizes` are missing, or T is no square number.
        """
        sizes = _sizes(inputs, "JoinTiles")
        counts = self.split.pictures(inputs, sizes)
        joined = []
        for pictures, size in zip(torch.split(features, counts), sizes, strict=True):
            newline = self.newline[None].to(features)
            if len(pictures) == 1:
                joined.append(torch.cat([pictures[0], newline]))
                continue
            lines = self._shrunk(_without_padding(self._map(pictures[1:], size), size), pictures.shape[1])
            ends = newline.expand(lines.shape[0], 1, -1)
            joined.append(torch.cat([pictures[0], torch.cat([lines, ends], dim=1).flatten(0, 1)]))
        return joined

    def _map(self, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """The map (rows, columns, D) of the whole image, of its tiles (tiles, T, D)."""
        side = math.isqrt(tiles.shape[1])
        if side**2 != tiles.shape[1]:
            raise ArgumentError(
                f"JoinTiles: {tiles.shape[1]} rows a tile are no square map; leave out a class token before "
                "(SelectFeatures(skip_first=1))"
            )
        down, across = _grid(size, self.split.resolutions, self.split.tile)
        return tiles.reshape(down, across, side, side, -1).transpose(1, 2).reshape(down * side, across * side, -1)

    def _shrunk(self, lines: Tensor, rows_per_tile: int) -> Tensor:
        if self.most_tiles is None:
            return lines
        height, width = lines.shape[:2]
        ratio = math.sqrt(height * width / (self.most_tiles * rows_per_tile))
        if ratio <= 1.1:
            return lines
        size = [int(height // ratio), int(width // ratio)]
        return functional.interpolate(lines.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)


def _without_padding(lines: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (rows, columns, D) without what an image of `size` (height, width) was padded with to the map's shape."""
    rows, columns = lines.shape[:2]
    height, width = size
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return lines[padding : rows - padding]
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return lines[:, padding : columns - padding]


@dataclass(frozen=True, kw_only=True)
class UnpadImages:
    """A `preprocess_callback` for images that are padded, in number and in size, to one tensor (Idefics3, SmolVLM).

    Images of nothing but zeros are left out; of the others, patches without a real pixel are hidden from the encoder.

    Attributes:
        patch: pixels per side of a patch.
    """

    patch: int
    additional_args: ClassVar[tuple[str, ...]] = ("pixel_attention_mask",)

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take off padding.

        Args:
            inputs: `pixel_values` (samples, K, channels, height, width) and, if there is any padding within images,
                `pixel_attention_mask` (samples, K, height, width), true at real pixels.

        Returns:
            The same with `pixel_values` (M, channels, height, width) and `patch_attention_mask` (M, height / patch,
            width / patch).
        """
        pixels = inputs["pixel_values"].flatten(0, 1)
        mask = inputs.get("pixel_attention_mask")
        real = self._real(pixels)
        pixels = pixels[real]
        if mask is None:
            shown = pixels.new_ones(pixels.shape[0], *(side // self.patch for side in pixels.shape[-2:]))
        else:
            blocks = mask.flatten(0, 1)[real.to(mask.device)].unfold(1, self.patch, self.patch)
            shown = blocks.unfold(2, self.patch, self.patch).sum((-1, -2)) > 0
        return {**inputs, "pixel_values": pixels, "patch_attention_mask": shown.bool()}

    def _real(self, pixels: Tensor) -> Tensor:
        if pixels.is_meta:  # only the shape is asked for; whoever asks gives no images of padding
            return torch.arange(pixels.shape[0], device=pixels.device)
        return (pixels != 0).flatten(1).any(-1).nonzero().squeeze(-1)
