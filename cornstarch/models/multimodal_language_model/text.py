"""1d. Text -> token ids with one mark per input, cut to length, then each mark repeated for its input's features."""

import functools
import itertools
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import plain_text
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


_Group = tuple[int, int]  # the id of an input's features, and which of its sample's inputs that are written it is
_Owner = tuple[int, int]  # the id of an input's features, and which of the batch's inputs it is
_Place = tuple[int, int, int]  # of the text of an input: its first character, the one behind its last, the id


class Samples:
    """Tokenised text of a batch, one mark per input, and what it becomes once inputs are counted.

    Where a text stands for an input, its tokens are the input's, and each mark in it is a run of features.
    """

    def __init__(
        self,
        tokenizer: Any,
        fields: dict[str, list[list[Any]]],
        text: list[str],
        options: dict[str, Any],
        groups: list[list[_Group | None]],
    ) -> None:
        self._tokenizer = tokenizer
        self._fields = fields
        self._text = text
        self._options = options
        self._groups = groups  # for every token, the input whose text it is of

    @classmethod
    def tokenize(
        cls,
        tokenizer: Any,
        options: dict[str, Any],
        marks: Collection[int] = (),
        written: Mapping[str, tuple[int, Sequence[str]]] | None = None,
    ) -> "Samples":
        """Tokenise without padding or truncation, which must know how long inputs are.

        Args:
            tokenizer: the language model's.
            options: its arguments, `text` among them; `label_spans`, the characters of each text that carry labels; and
                `plain_spans`, those that look like special tokens but are text.
            marks: ids that stand for inputs and so never carry a label.
            written: mark in the text to the id of features, and to the texts that stand for the inputs, in their order.

        Returns:
            The samples.

        Raises:
            ArgumentError: if there is no text, or an option has no meaning once marks are repeated.
        """
        options = dict(options)
        spans, plain = options.pop("label_spans", None), options.pop("plain_spans", None)
        text = texts(options)
        options.pop("text")
        for name, given in (("label_spans", spans), ("plain_spans", plain)):
            if given is not None:
                _check_spans(tokenizer, name, given, text)
        if plain is not None and options.get("add_special_tokens") is not False:
            raise ArgumentError("plain_spans needs add_special_tokens=False: texts are taken apart at them")
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
        text, places, (spans, plain) = _write(tokenizer, text, written or {}, (spans, plain))
        known = spans is not None or any(places)
        offsets = {"return_offsets_mapping": True} if known else {}
        encode = functools.partial(tokenizer, padding=False, truncation=False, **tokens_only, **offsets)
        encoded = encode(text) if plain is None else plain_text.encode(tokenizer, encode, text, plain)
        fields = {
            name: [list(row) for row in rows]
            for name, rows in encoded.items()
            if name in (*tokenizer.model_input_names, "special_tokens_mask")
        }
        groups: list[list[_Group | None]] = [[None] * len(row) for row in encoded["input_ids"]]
        if any(places):
            groups = [_groups(*row) for row in zip(encoded["offset_mapping"], places, strict=True)]
        if spans is not None:
            added = frozenset(tokenizer.added_tokens_decoder)
            rows = zip(text, encoded["input_ids"], encoded["offset_mapping"], spans, groups, strict=True)
            fields["labels"] = [_labels(*row, marks, added) for row in rows]
        return cls(tokenizer, fields, text, {**options, "tokens_only": tokens_only, "limit": limit}, groups)

    @property
    def _ids(self) -> list[list[int]]:
        return self._fields["input_ids"]

    def marks(self, token_id: int) -> list[int]:
        """How many inputs of a modality each sample has."""
        return [
            sum(1 for found, group in zip(row, groups, strict=True) if found == token_id and group is None)
            + len({group for group in groups if group is not None and group[0] == token_id})
            for row, groups in zip(self._ids, self._groups, strict=True)
        ]

    def truncate(self, counts: Mapping[int, list[list[int]]]) -> dict[int, tuple[list[int], list[int]]]:
        """Cut samples to the length asked for, never through an input's positions.

        Args:
            counts: mark id to how many positions each run of each input takes.

        Returns:
            Mark id to which inputs are left, and how many of them in each sample.
        """
        widths, owners = self._widths(counts)
        limit = self._options["limit"]
        kept: dict[int, tuple[list[int], list[int]]] = {token_id: ([], []) for token_id in counts}
        for sample, ids in enumerate(self._ids):
            chosen = list(range(len(ids)))
            if limit is not None and sum(widths[sample]) > limit:
                chosen = self._choose(sample, widths[sample], owners[sample], limit)
            whose = dict.fromkeys(owners[sample][place] for place in chosen)
            for token_id, (inputs, per_sample) in kept.items():
                left = [owner[1] for owner in whose if owner is not None and owner[0] == token_id]
                inputs.extend(left)
                per_sample.append(len(left))
            for rows in (*self._fields.values(), self._groups):
                rows[sample] = [rows[sample][place] for place in chosen]
        return kept

    def expand(self, counts: Mapping[int, list[list[int]]]) -> dict[str, Any]:
        """Repeat marks as often as their inputs yield features, and pad.

        Args:
            counts: mark id to how many positions each run of each input takes.

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

    def _widths(self, counts: Mapping[int, list[list[int]]]) -> tuple[list[list[int]], list[list[_Owner | None]]]:
        """For every token, how many positions it takes and which input, if any, it stands for or is of the text of."""
        following = dict.fromkeys(counts, 0)
        widths: list[list[int]] = []
        owners: list[list[_Owner | None]] = []
        for ids, groups in zip(self._ids, self._groups, strict=True):
            widths.append([])
            owners.append([])
            known: dict[_Group, _Owner] = {}
            runs: dict[_Owner, int] = {}
            for token_id, group in zip(ids, groups, strict=True):
                mark = token_id if group is None else group[0]
                if mark not in counts:
                    widths[-1].append(1)
                    owners[-1].append(None)
                    continue
                if group is None or group not in known:
                    owner = (mark, following[mark])
                    following[mark] += 1
                else:
                    owner = known[group]
                if group is not None:
                    known[group] = owner
                run = runs.get(owner, 0)
                if token_id == mark:
                    runs[owner] = run + 1
                widths[-1].append(counts[mark][owner[1]][run] if token_id == mark else 1)
                owners[-1].append(owner)
        return widths, owners

    def _choose(self, sample: int, widths: list[int], owners: list[_Owner | None], limit: int) -> list[int]:
        """Which tokens of a sample stay: special tokens around the text, and as much of the text as fits whole."""
        before, after = self._special(sample)
        body = range(before, len(widths) - after)
        units = [
            list(places) for _, places in itertools.groupby(body, lambda place: (owners[place], owners[place] or place))
        ]
        room = limit - before - after
        from_left = self._tokenizer.truncation_side == "left"
        stay: list[int] = []
        for unit in reversed(units) if from_left else units:
            if sum(widths[place] for place in unit) > room:
                break
            room -= sum(widths[place] for place in unit)
            stay.extend(unit)
        return [*range(before), *sorted(stay), *range(len(widths) - after, len(widths))]

    def _special(self, sample: int) -> tuple[int, int]:
        """How many tokens the tokenizer puts before and after a text."""
        ids = self._ids[sample]
        if self._options["tokens_only"].get("add_special_tokens") is False:
            return 0, 0
        plain = {**self._options["tokens_only"], "add_special_tokens": False}
        body = list(self._tokenizer(self._text[sample], padding=False, truncation=False, **plain)["input_ids"])
        for before in range(len(ids) - len(body) + 1):
            if ids[before : before + len(body)] == body:
                return before, len(ids) - len(body) - before
        return 0, 0


def texts(options: Mapping[str, Any]) -> list[str]:
    """The texts of a batch.

    Args:
        options: a tokenizer's arguments.

    Returns:
        `text` among them, as a list.

    Raises:
        ArgumentError: if there is none.
    """
    text = options.get("text")
    if text is None or not (isinstance(text, str) or all(isinstance(entry, str) for entry in text)):
        raise ArgumentError("llm_inputs must hold `text`, a string or a list of strings")
    if not text and not isinstance(text, str):
        raise ArgumentError("llm_inputs has an empty list as `text`; a batch has at least one sample")
    return [text] if isinstance(text, str) else list(text)


def _write(
    tokenizer: Any, text: list[str], written: Mapping[str, tuple[int, Sequence[str]]], spans: Sequence[Any]
) -> tuple[list[str], list[list[_Place]], Sequence[Any]]:
    """The texts with those of inputs in place of marks; where inputs are in each; and the spans, moved along."""
    if not written:
        return text, [[] for _ in text], spans
    if not tokenizer.is_fast:
        raise ArgumentError(
            f"texts that stand for inputs need a tokenizer that knows which characters a token stands for; "
            f"{type(tokenizer).__name__} does not: load its fast version"
        )
    rest = {mark: iter(entries) for mark, (_, entries) in written.items()}
    pattern = re.compile("|".join(re.escape(mark) for mark in sorted(written, key=len, reverse=True)))
    made, places, more = [], [], []
    for entry in text:
        pieces: list[str] = []
        here: list[_Place] = []
        gained: list[tuple[int, int]] = []  # behind which character of the text, how many more there are
        length, last = 0, 0
        for match in pattern.finditer(entry):
            inner = next(rest[match[0]])
            pieces += [entry[last : match.start()], inner]
            length += match.start() - last
            here.append((length, length + len(inner), written[match[0]][0]))
            length, last = length + len(inner), match.end()
            gained.append((last, length - last))
        made.append("".join([*pieces, entry[last:]]))
        places.append(here)
        more.append(gained)
    return made, places, [None if given is None else _all_moved(given, more) for given in spans]


def _all_moved(spans: Sequence[Any], more: list[list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    pairs = zip(spans, more, strict=True)
    return [[(_moved(start, gained), _moved(end, gained)) for start, end in row] for row, gained in pairs]


def _moved(place: int, gained: list[tuple[int, int]]) -> int:
    return place + next((more for end, more in reversed(gained) if end <= place), 0)


def _groups(offsets: Sequence[tuple[int, int]], places: Sequence[_Place]) -> list[_Group | None]:
    """For every token, the input in whose text it is: from the first token with a character of it to the last."""
    groups: list[_Group | None] = [None] * len(offsets)
    for number, (start, until, token_id) in enumerate(places):
        within = [place for place, (begin, end) in enumerate(offsets) if begin < until and start < end]
        for place in range(within[0], within[-1] + 1):
            groups[place] = groups[place] or (token_id, number)
    return groups


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


def _check_spans(tokenizer: Any, name: str, spans: Any, text: Sequence[str]) -> None:
    if not tokenizer.is_fast:
        raise ArgumentError(
            f"{name} needs a tokenizer that knows which characters a token stands for; {type(tokenizer).__name__} "
            "does not: load its fast version"
        )
    if len(spans) != len(text):
        raise ArgumentError(f"{name} must have one list of (start, end) for each of the {len(text)} texts")
    for sample, (pairs, entry) in enumerate(zip(spans, text, strict=True)):
        for start, end in pairs:
            if not 0 <= start <= end <= len(entry):
                raise ArgumentError(
                    f"{name}: sample {sample} has ({start}, {end}), which lies outside its {len(entry)} characters"
                )


def _labels(
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
    groups: Sequence[_Group | None],
    marks: Collection[int],
    added: Collection[int],
) -> list[int]:
    """The id of every token that has a character in a span and is of no input, and what carries no loss for others."""
    labels, reached = [], 0
    for token_id, (begin, end), group in zip(ids, offsets, groups, strict=True):
        reached, before = max(reached, end), reached
        # Tokenizers that leave blanks out of offsets give a token of blanks none: it stands for those before its end.
        begin = before if begin == end else begin
        if token_id in added and (bare := text[begin:end].strip()):  # some swallow the blanks around them
            begin += text[begin:end].index(bare)
            end = begin + len(bare)
        inside = any(begin < until and start < end for start, until in spans)
        labels.append(token_id if inside and group is None and token_id not in marks else IGNORE_INDEX)
    return labels


def _padded(row: list[int], length: int, side: str) -> list[int]:
    missing = [IGNORE_INDEX] * (length - len(row))
    return [*missing, *row] if side == "left" else [*row, *missing]
