"""3a1. Ids -> what each of them adds to the text, which is not what it is decoded to by itself."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

_HALF = "�"  # what decoders make of a character of which bytes are missing


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each id; a character that is made of several comes with the last of them.

    Args:
        tokenizer: has made them.
        ids: of a whole text.

    Returns:
        As many texts as ids. One after the other they are what the tokenizer decodes all ids to.
    """
    whole = _decoded(tokenizer, ids)
    found = list(_by_neighbours(tokenizer, ids))
    if "".join(found) == whole:
        return found
    kept = _right(found[:-1], whole)  # where a text is cut within a character, all but its end
    return [*found[:kept], *_from_the_beginning(tokenizer, ids, whole, kept, len("".join(found[:kept])))]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _by_neighbours(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """What an id adds to the text of the few before it: enough for most tokenizers, and quick."""
    start, done = 0, 0  # the piece before begins at `start`, the one that is being read at `done`
    known = ""
    for place in range(len(ids)):
        text = _decoded(tokenizer, ids[start : place + 1])
        if text.endswith(_HALF) and place + 1 < len(ids):
            # Three bytes or more may be this very character, or garbage; it is whole if what follows adds to it.
            more = _decoded(tokenizer, ids[start : place + 2]) if place - done >= 2 else ""
            if len(more) <= len(text) or not more.startswith(text):
                yield ""
                continue
        yield text[len(known) :]
        start, done = done, place + 1
        known = _decoded(tokenizer, ids[start:done])


def _right(found: Sequence[str], whole: str) -> int:
    """With how many pieces the whole begins."""
    done = 0
    for number, piece in enumerate(found):
        if not whole.startswith(piece, done):
            return number
        done += len(piece)
    return len(found)


def _from_the_beginning(tokenizer: Any, ids: Sequence[int], whole: str, first: int, done: int) -> Iterator[str]:
    """How much further the text of all ids up to one agrees with the whole: right for all, slow for long texts.

    Args:
        tokenizer: has made them.
        ids: of the whole text.
        whole: what they are decoded to.
        first: id to begin with.
        done: characters of the whole that those before it have.

    Yields:
        What each adds.
    """
    for place in range(first, len(ids)):
        text = _decoded(tokenizer, ids[: place + 1]) if place + 1 < len(ids) else whole
        reached = max(done, _agreeing(text, whole))
        yield whole[done:reached]
        done = reached


def _agreeing(text: str, whole: str) -> int:
    """With how many characters both begin."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, whole, strict=False)))
