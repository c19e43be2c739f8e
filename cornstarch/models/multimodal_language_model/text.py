"""1d. Text -> token ids with one mark per input, cut to length, then each mark repeated for its input's features."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX

_MEANINGLESS = [
    "is_split_into_words",
    "return_length",
    "return_offsets_mapping",
    "return_overflowing_tokens",
    "stride",
    "text_pair",
    "text_target",
]


class Samples:
    """Tokenised text of a batch, one mark per input, and what it becomes once inputs are counted."""

    def __init__(self, tokenizer: Any, fields: dict[str, list[list[Any]]], text: list[str], options: dict[str, Any]):
        self._tokenizer = tokenizer
        self._fields = fields
        self._text = text
        self._options = options

    @classmethod
    def tokenize(cls, tokenizer: Any, options: dict[str, Any], marks: Collection[int] = ()) -> "Samples":
        """Tokenise without padding or truncation, which must know how long inputs are.

        Args:
            tokenizer: the language model's.
            options: its arguments, `text` among them; and `label_spans`, the characters of each text that carry labels.
            marks: ids that stand for inputs and so never carry a label.

        Returns:
            The samples.

        Raises:
            ArgumentError: if there is no text, or an option has no meaning once marks are repeated.
        """
        options = dict(options)
        spans = options.pop("label_spans", None)
        text = options.pop("text", None)
        if text is None or not (isinstance(text, str) or all(isinstance(entry, str) for entry in text)):
            raise ArgumentError("llm_inputs must hold `text`, a string or a list of strings")
        text = [text] if isinstance(text, str) else list(text)
        if not text:
            raise ArgumentError("llm_inputs has an empty list as `text`; a batch has at least one sample")
        if spans is not None:
            _check_spans(tokenizer, spans, text)
        for name in _MEANINGLESS:
            if options.get(name):
                raise ArgumentError(f"{name} is not supported: its result has no meaning once marks are repeated")
        _check_lengths(options)
        limit = _limit(tokenizer, options)
        later = ("padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side")
        tokens_only = {name: value for name, value in options.items() if name not in later}
        if limit is not None:
            tokens_only["verbose"] = False  # no word of texts that are too long: they will be cut
            _check_padding(options, limit)
        offsets = {"return_offsets_mapping": True} if spans is not None else {}
        encoded = tokenizer(text, padding=False, truncation=False, **tokens_only, **offsets)
        fields = {
            name: [list(row) for row in rows]
            for name, rows in encoded.items()
            if name in (*tokenizer.model_input_names, "special_tokens_mask")
        }
        if spans is not None:
            rows = zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
            fields["labels"] = [_labels(*row, marks) for row in rows]
        return cls(tokenizer, fields, text, {**options, "tokens_only": tokens_only, "limit": limit})

    @property
    def _ids(self) -> list[list[int]]:
        return self._fields["input_ids"]

    def marks(self, token_id: int) -> list[int]:
        """How many marks of a modality each sample has."""
        return [row.count(token_id) for row in self._ids]

    def truncate(self, counts: Mapping[int, list[int]]) -> dict[int, tuple[list[int], list[int]]]:
        """Cut samples to the length asked for, never through an input's positions.

        Args:
            counts: mark id to how many positions each input takes.

        Returns:
            Mark id to which inputs are left, and how many of them in each sample.
        """
        widths, owners = self._widths(counts)
        limit = self._options["limit"]
        kept: dict[int, tuple[list[int], list[int]]] = {token_id: ([], []) for token_id in counts}
        for sample, ids in enumerate(self._ids):
            chosen = list(range(len(ids)))
            if limit is not None and sum(widths[sample]) > limit:
                chosen = self._choose(sample, widths[sample], limit)
            for token_id, (inputs, per_sample) in kept.items():
                left = [owners[sample][place] for place in chosen if ids[place] == token_id]
                inputs.extend(owner for owner in left if owner is not None)
                per_sample.append(len(left))
            for rows in self._fields.values():
                rows[sample] = [rows[sample][place] for place in chosen]
        return kept

    def expand(self, counts: Mapping[int, list[int]]) -> dict[str, Any]:
        """Repeat marks as often as their inputs yield features, and pad.

        Args:
            counts: mark id to how many positions each input takes.

        Returns:
            `input_ids`, `attention_mask` and what else the tokenizer gives, one list per sample.
        """
        widths, _ = self._widths(counts)
        expanded = {
            name: [_repeated(row, row_widths) for row, row_widths in zip(rows, widths, strict=True)]
            for name, rows in self._fields.items()
        }
        if not self._ids:
            return expanded
        names = ("padding", "max_length", "pad_to_multiple_of", "padding_side")
        padding = {name: self._options[name] for name in names if self._options.get(name) is not None}
        if not _pads(self._options):
            return expanded
        if padding["padding"] != "max_length":
            padding.pop("max_length", None)
        labels = expanded.pop("labels", None)
        padded = dict(self._tokenizer.pad(expanded, **padding))
        if labels is not None:
            side = padding.get("padding_side", self._tokenizer.padding_side)
            pairs = zip(labels, padded["input_ids"], strict=True)
            padded["labels"] = [_padded(row, len(ids), side) for row, ids in pairs]
        return padded

    def _widths(self, counts: Mapping[int, list[int]]) -> tuple[list[list[int]], list[list[int | None]]]:
        """For every token, how many positions it takes and which input, if any, it stands for."""
        following = dict.fromkeys(counts, 0)
        widths: list[list[int]] = []
        owners: list[list[int | None]] = []
        for ids in self._ids:
            widths.append([])
            owners.append([])
            for token_id in ids:
                if token_id in counts:
                    owner = following[token_id]
                    following[token_id] += 1
                    widths[-1].append(counts[token_id][owner])
                    owners[-1].append(owner)
                else:
                    widths[-1].append(1)
                    owners[-1].append(None)
        return widths, owners

    def _choose(self, sample: int, widths: list[int], limit: int) -> list[int]:
        """Which tokens of a sample stay: special tokens around the text, and as much of the text as fits whole."""
        before, after = self._special(sample)
        body = list(range(before, len(widths) - after))
        room = limit - before - after
        from_left = self._tokenizer.truncation_side == "left"
        stay = []
        for place in reversed(body) if from_left else body:
            if widths[place] > room:
                break
            room -= widths[place]
            stay.append(place)
        return [*range(before), *sorted(stay), *range(len(widths) - after, len(widths))]

    def _special(self, sample: int) -> tuple[int, int]:
        """How many tokens the tokenizer puts before and after a text."""
        ids = self._ids[sample]
        plain = {**self._options["tokens_only"], "add_special_tokens": False}
        body = list(self._tokenizer(self._text[sample], padding=False, truncation=False, **plain)["input_ids"])
        for before in range(len(ids) - len(body) + 1):
            if ids[before : before + len(body)] == body:
                return before, len(ids) - len(body) - before
        return 0, 0


def _check_lengths(options: Mapping[str, Any]) -> None:
    for name in ("max_length", "pad_to_multiple_of"):
        given = options.get(name)
        if given is not None and (not isinstance(given, int | np.integer) or isinstance(given, bool) or given < 1):
            raise ArgumentError(f"{name} must be a whole number and at least 1, found {given!r}")
    untruncated = options.get("truncation") in (None, False, "do_not_truncate")
    if options.get("max_length") is not None and untruncated and options.get("padding") in (True, "longest"):
        warnings.warn(
            "max_length is ignored with padding to the longest and no truncation: pass truncation=True, or "
            "padding='max_length'",
            UserWarning,
            stacklevel=4,
        )


def _pads(options: Mapping[str, Any]) -> bool:
    return options.get("padding") not in (None, False, "do_not_pad")


def _limit(tokenizer: Any, options: Mapping[str, Any]) -> int | None:
    """How long a sample may be, as Hugging Face's tokenizers have it: `max_length` alone truncates too."""
    truncation, given = options.get("truncation"), options.get("max_length")
    if truncation is None and given is not None and not options.get("padding"):
        truncation = True
    if truncation in (None, False, "do_not_truncate"):
        return None
    if truncation not in (True, "longest_first"):
        raise ArgumentError(f"truncation must be True or False, found {truncation!r}")
    limit = given if given is not None else tokenizer.model_max_length
    return int(limit) if limit < 10**9 else None  # tokenizers without a limit state an enormous one


