"""5b. A sample -> what is wrong with it, and how long it is: read, decoded and collated as training would."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cornstarch.data.budgets import Budget, Size
from cornstarch.data.collation import Collator
from cornstarch.data.doctor.kinds import Finding, kind_of, remarks_on
from cornstarch.data.files import RowSource
from cornstarch.data.mixtures import MixtureSource
from cornstarch.data.samples import Message, Sample, Source, text_of
from cornstarch.data.steps import chance_at
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import media
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX

_EXTREME = 20.0  # times that one side of an image has the other's length
_Wrong = tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of a sample.

    Attributes:
        index: of the sample in its source.
        name: of the sample.
        findings: what is wrong with it.
        positions: it takes, cut as in training; 0 if it cannot be used.
        labelled: tokens that carry loss.
        features: modality key to positions that its inputs take.
        images: width and height of each.
        sounds: seconds of each.
        videos: frames of each.
        media: how many there are in all.
        seconds: that it took to read, decode and collate.
        digest: of its conversation and media; None if it cannot be used.
    """

    index: int
    name: str
    findings: tuple[Finding, ...] = ()
    positions: int = 0
    labelled: int = 0
    features: dict[str, int] = field(default_factory=dict)
    images: tuple[tuple[int, int], ...] = ()
    sounds: tuple[float, ...] = ()
    videos: tuple[int, ...] = ()
    media: int = 0
    seconds: float = 0.0
    digest: bytes | None = None

    @property
    def is_usable(self) -> bool:
        """Whether training would take it."""
        return not any(finding.is_error for finding in self.findings)


class Examiner:
    """Looks at samples of a source, one by one; whatever a sample raises is a finding.

    Args:
        source: the samples.
        collator: as training has it; its processor's limits hold.
        seed: of what the source varies.
        made_for: positions that the language model was made for; None if nobody knows.
        budget: of a micro-batch.
    """

    def __init__(
        self,
        source: Source,
        collator: Collator,
        *,
        seed: int = 0,
        made_for: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._source, self._collator, self._seed, self._made_for = source, collator, seed, made_for
        self._budget = budget or Budget()
        self._whole = Collator(collator.processor, None, collator.turns)
        self._whole.most_positions = None

    def __call__(self, index: int) -> Seen:
        """Look at one sample.

        Args:
            index: of the sample.

        Returns:
            What was seen.
        """
        started = time.perf_counter()
        seen = Seen(index=index, name=self.name(index))
        try:
            sample = self._source.sample(index, chance_at(self._seed, 0, index))
            seen = self._look_at(sample, replace(seen, name=sample.name))
        except _Found as found:
            seen = replace(seen, name=found.name, findings=found.findings)
        except Exception as error:
            seen = replace(seen, findings=(kind_of(error, seen.name),))
        return replace(seen, seconds=time.perf_counter() - started)

    def name(self, index: int) -> str:
        """What a sample is called before it is read.

        Args:
            index: of the sample.

        Returns:
            The name.
        """
        source, place = self._source, index
        if isinstance(source, MixtureSource):
            number, place = source.place_of(index)
            source = source.sources[number]
        return source.name(place) if isinstance(source, RowSource) else f"sample {place}"

    def _look_at(self, sample: Sample, seen: Seen) -> Seen:
        if not sample.messages:
            raise _Found(sample.name, (Finding("no_turns", "it has no turns"),))
        remarks = {finding.kind: finding for message in sample.messages for finding in remarks_on(text_of(message))}
        if any(_is_empty(message) for message in sample.messages if message["role"] == "assistant"):
            remarks["empty_answer"] = Finding("empty_answer", "the assistant says nothing")
        findings = list(remarks.values())
        try:
            decoded, found = self._decoded(sample)
            findings += found.remarks
            batch = self._whole([decoded])
            positions = batch["input_ids"].shape[1]
            length, most = self._collator.max_length, self._collator.most_positions
            if positions > min(length or positions, most or positions):
                batch = self._collator([decoded])
                findings.append(Finding("cut", f"{positions:,} positions, data.max_length is {length}"))
                positions = batch["input_ids"].shape[1]
        except Exception as error:
            wrong = error.findings if isinstance(error, _Found) else (kind_of(error, sample.name),)
            raise _Found(sample.name, (*wrong, *findings)) from error
        if self._made_for is not None and positions > self._made_for:
            findings.append(Finding("beyond_positions", f"{positions:,} positions, it was made for {self._made_for:,}"))
        size = Size.of(sample, positions)
        excess = self._budget.excess(size)
        if excess is not None:
            raise _Found(sample.name, (Finding("above_budget", excess), *findings))
        ids, token_ids = batch["input_ids"][0], self._collator.processor.token_ids
        return replace(
            seen,
            findings=tuple(findings),
            positions=positions,
            labelled=int((batch["labels"][0, 1:] != IGNORE_INDEX).sum()),
            features={key: int((ids == token_id).sum()) for key, token_id in token_ids.items()},
            images=tuple(found.images),
            sounds=tuple(found.sounds),
            videos=tuple(found.videos),
            media=size.media,
            digest=_digest(decoded.messages),
        )

    def _decoded(self, sample: Sample) -> tuple[Sample, "_Decoded"]:
        """The sample with its media decoded, and what is to be known of them."""
        processor, found = self._collator.processor, _Decoded()
        readers = {
            kind: (key, argument) for key, (argument, kinds) in processor.media_arguments.items() for kind in kinds
        }

        def decoded(part: Mapping[str, Any]) -> Mapping[str, Any]:
            kind = part["type"]
            if kind == "text":
                return part
            if kind not in readers:
                raise ArgumentError(f"{sample.name}: no encoder takes {kind}s; expected {', '.join(readers) or 'text'}")
            key, argument = readers[kind]
            own = processor.encoder_processors[key]
            try:
                item = media.read(key, own, {argument: [part[kind]]}, {}, processor.media_limits).items[0]
            except Exception as error:
                if _size(part[kind]) == 0:
                    raise _Found(sample.name, (Finding("empty_medium", f"it has no bytes: {error}"),)) from error
                raise
            found.note(item, media.kind_of(own), getattr(own, "sampling_rate", None))
            return {**part, kind: item}

        messages = []
        for message in sample.messages:
            content = message["content"]
            parts = content if isinstance(content, str) else [decoded(part) for part in content]
            messages.append({**message, "content": parts})
        return replace(sample, messages=tuple(messages)), found


class _Found(Exception):
    """What is wrong with a sample that cannot be used, where no error of the package says it."""

    def __init__(self, name: str, findings: _Wrong) -> None:
        super().__init__(name)
        self.name, self.findings = name, findings


@dataclass
class _Decoded:
    """What is to be known of the media of a sample."""

    images: list[tuple[int, int]] = field(default_factory=list)
    sounds: list[float] = field(default_factory=list)
    videos: list[int] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)

    def note(self, item: Any, kind: str, rate: Any) -> None:
        if kind == "image" and isinstance(item, Image.Image):
            width, height = item.size
            self.images.append((width, height))
            bands = item.getextrema()
            if all(low == high for low, high in (bands if isinstance(bands[0], tuple) else (bands,))):
                self._add("single_colour", f"{width} x {height} pixels of one colour")
            if max(width, height) >= _EXTREME * min(width, height):
                self._add("extreme_shape", f"{width} x {height}")
        elif kind == "audio":
            samples = np.asarray(item)
            if rate:
                self.sounds.append(samples.size / rate)
            if not samples.any():
                self._add("silent_sound", f"{samples.size:,} samples of silence")
        elif kind == "video":
            self.videos.append(len(item))

    def _add(self, kind: str, detail: str) -> None:
        if all(finding.kind != kind for finding in self.remarks):
            self.remarks.append(Finding(kind, detail))


