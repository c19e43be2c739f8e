"""1a4. A video as callers give it -> its frames at so many a second."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from cornstarch.errors import MediaError
from cornstarch.models.multimodal_language_model.images import from_base64, open_image
from cornstarch.models.multimodal_language_model.limits import MediaLimits

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TICK = 1e-6  # seconds by which a frame may be late


def frames(item: Any, limits: MediaLimits) -> list[Any]:
    """The frames of a video.

    Args:
        item: a list of images, which are its frames; or a dict with `path` or `bytes`, and `frames_per_second`, the
            rate to take. The path is a folder of images (all are taken, in the order of their names), a GIF or WebP
            (Pillow), or what PyAV reads.
        limits: how large it may be.

    Returns:
        PIL images as a person would see them: those shown at 0, 1/rate, 2/rate, ... seconds.

    Raises:
        MediaError: if it cannot be read, or has too many frames.
        ImportError: if it needs PyAV, and that is not installed.
    """
    found: list[Any] = []
    for frame in _shown(item, limits):
        limits.check("video_frames", len(found) + 1, f"it has more than {len(found)} frames")
        found.append(open_image(frame, limits))
    if not found:
        raise MediaError("it has no frames")
    return found


def _shown(item: Any, limits: MediaLimits) -> Iterator[Any]:
    if isinstance(item, list | tuple):
        yield from item
        return
    given = item if isinstance(item, Mapping) else {"path" if isinstance(item, str | Path) else "bytes": item}
    source, rate = given.get("bytes") or given.get("path"), float(given.get("frames_per_second") or 1.0)
    if isinstance(source, str) and source.startswith("data:"):
        source = from_base64(source)
    if isinstance(source, str | Path) and Path(source).is_dir():
        yield from _of_folder(Path(source))
        return
    if not isinstance(source, str | Path | bytes):
        raise MediaError(f"found {type(source).__name__} where a path, bytes or a list of frames was expected")
    try:
        data = source if isinstance(source, bytes) else limits.read(source)
    except OSError as error:
        raise MediaError(str(error)) from error
    limits.check("file_bytes", len(data), f"it has {len(data):,} bytes")
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{error} (Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS)") from error
    except Exception:  # no picture that Pillow knows
        yield from _at_rate(_with_av(data), rate)
        return
    limits.check_image(*picture.size)
    yield from _at_rate(_of_picture(picture), rate)


def _of_folder(folder: Path) -> Iterator[Path]:
    """The images of a folder; none that lies elsewhere, to which a link leads."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICTURES:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise MediaError(f"the frame {path.name} lies outside {folder}")
            yield path


def _of_picture(picture: Image.Image) -> Iterator[tuple[float, float, Any]]:
    """(start, end in seconds, frame) of an animated picture."""
    time = 0.0
    for frame in _decoded(ImageSequence.Iterator(picture)):
        shown = frame.copy()
        end = time + max(float(frame.info.get("duration", 0)) / 1000, _TICK)
        yield time, end, shown
        time = end


def _decoded(frames: Iterator[Image.Image]) -> Iterator[Image.Image]:
    """Frames that are known to decode; only then a WebP's duration is known."""
    while True:
        try:
            frame = next(frames)
            frame.load()
        except StopIteration:
            return
        except Exception as error:  # as of images: decoders of damaged files raise what comes
            raise MediaError(str(error) or type(error).__name__) from error
        yield frame


def _at_rate(shown: Iterator[tuple[float, float, Any]], rate: float) -> Iterator[Any]:
    """The frames that are shown at 0, 1/rate, 2/rate, ... seconds."""
    taken = 0
    for _, end, frame in shown:
        while taken / rate < end - _TICK or taken == 0:
            yield frame
            taken += 1


def _with_av(data: bytes) -> Iterator[tuple[float, float, Any]]:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "a video that is no GIF, WebP or folder of images needs: pip install 'cornstarch[video]'"
        ) from error
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            last, first = None, 0.0
            for frame in container.decode(stream):
                if last is None:
                    first = float(frame.time or 0.0)
                else:
                    yield last[0], float(frame.time) - first, last[1].to_image()
                last = (float(frame.time or 0.0) - first, frame)
            if last is not None:
                yield last[0], last[0] + 1 / float(stream.average_rate or 1), last[1].to_image()
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(f"PyAV cannot read it: {error}") from error
