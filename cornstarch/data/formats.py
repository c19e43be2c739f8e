"""1d. Rows -> samples: how each format writes a conversation. Pure functions of a row.

| format     | fields of a row                                                                             |
|------------|---------------------------------------------------------------------------------------------|
| llava      | `conversations` (`from`, `value`), `image`; a mark `<image>` for each                       |
| sharegpt   | the same, `system`, and lists: `images`, `audios`, `videos`, with marks of their kind       |
| messages   | `messages` (`role`, `content`: text or typed parts), as OpenAI and Hugging Face write them  |
| cauldron   | `texts` (`user`, `assistant`), `images`, which stand before the first question              |
| caption    | `image`, `text`                                                                             |
| transcript | `audio`, `text`                                                                             |

Values that are None are as if they were absent: tables have every field in every row.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cornstarch.data.media_folder import MediaFolder
from cornstarch.data.rows import Row
from cornstarch.data.samples import Sample
from cornstarch.data.shards import MEMBERS
from cornstarch.errors import ArgumentError

KINDS = ("image", "audio", "video")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MARK = re.compile("(<image>|<audio>|<video>)")
_TEXTS = {
    "caption": ("text", "caption", "txt"),
    "transcript": ("text", "transcript", "transcription", "sentence", "txt"),
}
# What a message may have besides, as it says nothing that would be lost.
_HARMLESS = ("name", "id")
# Types of parts to kinds: OpenAI's two ways of writing, and Hugging Face's.
_PARTS = {
    "image": "image", "image_url": "image", "input_image": "image",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
    "video": "video", "video_url": "video", "input_video": "video",
}  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads rows of one format.

    Attributes:
        format: a name in `FORMATS`.
        media: where media are.
        columns: field of the format to what the rows call it.
        prompt: of `caption` and `transcript`: what is asked; nothing but the medium if it is empty.
        text_beside_media: keep the text of a question that comes with media.
    """

    format: str
    media: MediaFolder
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    text_beside_media: bool = True

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ArgumentError(f"the format {self.format!r} is not known; known: {', '.join(FORMATS)}")

    def sample(self, row: Row, name: str) -> Sample:
        """The conversation of a row.

        Args:
            row: as its container has it.
            name: of the row.

        Returns:
            The sample, media not decoded.

        Raises:
            ArgumentError: if the row is not of the format, or marks and media do not pair.
            MediaError: if a medium is not there, or lies outside the folder.
        """
        missing = [column for column in self.columns.values() if column not in row]
        if missing:
            raise ArgumentError(f"{name}: there is no column {missing[0]!r}; it has {_listed(row)}")
        renamed = {**row, **{name: row[column] for name, column in self.columns.items()}}
        messages = FORMATS[self.format](self, renamed, name)
        return Sample(messages=tuple(messages if self.text_beside_media else map(_media_alone, messages)), name=name)

    def queues(self, row: Row, name: str) -> dict[str, list[Any]]:
        """The media of a row by kind, from fields of one (`image`) and of several (`images`)."""
        found: dict[str, list[Any]] = {}
        for kind in KINDS:
            given = next((row[key] for key in (kind, f"{kind}s") if row.get(key) is not None), None)
            values = given if isinstance(given, list) else [] if given is None else [given]
            if kind == "audio" and values is given and values and isinstance(values[0], int | float):
                values = [values]  # the samples of one sound
            found[kind] = [self.media.medium(kind, value, name, row.get(MEMBERS)) for value in values]
        return found


def _media_alone(message: dict[str, Any]) -> dict[str, Any]:
    """A question without its text, if it comes with media."""
    content = message["content"]
    media = [part for part in content if part["type"] != "text"] if isinstance(content, list) else []
    return {**message, "content": media} if media and message["role"] == "user" else message


# --- llava, sharegpt --------------------------------------------------------------------------------------------------


def _conversations(reader: Reader, row: Row, name: str) -> Iterator[dict[str, Any]]:
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise ArgumentError(f"{name}: expected an object with a list `conversations`, found {_listed(row)}")
    _check_names(reader, row, name)
    media = reader.queues(row, name)
    values = [_value(turn, name) for turn in turns]
    for kind, queue in media.items():
        marks = sum(value.count(f"<{kind}>") for value in values)
        if marks != len(queue) and (queue or kind == "image"):
            raise ArgumentError(
                f"{name}: {marks} marks <{kind}> but {len(queue)} {kind}s; write <{kind}> once for every {kind}"
            )
    rest = {kind: iter(queue) for kind, queue in media.items() if queue}
    if row.get("system"):
        yield {"role": "system", "content": _checked(row["system"], name)}
    for turn, value in zip(turns, values, strict=True):
        yield {"role": _role(turn, name), "content": _marked(value, rest)}


def _check_names(reader: Reader, row: Row, name: str) -> None:
    """LLaVA's files name images; what is no name there is a mistake of theirs."""
    image = row.get("image")
    if reader.format == "llava" and isinstance(image, int | float | bool):
        raise ArgumentError(f"{name}: `image` must be a name or a list of names, found {image!r:.100}")


def _role(turn: Mapping[str, Any], name: str) -> str:
    said_by = turn.get("from")
    if not isinstance(said_by, str) or said_by not in _ROLES:
        raise ArgumentError(f"{name}: a turn is from {said_by!r}; known: {', '.join(_ROLES)}")
    return _ROLES[said_by]


def _value(turn: Any, name: str) -> str:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise ArgumentError(f"{name}: a turn must be an object with `from` and `value`, found {turn!r:.100}")
    return _checked(turn["value"], name)


