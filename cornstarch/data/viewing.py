"""3a. A sample -> what the model gets of it, position by position and medium by medium; how it looks is `view`'s."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cornstarch.data.budgets import Budget, Size
from cornstarch.data.collation import Collator
from cornstarch.data.pieces_of_text import pieces
from cornstarch.data.samples import Sample
from cornstarch.data.steps import Reading, name_in, named, refusal
from cornstarch.errors import CornstarchError
from cornstarch.models.multimodal_language_model import media
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX
from cornstarch.models.multimodal_language_model.processed import Processed, ProcessedInput
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

Run = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PositionView:
    """What stands at one position.

    Attributes:
        id: of the token.
        text: what the token adds to the text; a character made of several tokens comes with the last of them. The texts
            of all positions, one after the other, are the whole.
        label: the id that is learnt there; None where nothing is.
        modality: key of the modality whose feature comes there; None for text.
        special: whether it is one of the tokenizer's special tokens.
    """

    id: int
    text: str
    label: int | None
    modality: str | None
    special: bool


@dataclass(frozen=True, kw_only=True)
class MediumView:
    """An image, a sound, a video, or whatever else a modality takes.

    Attributes:
        key: of the modality.
        kind: `image`, `audio`, `video` or `other`.
        index: which of its modality's it is in the sample, from 0.
        size: width and height in pixels, turned upright; of a video, those of its first frame.
        frames: of a video.
        seconds: how long a sound lasts.
        sampling_rate: samples a second that the encoder wants, to which the sound was brought.
        inputs: what the encoder gets of it: shapes by the names of its processor. Empty if it was left out.
        positions: (start, end) of its runs of positions. Empty if it was left out.
        left_out: whether truncation left it out.
        error: why it cannot be read.
        item: the medium as its processor is given it.
        tensors: what the encoder gets of it.
    """

    key: str
    kind: str
    index: int
    size: tuple[int, int] | None = None
    frames: int | None = None
    seconds: float | None = None
    sampling_rate: int | None = None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    positions: tuple[Run, ...] = ()
    left_out: bool = False
    error: str | None = None
    item: Any = field(default=None, repr=False, compare=False)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class CutView:
    """What `max_length` took off a sample.

    Attributes:
        max_length: the limit.
        before: positions without it.
        after: positions that are left.
        left_out: positions that are not.
    """

    max_length: int
    before: int
    after: int
    left_out: tuple[PositionView, ...]


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """A sample as the model gets it.

    Attributes:
        name: where it comes from.
        source: what it was taken from, in words.
        index: its number there.
        positions: all of them, in order; none if the sample cannot be processed.
        media: in the order in which they stand in the text, with those that were left out.
        inputs: what the model is called with: shapes by name.
        marks: modality key to what stands for its inputs in text.
        truncated: what was cut off; None if nothing was.
        messages: (role, text) of the conversation.
        unlabelled: why nothing is learnt of it; None if something is.
        error: why it cannot be used; None if it can.
        processors: modality key to its processor, which says how numbers are turned back into a picture.
    """

    name: str
    source: str
    index: int | None
    positions: tuple[PositionView, ...] = ()
    media: tuple[MediumView, ...] = ()
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    truncated: CutView | None = None
    messages: tuple[tuple[str, str], ...] = ()
    unlabelled: str | None = None
    error: str | None = None
    processors: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labelled(self) -> int:
        """How many positions carry a loss. What stands first carries none: it is predicted from nothing."""
        return sum(position.label is not None for position in self.positions[1:])


def view_sample(collator: Collator, sample: Sample, *, source: str = "", index: int | None = None) -> SampleView:
    """What the model gets of a sample, made by the collator that training uses.

    Args:
        collator: of the training.
        sample: the sample.
        source: what it was taken from, in words.
        index: its number there.

    Returns:
        The view. A sample without a label has one, too, and says so.

    Raises:
        SampleError: if the conversation cannot be written as text.
        ModalityMismatchError: if marks and inputs do not pair.
        MediaError: if a medium cannot be read.
    """
    processor = collator.processor
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="truncation left out")  # which is shown
        whole = collator.look_into(sample, cut=False)
        length = whole.batch["input_ids"].shape[1]
        is_cut = collator.max_length is not None and length > collator.max_length
        found = collator.look_into(sample) if is_cut else whole
    positions = _positions(processor, found)
    learnt = any(position.label is not None for position in positions[1:])
    return SampleView(
        name=sample.name,
        source=source,
        index=index,
        positions=positions,
        media=tuple(_media(processor, found, whole)),
        inputs={name: tuple(np.shape(value)) for name, value in found.batch.items()},
        marks=dict(processor.feature_tokens),
        truncated=_cut(processor, collator.max_length, whole, positions) if collator.max_length and is_cut else None,
        messages=_messages(processor, sample),
        unlabelled=None if learnt else collator.without_label(sample.name),
        processors=processor.encoder_processors,
    )


def view_place(
    collator: Collator, reading: Reading, place: Any, budget: Budget | None = None, *, source: str = "", index: int
) -> SampleView:
    """What the model gets of the sample at a place; if it cannot be used, why, and what there is of it.

    Args:
        collator: of the training.
        reading: reads the source.
        place: which sample.
        budget: what a micro-batch may take; None if that does not matter.
        source: in words.
        index: of the sample.

    Returns:
        The view; with an `error` in training's words if the sample cannot be used.

    Raises:
        ImportError: if a package is missing, which is not the sample's fault.
        MemoryError: nor is that.
    """
    name, sample = reading.called(place), None
    try:
        sample = reading.sample(place)
        name = sample.name
        view = view_sample(collator, sample, source=source, index=index)
        size = Size.of(sample, len(view.positions))
        error = collator.beyond_the_table(name, size.positions)
        if error is None and budget is not None and view.unlabelled is None:
            error = budget.refusal(name, size)
        return replace(view, error=error)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        name = name_in(error, name)
        said = str(named(error, name)) if isinstance(error, CornstarchError) else refusal(name, error)
    processor = collator.processor
    return SampleView(
        name=name,
        source=source,
        index=index,
        media=tuple(_readable(processor, sample)) if sample is not None else (),
        marks=dict(processor.feature_tokens),
        messages=_messages(processor, sample) if sample is not None else (),
        error=said,
        processors=processor.encoder_processors,
    )


# --- positions --------------------------------------------------------------------------------------------------------


def _positions(processor: MultimodalProcessor, found: Processed) -> tuple[PositionView, ...]:
    ids, labels = found.batch["input_ids"][0].tolist(), found.batch["labels"][0].tolist()
    keys = {token_id: key for key, token_id in processor.token_ids.items()}
    tokenizer: Any = processor.llm_tokenizer
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(
        PositionView(
            id=token_id,
            text=text,
            label=None if label == IGNORE_INDEX else label,
            modality=keys.get(token_id),
            special=token_id in special,
        )
        for token_id, text, label in zip(ids, pieces(tokenizer, ids), labels, strict=True)
    )


def _cut(processor: MultimodalProcessor, limit: int, whole: Processed, kept: Sequence[PositionView]) -> CutView:
    """What is in the whole and not in what was kept, which is its beginning or, for some tokenizers, its end."""
    before = _positions(processor, whole)
    number = len(kept)
    at_end = [position.id for position in before[:number]] == [position.id for position in kept]
    left_out = before[number:] if at_end else before[: len(before) - number]
    return CutView(max_length=limit, before=len(before), after=number, left_out=left_out)


# --- media ------------------------------------------------------------------------------------------------------------


def _media(processor: MultimodalProcessor, found: Processed, whole: Processed) -> Iterator[MediumView]:
    """All media of a sample in their order, those that were cut off without positions."""
    runs, places = _runs(processor, found), _runs(processor, whole)
    kept = {(key, entry.place): entry for key, entries in found.inputs.items() for entry in entries}
    entries = [entry for own in whole.inputs.values() for entry in own]
    nowhere = ((whole.batch["input_ids"].shape[1], 0),)  # of an input that takes no position: behind all others
    for entry in sorted(entries, key=lambda entry: places[entry.key, entry.place] or nowhere):
        own = kept.get((entry.key, entry.place))
        yield _medium(processor, entry, own, runs.get((entry.key, entry.place), ()))


def _runs(processor: MultimodalProcessor, found: Processed) -> dict[tuple[str, int], tuple[Run, ...]]:
    """(start, end) of the runs of every input, (key, place)."""
    ids = found.batch["input_ids"][0]
    runs = {}
    for key, entries in found.inputs.items():
        rest = iter((ids == processor.token_ids[key]).nonzero().flatten().tolist())
        for entry in entries:
            own = [[next(rest) for _ in range(length)] for length in entry.runs]
            runs[key, entry.place] = tuple((run[0], run[-1] + 1) for run in own if run)
    return runs


def _medium(
    processor: MultimodalProcessor, entry: ProcessedInput, kept: ProcessedInput | None, runs: tuple[Run, ...]
) -> MediumView:
    tensors = kept.tensors if kept is not None else {}
    return MediumView(
        key=entry.key,
        index=entry.place,
        inputs={name: tuple(value.shape) for name, value in tensors.items()},
        positions=runs,
        left_out=kept is None,
        tensors=tensors,
        **_described(processor, entry.key, kept.item if kept is not None else entry.item),
    )


def _described(processor: MultimodalProcessor, key: str, item: Any) -> dict[str, Any]:
    """Kind and sizes of a medium that was read."""
    taker = processor.encoder_processors[key]
    kind = media.kind_of(taker)
    described: dict[str, Any] = {"kind": kind, "item": item}
    if kind == "image":
        described["size"] = _pixels_of(item)
    elif kind == "video":
        described |= {"size": _pixels_of(item[0]), "frames": len(item)}
    elif kind == "audio":
        rate = getattr(taker, "sampling_rate", None)
        described |= {"sampling_rate": rate, "seconds": len(item) / rate if rate else None}
    return described


def _pixels_of(image: Any) -> tuple[int, int]:
    """Width and height of an image, with its channels first or last if it is an array."""
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[1:] if image.ndim == 3 and image.shape[0] in (1, 3, 4) else image.shape[:2]
    return int(width), int(height)


def _readable(processor: MultimodalProcessor, sample: Sample) -> Iterator[MediumView]:
    """The media of a sample that cannot be used, each tried by itself."""
    counted: dict[str, int] = {}
    for kind, medium in sample.media:
        key, argument = next(
            ((key, argument) for key, (argument, kinds) in processor.media_arguments.items() if kind in kinds),
            (kind, None),
        )
        index = counted[key] = counted.get(key, -1) + 1
        if argument is None:
            known = ", ".join(processor.encoder_processors)
            yield MediumView(key=key, kind=kind, index=index, error=f"no modality takes it; there are {known}")
            continue
        taker = processor.encoder_processors[key]
        try:
            (item,) = media.read(key, taker, {argument: [medium]}, {}, processor.media_limits).items
            yield MediumView(key=key, index=index, **_described(processor, key, item))
        except Exception as error:  # decoders raise what comes
            yield MediumView(key=key, kind=media.kind_of(taker), index=index, error=str(error))


def _messages(processor: MultimodalProcessor, sample: Sample) -> tuple[tuple[str, str], ...]:
    """Roles and texts, marks in the places of media."""
    marks = {kind: processor.tokens[key] for key, (_, kinds) in processor.media_arguments.items() for kind in kinds}
    return tuple((str(message["role"]), _written(message["content"], marks)) for message in sample.messages)


def _written(content: Any, marks: Mapping[str, str]) -> str:
    if isinstance(content, str):
        return content
    return "".join(
        str(part["text"]) if part["type"] == "text" else marks.get(part["type"], f"<{part['type']}>")
        for part in content
    )
