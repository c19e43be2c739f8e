"""1b. Conversations about images in the JSON format of LLaVA's training data.

    [{"id": "7", "image": "7.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}]

`image` is a name, a list of names, or absent. Each `<image>` stands for the next image; the line break that sets it off
from the text is left out. The format is described at
https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md.
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cornstarch.data.samples import Sample, numbered_lines
from cornstarch.errors import ArgumentError, MediaError

_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class LlavaSource:
    """A file of conversations and a folder of images.

    Args:
        path: a JSON file with a list of entries, or one entry a line (`.jsonl`).
        media: the folder that image names are relative to, and that they may not leave; the file's own by default.

    Raises:
        ArgumentError: if the file cannot be read, or is no list of entries; a broken line is named.
    """

    def __init__(self, path: str | Path, media: str | Path | None = None) -> None:
        self._path = Path(path)
        self._media = Path(media) if media is not None else self._path.parent
        if not self._media.is_dir():
            raise ArgumentError(f"{self._media} is no folder; expected the one with the images of {self._path}")
        self._entries = _read(self._path)

    def __len__(self) -> int:
        return len(self._entries)

    def sample(self, index: int, chance: random.Random) -> Sample:
        """The conversation of one entry, its images as paths.

        Args:
            index: the entry, from 0.
            chance: not used; nothing here is varied.

        Returns:
            The sample.

        Raises:
            ArgumentError: if the entry is not of the format, or its marks and images do not pair.
            MediaError: if an image is not there, or lies outside the folder.
        """
        entry, name = self._entries[index], f"{self._path}, entry {index}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("conversations"), list):
            raise ArgumentError(f"{name}: expected an object with a list `conversations`, found {entry!r:.100}")
        images = [self._image(image, name) for image in _names(entry.get("image"), name)]
        marks = sum(_value(turn, name).count(_MARK) for turn in entry["conversations"])
        if marks != len(images):
            raise ArgumentError(
                f"{name}: {marks} marks {_MARK} but {len(images)} images; write {_MARK} once for every image"
            )
        rest = iter(images)
        messages = [
            {"role": _role(turn, name), "content": _parts(_value(turn, name), rest)} for turn in entry["conversations"]
        ]
        return Sample(messages=tuple(messages), name=name)

    def _image(self, image: str, name: str) -> str:
        path = self._media / image
        if "\0" in image:
            raise MediaError(f"{name}: the image name {image!r} holds a character that no name can have")
        if not path.resolve().is_relative_to(self._media.resolve()):
            raise MediaError(f"{name}: the image {image!r} lies outside {self._media}; move it there")
        if not path.is_file():
            raise MediaError(f"{name}: there is no image {path}; is `media` the folder with the images?")
        return str(path)


def _read(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    lines = list(numbered_lines(text)) if path.suffix == ".jsonl" else [(1, text)]
    entries = []
    for number, line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            place = f"{path}, line {number + error.lineno - 1}"
            raise ArgumentError(f"{place}: this is no JSON: {error.msg} (column {error.colno})") from error
    if path.suffix != ".jsonl":
        entries = entries[0]
    if not isinstance(entries, list) or not entries:
        raise ArgumentError(f"{path} must hold a list of entries, found {entries!r:.100}")
    return entries


def _names(image: Any, name: str) -> list[str]:
    names = image if isinstance(image, list) else [] if image is None else [image]
    if not all(isinstance(entry, str) for entry in names):
        raise ArgumentError(f"{name}: `image` must be a name or a list of names, found {image!r:.100}")
    return names


def _role(turn: Any, name: str) -> str:
    said_by = turn.get("from")
    if not isinstance(said_by, str) or said_by not in _ROLES:
        raise ArgumentError(f"{name}: a turn is from {said_by!r}; known: {', '.join(_ROLES)}")
    return _ROLES[said_by]


def _value(turn: Any, name: str) -> str:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise ArgumentError(f"{name}: a turn must be an object with `from` and `value`, found {turn!r:.100}")
    value = str(turn["value"])
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name}: a turn holds half a character, which is no text: {error}") from error
    return value


def _parts(value: str, images: Iterator[str]) -> list[dict[str, Any]]:
    """The text of a turn and its images, in order.

    The format sets a mark off by a line break, which is no part of the text: other formats have none there, and a
    question asked later would have none either.
    """
    texts = value.split(_MARK)
    parts: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        if number:
            parts.append({"type": "image", "image": next(images)})
            text = text.removeprefix("\n")
        if number + 1 < len(texts):
            text = text.removesuffix("\n")
        if text:
            parts.append({"type": "text", "text": text})
    return parts