def with_duplicates(seen: Sequence[Seen]) -> list[Seen]:
    """The same in the order of their indices, where those that repeat an earlier one say which.

    Args:
        seen: of one source or mixture, in any order.

    Returns:
        In order.
    """
    first: dict[bytes, Seen] = {}
    found = []
    for entry in sorted(seen, key=lambda entry: entry.index):
        if entry.digest is not None:
            other = first.setdefault(entry.digest, entry)
            if other is not entry:
                entry = replace(entry, findings=(*entry.findings, Finding("duplicate", f"the same as {other.name}")))
        found.append(entry)
    return found


def _is_empty(message: Message) -> bool:
    content = message["content"]
    return not text_of(message).strip() and (isinstance(content, str) or all(p["type"] == "text" for p in content))


def _size(medium: Any) -> int | None:
    """Bytes of an encoded medium."""
    if isinstance(medium, Mapping):
        medium = next((medium[key] for key in ("bytes", "path") if medium.get(key) is not None), None)
    if isinstance(medium, bytes):
        return len(medium)
    if isinstance(medium, str | Path) and len(str(medium)) < 5000 and Path(medium).is_file():
        return Path(medium).stat().st_size
    return None


def _digest(messages: Sequence[Message]) -> bytes:
    """Of roles, texts and decoded media. Neighbouring texts count as one, text alone as a part."""
    whole = hashlib.blake2b(digest_size=16)
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        whole.update(json.dumps(["turn", message["role"]]).encode())
        for part in parts:
            for piece in _pieces(part[part["type"]]):
                whole.update(len(piece).to_bytes(8, "little"))
                whole.update(piece)
    return whole.digest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield b"text " + value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        yield b"bytes " + value
    elif isinstance(value, Image.Image):
        yield f"image {value.mode} {value.size}".encode()
        yield value.tobytes()
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _pieces(entry)
    elif isinstance(value, Mapping):
        for key, entry in sorted(value.items()):
            yield str(key).encode()
            yield from _pieces(entry)
    elif value is not None:
        array = np.asarray(value)
        yield f"array {array.dtype} {array.shape}".encode()
        yield array.tobytes()
