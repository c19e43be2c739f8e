"""1a2. An image as callers give it -> pixels as a person would see them."""

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from transformers.image_utils import load_image

from cornstarch.errors import MediaError
from cornstarch.models.multimodal_language_model.limits import MediaLimits


def open_image(item: Any, limits: MediaLimits, grey: str = "RGB") -> Any:
    """An image that is known to decode.

    Args:
        item: a PIL image, an array, a tensor, a path, a URL, bytes, or bytes in base64.
        limits: how large it may be.
        grey: the mode that may stay besides RGB: `L` for a processor of greyscale images.

    Returns:
        A PIL image: upright, in 8 bits a channel, over white where it is transparent, the first picture of several. An
        array or tensor as it is, with channels and without a gradient.

    Raises:
        MediaError: if it cannot be read, or is too large.
    """
    if isinstance(item, np.ndarray | Tensor):
        return _as_pixels(item, grey)
    try:
        image = item if isinstance(item, Image.Image) else _opened(item, limits)
        if image is not None:
            limits.check_image(*image.size)
            image.load()
            return _as_seen(image, grey)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{error} (Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS)") from error
    except MemoryError as error:
        raise MediaError("there is not enough memory for it") from error
    except Exception as error:  # decoders of damaged files raise what comes: struct.error, zlib.error, KeyError, ...
        if isinstance(item, str | Path) and _is_name(str(item)) and not os.path.exists(item):
            raise MediaError("there is no such file") from error
        raise MediaError(str(error) or type(error).__name__) from error
    raise TypeError(type(item).__name__)


def from_base64(text: str) -> bytes:
    """The bytes of `data:image/png;base64,...`, or of what comes after the comma alone.

    Args:
        text: in base64.

    Returns:
        The bytes.

    Raises:
        MediaError: if it is no base64.
    """
    try:
        return base64.b64decode(text.rpartition(",")[2])
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"this is no base64: {error}") from error


def _is_name(text: str) -> bool:
    """Whether a text can be meant as a path, and not as bytes in base64."""
    return len(text) < 1000 and not text.startswith("data:")


def _opened(item: Any, limits: MediaLimits) -> Image.Image | None:
    if isinstance(item, bytes):
        limits.check("file_bytes", len(item), f"it has {len(item):,} bytes")
        return Image.open(io.BytesIO(item))
    if isinstance(item, Path) or (isinstance(item, str) and len(item) < 5000 and os.path.exists(item)):
        size = os.path.getsize(item)
        limits.check("file_bytes", size, f"the file has {size:,} bytes")
        return Image.open(item)
    if not isinstance(item, str):
        return None
    if item.startswith(("http://", "https://")):
        return load_image(item)  # type: ignore[no-any-return]
    return _opened(base64.b64decode(item.rpartition(",")[2]), limits)  # "data:image/png;base64,..." or without


def _as_seen(image: Image.Image, grey: str) -> Image.Image:
    """An image turned upright, in 8 bits a channel, in RGB (or in the mode `grey`); the caller's own is not changed."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_as_bytes(np.asarray(image)))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(above)
    return image if image.mode in ("RGB", grey) else image.convert("RGB")


def _as_bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Brightness as bytes: of 16 bits by their whole range, of wider numbers by the least range that holds them."""
    white = 65535 if values.dtype.itemsize == 2 else None
    for top in (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535):
        if white is None and values.min() >= 0 and values.max() <= top:
            white = top
    if white is None:
        raise MediaError(f"its brightness goes from {values.min()} to {values.max()}, expected 0 to 1, 255 or 65535")
    return np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)


def _as_pixels(item: Any, grey: str) -> Any:
    """An array or tensor with values that processors can read: channels, no gradient, no 16 bits."""
    shape = tuple(item.shape)
    if len(shape) < 2 or 0 in shape:
        raise MediaError(
            f"its shape is {shape}, expected (height, width) or that with channels, and at least one pixel"
        )
    if isinstance(item, Tensor):
        item = item.detach().float() if item.dtype is torch.bfloat16 else item.detach()
        item = item.cpu().numpy() if len(shape) == 2 or item.dtype is torch.uint16 else item
    if isinstance(item, np.ndarray):
        if item.dtype.kind not in "buif":
            raise MediaError(f"it has values of dtype {item.dtype}, expected real numbers")
        if item.dtype == bool:
            item = item.astype(np.uint8) * 255
        elif item.dtype == np.uint16:
            item = _as_bytes(item)
    return np.stack([item] * (1 if grey == "L" else 3), axis=-1) if len(shape) == 2 else item
