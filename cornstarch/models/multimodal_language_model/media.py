"""1a. Media as callers give them -> a flat list of inputs, and how many belong to each sample."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cornstarch.errors import ArgumentError, MediaError, ModalityMismatchError
from cornstarch.models.multimodal_language_model import images, sounds, videos
from cornstarch.models.multimodal_language_model.limits import MediaLimits
from cornstarch.models.multimodal_language_model.remembering import remembered

# The argument by which a processor takes media, to what they are.
_KINDS = {
    "images": "image",
    "raw_speech": "audio",
    "audio": "audio",
    "audios": "audio",
    "speech": "audio",
    "videos": "video",
}
# How many axes one input has at most, as an array.
_ARRAY_AXES = {"image": 3, "audio": 1, "video": 4}


@dataclass(frozen=True, kw_only=True)
class Media:
    """Inputs of one modality over a batch.

    Attributes:
        argument: the name under which the processor takes them.
        items: one per input, in the order of their marks.
        per_sample: how many belong to each sample; None for a flat list, whose i-th item is the i-th mark's.
        options: further arguments for the processor (`sampling_rate`, ...).
    """

    argument: str
    items: list[Any]
    per_sample: list[int] | None
    options: dict[str, Any]

    def keep(self, kept: Sequence[int], per_sample: list[int]) -> "Media":
        """The media with the given items only, which belong to samples as `per_sample` says."""
        items = [self.items[index] for index in kept]
        return replace(self, items=items, per_sample=per_sample if self.per_sample is not None else None)

    def arguments(self, per_sample: Sequence[int] | None = None) -> dict[str, Any]:
        """The processor's arguments, media flat, or in a list for every sample with so many of them."""
        if per_sample is None:
            return {**self.options, self.argument: list(self.items)}
        rest = iter(self.items)
        return {**self.options, self.argument: [[next(rest) for _ in range(count)] for count in per_sample]}

    def as_given(self) -> dict[str, Any]:
        """The processor's arguments, media flat or nested as the caller gave them."""
        return self.arguments(self.per_sample)


@remembered
def media_argument(processor: Any) -> str:
    """The name of a processor's first argument, by which it takes media."""
    names = _arguments(processor)
    if not names and getattr(processor, "preprocess", None) is not None:
        names = _arguments(processor.preprocess)
    if not names:
        raise ArgumentError(f"{type(processor).__name__} names no argument by which it takes media")
    return names[0]


@remembered
def _takes_rate(processor: Any) -> bool:
    return "sampling_rate" in _arguments(processor)


def _arguments(callee: Any) -> list[str]:
    """Names of the arguments of a processor or a method that are no `*args` or `**kwargs`."""
    parameters = inspect.signature(callee).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


def kind_of(processor: Any) -> str:
    """What a processor takes: `"image"`, `"audio"`, `"video"` or `"other"`."""
    return _KINDS.get(media_argument(processor), "other")


def read(key: str, processor: Any, given: Any, shared: dict[str, Any], limits: MediaLimits) -> Media:
    """Media of one modality as given to `MultimodalProcessor`, with images opened, sounds and videos decoded.

    Args:
        key: the modality, for messages.
        processor: the Hugging Face processor they are for.
        given: the processor's arguments; never changed.
        shared: arguments that were given for all processors.
        limits: how large a medium may be.

    Returns:
        The media, flat.

    Raises:
        ArgumentError: if the media argument is missing, or lists are nested in some places only.
        MediaError: if a medium cannot be read, or is too large; it is named.
    """
    argument = media_argument(processor)
    if not isinstance(given, Mapping) or argument not in given:
        found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise ArgumentError(f"encoder_inputs[{key!r}] must be a dict such as {{{argument!r}: [...]}}, found {found}")
    kind = _KINDS.get(argument, "other")
    items, per_sample = _flatten(key, given[argument], kind)
    if kind == "image":
        grey = "L" if len(getattr(processor, "image_mean", None) or "RGB") == 1 else "RGB"
        items = [_open_image(key, index, item, grey, limits) for index, item in enumerate(items)]
    if kind == "audio":
        rate = getattr(processor, "sampling_rate", None)
        items = [_as_sound(key, index, item, rate, limits) for index, item in enumerate(items)]
    if kind == "video":
        items = [_open_video(key, index, item, limits) for index, item in enumerate(items)]
    options = {name: value for name, value in {**shared, **given}.items() if name != argument}
    if kind == "audio" and rate is not None and _takes_rate(processor):
        options.setdefault("sampling_rate", rate)  # sounds have it by now; without it, processors warn at every call
    if kind == "audio":
        _check_heard(key, processor, items, options)
    return Media(argument=argument, items=items, per_sample=per_sample, options=options)


def _check_heard(key: str, processor: Any, sounds: list[Any], options: Mapping[str, Any]) -> None:
    """Refuse sounds of which a processor would drop what is behind its window, unless it was asked to.

    A text that belongs to the whole sound would be learnt from its beginning.
    """
    window = options.get("max_length") or getattr(processor, "n_samples", None)
    if window is None or "truncation" in options or not _truncates(processor):
        return
    for index, sound in enumerate(sounds):
        if len(sound) > window:
            rate = getattr(processor, "sampling_rate", None) or 1
            raise MediaError(
                f"modality {key!r}: sound {index} has {len(sound) / rate:.2f} s, and {type(processor).__name__} hears "
                f"{window / rate:.2f} s: cut it into pieces with a text each, leave it out, or pass truncation=True to "
                "have the beginning of it"
            )


