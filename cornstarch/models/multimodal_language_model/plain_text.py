"""1d1. Text some of which looks like special tokens -> ids that take it for text."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cornstarch.errors import ArgumentError


def encode(
    tokenizer: Any,
    encode: Callable[..., Mapping[str, list[Any]]],
    text: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
) -> dict[str, list[list[Any]]]:
    """Tokenise texts in pieces, without a word for what is in a span.

    Args:
        tokenizer: a fast one.
        encode: calls it with the options of all pieces.
        text: of each sample.
        spans: of each sample, (start, end) of special tokens that are text, in order.

    Returns:
        What the tokenizer returns, one list per sample; offsets are those in the whole text.

    Raises:
        ArgumentError: if the tokenizer makes special tokens of text all the same.
    """
    rows = [_sample(tokenizer, encode, entry, places) for entry, places in zip(text, spans, strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _sample(
    tokenizer: Any, encode: Callable[..., Mapping[str, list[Any]]], text: str, spans: Sequence[tuple[int, int]]
) -> dict[str, list[Any]]:
    cuts = [0, *(place for span in spans for place in span), len(text)]
    fields: dict[str, list[Any]] = {}
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        if start == end and number:
            continue
        plain = number % 2 == 1
        piece = _piece(encode, text[start:end], first=not number, plain=plain)
        if plain and tokenizer.convert_tokens_to_ids(text[start:end]) in piece["input_ids"]:
            raise ArgumentError(
                f"the text holds {text[start:end]!r}, of which the tokenizer makes a special token even where it "
                "stands in a text: take it out"
            )
        piece["offset_mapping"] = [(begin + start, until + start) for begin, until in piece.get("offset_mapping", [])]
        for name, values in piece.items():
            fields.setdefault(name, []).extend(values)
    return fields


def _piece(
    encode: Callable[..., Mapping[str, list[Any]]], text: str, *, first: bool, plain: bool
) -> dict[str, list[Any]]:
    """The tokens of a piece of text; behind a line break, which is taken away, since some begin a text with a blank."""
    options = {"split_special_tokens": True} if plain else {}
    if first:
        return dict(encode(text, **options))
    line_break, both = encode("\n")["input_ids"], dict(encode(f"\n{text}", **options))
    if both["input_ids"][: len(line_break)] != line_break:  # it became one token with what follows
        return dict(encode(text, **options))
    kept = {name: list(values)[len(line_break) :] for name, values in both.items()}
    if "offset_mapping" in kept:
        kept["offset_mapping"] = [(begin - 1, until - 1) for begin, until in kept["offset_mapping"]]
    return kept