def _marked(value: str, rest: Mapping[str, Iterator[Any]]) -> list[dict[str, Any]]:
    """The text of a turn and its media, in order; marks of kinds that the row has none of are text.

    The format sets a mark off by a line break, which is no part of the text: other formats have none there, and a
    question asked later would have none either.
    """
    pieces = [""]
    for piece in _MARK.split(value):
        if piece[1:-1] in rest and _MARK.fullmatch(piece):
            pieces += [piece, ""]
        else:
            pieces[-1] += piece
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append({"type": piece[1:-1], piece[1:-1]: next(rest[piece[1:-1]])})
            continue
        text = piece.removeprefix("\n") if number else piece
        text = text.removesuffix("\n") if number + 1 < len(pieces) else text
        if text:
            parts.append({"type": "text", "text": text})
    return parts


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages(reader: Reader, row: Row, name: str) -> Iterator[dict[str, Any]]:
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise ArgumentError(f"{name}: expected an object with a list `messages`, found {_listed(row)}")
    rest = {kind: iter(queue) for kind, queue in reader.queues(row, name).items()}
    for number, message in enumerate(messages):
        where = f"{name}: message {number}"
        if not isinstance(message, Mapping):
            raise ArgumentError(f"{where} must be an object with `role` and `content`, found {message!r:.100}")
        strange = [
            key
            for key, value in message.items()
            if value is not None and key not in ("role", "content", *_HARMLESS) and (key, value) != ("weight", 1)
        ]
        if strange:
            raise ArgumentError(f"{where} has {strange[0]!r}, which cannot be learnt from; expected role and content")
        content = message.get("content")
        if isinstance(content, str):
            content = _checked(content, name)
        elif isinstance(content, list):
            content = [_part(reader, part, rest, where, row) for part in content]
        yield {"role": message.get("role"), "content": content}
    # The files of a shard's row are there whether or not a message names them.
    left = next((kind for kind, queue in rest.items() for _ in queue if MEMBERS not in row), None)
    if left is not None:
        raise ArgumentError(f"{name}: there are more {left}s than parts of type {left!r} in its messages")


def _part(reader: Reader, part: Any, rest: Mapping[str, Iterator[Any]], where: str, row: Row) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": _checked(part["text"], where)}
    if kind not in _PARTS:
        raise ArgumentError(f"{where} has a part of type {kind!r}; known: {', '.join((*_TEXT_PARTS, *_PARTS))}")
    meant = _PARTS[kind]
    own = next((part[key] for key in (kind, meant, "url", "path", "bytes", "data") if part.get(key) is not None), None)
    if own is None:
        own = next(rest[meant], None)  # its place; the medium is in a column
        if own is None:
            raise ArgumentError(
                f"{where} has a part of type {kind!r} without {meant}, and the row has none left for it"
            )
        return {"type": meant, meant: own}
    return {"type": meant, meant: reader.media.medium(meant, own, where, row.get(MEMBERS))}


# --- cauldron ---------------------------------------------------------------------------------------------------------


def _cauldron(reader: Reader, row: Row, name: str) -> Iterator[dict[str, Any]]:
    turns = row.get("texts")
    if not isinstance(turns, list):
        raise ArgumentError(f"{name}: expected an object with a list `texts`, found {_listed(row)}")
    media = [{"type": kind, kind: medium} for kind, queue in reader.queues(row, name).items() for medium in queue]
    for turn in turns:
        said = [turn.get(role) if isinstance(turn, Mapping) else None for role in ("user", "assistant")]
        if not all(isinstance(text, str) for text in said):
            raise ArgumentError(f"{name}: a turn must be an object with `user` and `assistant`, found {turn!r:.100}")
        asked = [{"type": "text", "text": _checked(said[0], name)}] if said[0] else []
        yield {"role": "user", "content": [*media, *asked]}
        yield {"role": "assistant", "content": _checked(said[1], name)}
        media = []


# --- pairs ------------------------------------------------------------------------------------------------------------


def _pair(kind: str) -> Callable[[Reader, Row, str], Iterator[dict[str, Any]]]:
    def read(reader: Reader, row: Row, name: str) -> Iterator[dict[str, Any]]:
        media = reader.queues(row, name)[kind]
        text = next((row[key] for key in _TEXTS[reader.format] if row.get(key) is not None), None)
        if len(media) != 1 or not isinstance(text, str):
            raise ArgumentError(
                f"{name}: expected one `{kind}` and a `text`, found {_listed(row)}; if they are called otherwise, give "
                "`columns`"
            )
        asked: list[dict[str, Any]] = [{"type": kind, kind: media[0]}]
        if reader.prompt:
            asked.append({"type": "text", "text": reader.prompt})
        yield {"role": "user", "content": asked}
        yield {"role": "assistant", "content": _checked(text, name)}

    return read


def _checked(text: Any, name: str) -> str:
    try:
        str(text).encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name}: a turn holds half a character, which is no text: {error}") from error
    return str(text)


def _listed(row: Row) -> str:
    found = [str(key) for key, value in row.items() if value is not None and not str(key).startswith("__")]
    return ", ".join(found) or "nothing"


FORMATS: dict[str, Callable[[Reader, Row, str], Iterator[dict[str, Any]]]] = {
    "llava": _conversations,
    "sharegpt": _conversations,
    "messages": _messages,
    "cauldron": _cauldron,
    "caption": _pair("image"),
    "transcript": _pair("audio"),
}