@remembered
def _truncates(processor: Any) -> bool:
    """Whether a feature extractor truncates where it is not told."""
    parameter = inspect.signature(processor).parameters.get("truncation")
    return parameter is not None and parameter.default is True


def pair(key: str, token: str, media: Media | None, marks: list[int]) -> list[int]:
    """How many inputs each sample takes: as many as it has marks, if they pair.

    Args:
        key: the modality, for messages.
        token: its mark.
        media: the inputs; None if none were given.
        marks: how many marks each sample has.

    Returns:
        `marks`.

    Raises:
        ModalityMismatchError: naming the first sample whose marks and inputs do not pair.
    """
    given = media.per_sample if media is not None else None
    total = len(media.items) if media is not None else 0
    if given is not None and len(given) != len(marks):
        raise ModalityMismatchError(f"modality {key!r}: inputs are nested for {len(given)} samples, found {len(marks)}")
    left = total
    for sample, count in enumerate(marks):
        available = given[sample] if given is not None else left
        last = sample == len(marks) - 1
        if count > available or (count < available and (given is not None or last)):
            flat = "" if given is not None else f" (of {total} in a flat list)"
            raise ModalityMismatchError(
                f"modality {key!r}: sample {sample} has {_several(count, f'mark {token!r}', f'marks {token!r}')} but "
                f"{_several(available, 'input', 'inputs')}{flat}; write {token!r} in the text once for every input"
            )
        left -= count
    return marks


def _several(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _flatten(key: str, media: Any, kind: str) -> tuple[list[Any], list[int] | None]:
    if media is None:
        return [], None
    if kind == "other" and isinstance(media, np.ndarray | Tensor):
        media = list(media)  # along the first axis, as everywhere
    if _is_item(media, kind):
        return [media], None
    media = list(media)
    if all(_is_item(entry, kind) for entry in media):
        return media, None
    if all(not _is_item(entry, kind) and isinstance(entry, list | tuple | np.ndarray | Tensor) for entry in media):
        nested = [list(entry) for entry in media]
        strange = next((item for entry in nested for item in entry if not _is_item(item, kind)), None)
        if strange is None:
            return [item for entry in nested for item in entry], [len(entry) for entry in nested]
        raise ArgumentError(f"modality {key!r}: found {type(strange).__name__} where one {kind} was expected")
    raise ArgumentError(
        f"modality {key!r}: inputs must be a flat list, or a list per sample with one list for every sample; "
        f"found {', '.join(sorted({type(entry).__name__ for entry in media}))} side by side"
    )


def _is_item(value: Any, kind: str) -> bool:
    """Whether a value is one input, not a list of them."""
    if isinstance(value, np.ndarray | Tensor):
        return kind == "other" or value.ndim <= _ARRAY_AXES[kind]
    if not isinstance(value, list | tuple):
        return True
    if not value:
        return False
    if kind == "audio":
        return all(isinstance(number, int | float | np.number) for number in value)
    return kind == "video" and all(_is_item(frame, "image") for frame in value)


def _as_sound(
    key: str, index: int, item: Any, rate: int | None = None, limits: MediaLimits | None = None
) -> np.ndarray[Any, Any]:
    name = _name(item)
    try:
        return sounds.as_sound(item, rate, limits or MediaLimits())
    except (TypeError, ValueError) as error:
        if isinstance(error, MediaError):
            raise MediaError(f"modality {key!r}: sound {index} ({name}) cannot be read: {error}") from error
        found = type(item).__name__
        raise MediaError(
            f"modality {key!r}: sound {index} is a {found}; expected an array or list of samples, a path or bytes"
        ) from error


def _open_image(key: str, index: int, item: Any, grey: str, limits: MediaLimits) -> Any:
    try:
        return images.open_image(item, limits, grey)
    except MediaError as error:
        raise MediaError(f"modality {key!r}: image {index} ({_name(item)}) cannot be read: {error}") from error
    except TypeError as error:
        raise MediaError(
            f"modality {key!r}: image {index} is a {type(item).__name__}; expected a PIL image, an array, a tensor, "
            "a path, a URL or bytes"
        ) from error


def _open_video(key: str, index: int, item: Any, limits: MediaLimits) -> Any:
    if isinstance(item, np.ndarray | Tensor):
        return item
    try:
        return videos.frames(item, limits)
    except (MediaError, TypeError) as error:
        raise MediaError(f"modality {key!r}: video {index} ({_name(item)}) cannot be read: {error}") from error


def _name(item: Any) -> str:
    """What a medium is called in messages."""
    if isinstance(item, Mapping):
        item = item.get("path") or next((value for value in item.values() if value is not None), None)
    name = str(item) if isinstance(item, str | Path) else getattr(item, "filename", "") or type(item).__name__
    return name if len(name) <= 200 else f"{name[:80]}..."