def _check_padding(options: Mapping[str, Any], limit: int) -> None:
    """Padding must not make a sample longer than truncation lets it be, as in Hugging Face's tokenizers."""
    multiple = options.get("pad_to_multiple_of")
    if multiple is not None and _pads(options) and limit % multiple:
        raise ArgumentError(
            f"max_length ({limit}) must be a multiple of pad_to_multiple_of ({multiple}) to truncate and pad, as "
            "padding would exceed it"
        )


def _repeated(row: list[Any], widths: list[int]) -> list[Any]:
    return [value for value, width in zip(row, widths, strict=True) for _ in range(width)]


def _check_spans(tokenizer: Any, spans: Any, text: Sequence[str]) -> None:
    if not tokenizer.is_fast:
        raise ArgumentError(
            f"label_spans needs a tokenizer that knows which characters a token stands for; {type(tokenizer).__name__} "
            "does not: load its fast version"
        )
    if len(spans) != len(text):
        raise ArgumentError(f"label_spans must have one list of (start, end) for each of the {len(text)} texts")
    for sample, (pairs, entry) in enumerate(zip(spans, text, strict=True)):
        for start, end in pairs:
            if not 0 <= start <= end <= len(entry):
                raise ArgumentError(
                    f"label_spans: sample {sample} has ({start}, {end}), which lies outside its {len(entry)} characters"
                )


def _labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], marks: Collection[int]
) -> list[int]:
    """The id of every token that has a character in a span, and what carries no loss for the others."""
    return [
        token_id
        if token_id not in marks and any(begin < until and start < end for start, until in spans)
        else IGNORE_INDEX
        for token_id, (begin, end) in zip(ids, offsets, strict=True)
    ]


def _padded(row: list[int], length: int, side: str) -> list[int]:
    missing = [IGNORE_INDEX] * (length - len(row))
    return [*missing, *row] if side == "left" else [*row, *missing]
