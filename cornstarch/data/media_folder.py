"""1c. What a row says of a medium -> what the processor decodes: a path in one folder, bytes, or pixels and samples.

Nothing is opened here but to look whether it is there: decoding is the processor's, where the batch is made.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from cornstarch.errors import ArgumentError, MediaError
from cornstarch.models.multimodal_language_model.images import from_base64

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")  # long, and without the dot that names of files have
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LONGEST_NAME = 4096


class MediaFolder:
    """A folder that media are named in, and that no name may lead out of: not by `..`, a whole path, or a link.

    Args:
        folder: the folder; None where there is none, so that names are refused.
        frames_per_second: to take of videos.

    Raises:
        ArgumentError: if it is none.
    """

    def __init__(self, folder: str | Path | None, frames_per_second: float = 1.0) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._rate = frames_per_second
        if self._folder is not None and not self._folder.is_dir():
            raise ArgumentError(f"{self._folder} is no folder; expected the one with the media")

    def medium(self, kind: str, value: Any, name: str, members: Mapping[str, Any] | None = None) -> Any:
        """What the processor takes for a medium of a row.

        Args:
            kind: `image`, `audio` or `video`.
            value: a name in the folder, bytes, bytes in base64 (with `data:...,` or alone), a PIL image, samples, a
                list of a video's frames, or a mapping of datasets (`bytes`, `path`, `array`) or of OpenAI (`url`,
                `data`).
            name: of the row, for messages.
            members: files by name that came with the row, which names mean first.

        Returns:
            A path, bytes, an image, samples, or (for videos) a dict with `path` or `bytes` and `frames_per_second`.

        Raises:
            MediaError: if it is not there, lies outside the folder, or is nothing of the above.
        """
        if kind == "video" and isinstance(value, list):
            return [self.medium("image", frame, name, members) for frame in value]
        found = self._found(kind, value, name, members or {})
        if kind == "video" and isinstance(found, str | bytes):
            return {"bytes" if isinstance(found, bytes) else "path": found, "frames_per_second": self._rate}
        return found

    def _found(self, kind: str, value: Any, name: str, members: Mapping[str, Any]) -> Any:
        if isinstance(value, Mapping):
            for key in ("bytes", "data", "array", "url", "path"):
                if value.get(key) is None:
                    continue
                if key == "array":
                    return dict(value)
                if key == "data":
                    return _decoded(value[key], kind, name)
                return self._found(kind, value[key], name, members)
            raise MediaError(f"{name}: the {kind} has neither bytes nor a path: {sorted(map(str, value))}")
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, str | Path):
            return self._named(kind, str(value), name, members)
        if isinstance(value, Image.Image) or (kind == "audio" and not isinstance(value, bool | int | float)):
            return value
        raise MediaError(f"{name}: the {kind} is a {type(value).__name__}; expected a name, bytes, or a decoded {kind}")

    def _named(self, kind: str, text: str, name: str, members: Mapping[str, Any]) -> Any:
        if text in members:
            return members[text]
        if text.startswith("data:"):
            return _decoded(text, kind, name)
        if _ELSEWHERE.match(text):
            raise MediaError(
                f"{name}: the {kind} {text[:100]!r} is an address; nothing is fetched while training, so put the file "
                "into the folder with the media"
            )
        if "\0" in text:
            raise MediaError(f"{name}: the {kind} name {text[:100]!r} holds a character that no name can have")
        inside = len(text) <= _LONGEST_NAME and self._path(text)
        if not (inside and inside.exists()) and _BASE64.fullmatch(text):
            return _decoded(text, kind, name)
        if self._folder is None:
            raise MediaError(f"{name}: the {kind} is named ({text[:100]!r}), and no folder is; give `media`")
        if not inside:
            raise MediaError(f"{name}: the {kind} {text[:100]!r} lies outside {self._folder}; move it there")
        if not inside.is_file() and not (kind == "video" and inside.is_dir()):
            raise MediaError(f"{name}: there is no {kind} {inside}; is `media` the folder with the {_several(kind)}?")
        return str(inside)

    def _path(self, text: str) -> Path | None:
        """The place of a name; None where it lies outside the folder, also through a link."""
        if self._folder is None:
            return None
        try:
            path = self._folder / text
            return path if path.resolve().is_relative_to(self._folder.resolve()) else None
        except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle
            return None


def _several(kind: str) -> str:
    return kind if kind == "audio" else f"{kind}s"


def _decoded(text: Any, kind: str, name: str) -> bytes:
    try:
        return from_base64(str(text))
    except MediaError as error:
        raise MediaError(f"{name}: the {kind} cannot be read: {error}") from error
