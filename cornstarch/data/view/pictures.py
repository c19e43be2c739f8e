"""Numbers that an encoder gets -> pictures of them; and media as they were given -> pictures, too."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cornstarch.data.viewing import MediumView
from cornstarch.models.multimodal_language_model.concatenated_processing import ConcatenatedProcessor

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (height, width, 3)
Numbers = np.ndarray[Any, np.dtype[np.float32]]

# Dark to light, legible to people who see no red: of matplotlib's magma.
_COLOURS = ((4, 5, 22), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def pictures_of(medium: MediumView, processor: Any) -> list[Pixels]:
    """What an encoder gets of an image or a video, as pictures: one, its tiles, or its frames.

    Args:
        medium: with its tensors.
        processor: of its modality, which says how pixels were made numbers.

    Returns:
        The pictures; none where nobody knows how the numbers are arranged.
    """
    found: list[Pixels] = []
    for name, value in medium.tensors.items():
        if "pixel_values" in name and value.is_floating_point():
            maker = _maker(processor, name)
            planes = _planes(value.float(), medium.tensors, maker)
            found += [_as_pixels(plane, maker) for plane in planes]
    return found


def originals_of(medium: MediumView) -> list[Pixels]:
    """An image, or the frames of a video, as given.

    Args:
        medium: with its item.

    Returns:
        The pictures.
    """
    if medium.kind not in ("image", "video") or medium.item is None:
        return []
    items = [medium.item] if medium.kind == "image" else list(medium.item)
    return [_as_given(item) for item in items]


def spectrogram_of(medium: MediumView, processor: Any) -> Numbers | None:
    """What an encoder gets of a sound, (bands, moments), lowest band first; None if it gets no such thing."""
    for value in medium.tensors.values():
        if medium.kind == "audio" and value.is_floating_point() and value.dim() == 2:
            bands = getattr(processor, "num_mel_bins", None) or getattr(processor, "feature_size", None)
            table = np.asarray(value.float())
            is_first = table.shape[0] == bands or (table.shape[1] != bands and table.shape[0] < table.shape[1])
            return table if is_first else table.T
    return None


def wave_of(medium: MediumView) -> Numbers | None:
    """What an encoder gets of a sound, as samples; None if it gets no such thing."""
    for value in medium.tensors.values():
        if medium.kind == "audio" and value.is_floating_point() and value.dim() == 1:
            return np.asarray(value.float())
    return None


def heat(table: Numbers) -> Pixels:
    """A table of numbers as a picture, its first row at the bottom, small numbers dark."""
    finite = table[np.isfinite(table)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    share = np.nan_to_num((table[::-1] - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    places = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(share, places, [colour[channel] for colour in _COLOURS]) for channel in range(3)]
    found: Pixels = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return found


def scaled(pixels: Pixels, width: int, height: int) -> Pixels:
    """A picture in another size."""
    found: Pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
    return found


def as_address(pixels: Pixels, longest: int | None = None) -> str:
    """A picture as a `data:` address.

    Args:
        pixels: the picture.
        longest: pixels that its longer side may have; more are scaled down, and compressed with some loss.

    Returns:
        The address.
    """
    image, data = Image.fromarray(pixels), io.BytesIO()
    if longest is not None and max(image.size) > longest:
        image.thumbnail((longest, longest))
        image.save(data, "JPEG", quality=88)
        kind = "jpeg"
    else:
        image.save(data, "PNG")
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _maker(processor: Any, name: str) -> Any:
    """The processor that made a tensor: of several side by side, the one whose name comes first in the tensor's."""
    if isinstance(processor, ConcatenatedProcessor):
        fitting = (inner for key, inner in processor.processors.items() if name.startswith(f"{key}_"))
        return next(fitting, None)
    return processor


def _planes(value: Tensor, tensors: Mapping[str, Tensor], processor: Any) -> Sequence[Tensor]:
    """Pictures (channels, height, width) in a tensor."""
    if value.dim() == 3 and value.shape[0] in (1, 3):
        return [value]
    if value.dim() == 4 and value.shape[1] in (1, 3):
        # Pictures of nothing but zeros at the end fill up a number.
        real = value.flatten(1).any(dim=1).nonzero().flatten().tolist()
        return list(value[: real[-1] + 1 if real else 1])
    grid = next((own for name, own in tensors.items() if name.endswith("grid_thw")), None)
    if value.dim() == 2 and grid is not None:
        return _of_merged_patches(value, grid.tolist(), processor)
    shape = tensors.get("spatial_shapes")
    if value.dim() == 2 and shape is not None:
        return [_of_patches(value, shape.tolist())]
    return []


def _of_merged_patches(patches: Tensor, grid: list[int], processor: Any) -> Sequence[Tensor]:
    """Pictures of patches in the order of Qwen-VL: squares of patches that are merged stand together."""
    moments, rows, columns = grid
    side, merged, times = (
        getattr(processor, name, 1) or 1 for name in ("patch_size", "merge_size", "temporal_patch_size")
    )
    channels = patches.shape[1] // (side * side * times)
    if rows % merged or columns % merged or channels not in (1, 3):
        return []
    blocks = patches.reshape(moments, rows // merged, columns // merged, merged, merged, channels, times, side, side)
    frames = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(moments * times, channels, rows * side, columns * side)
    return list(frames if moments > 1 else frames[:1])  # an image is repeated to fill the time


def _of_patches(patches: Tensor, shape: list[int]) -> Tensor:
    """A picture of patches that stand line by line, channels last, and padding behind them (SigLIP 2)."""
    rows, columns = shape
    side = round((patches.shape[1] / 3) ** 0.5)
    blocks = patches[: rows * columns].reshape(rows, columns, side, side, 3)
    return blocks.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def _as_pixels(plane: Tensor, processor: Any) -> Pixels:
    """A picture out of normalised numbers."""
    numbers = np.asarray(plane.permute(1, 2, 0))
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if getattr(processor, "do_normalize", False) and mean is not None and deviation is not None:
        numbers = numbers * np.asarray(deviation, np.float32) + np.asarray(mean, np.float32)
    if getattr(processor, "do_rescale", True):
        numbers = numbers / (getattr(processor, "rescale_factor", None) or 1 / 255)
    elif numbers.max() <= 1:
        numbers = numbers * 255
    return _three_channels(np.rint(numbers).clip(0, 255).astype(np.uint8))


def _as_given(item: Any) -> Pixels:
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"))
    values = np.asarray(item)
    if values.ndim == 3 and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.dtype.kind == "f" and values.max(initial=0) <= 1:
        values = values * 255
    return _three_channels(np.nan_to_num(values.astype(np.float32)).clip(0, 255).astype(np.uint8))


def _three_channels(pixels: Any) -> Pixels:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
