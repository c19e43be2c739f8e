"""5a. What can be wrong with a sample: the table of kinds, and which kind an error or a text is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cornstarch.errors import UnlabelledError

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One thing that can be wrong.

    Attributes:
        severity: `error` if the sample cannot be used, `warning` if it can, and somebody should look at it.
        means: what is wrong.
        remedy: what to do.
    """

    severity: Severity
    means: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a sample.

    Attributes:
        kind: a key of `KINDS`.
        detail: what was found.
    """

    kind: str
    detail: str

    @property
    def is_error(self) -> bool:
        """Whether the sample cannot be used."""
        return KINDS[self.kind].severity == "error"


def _error(means: str, remedy: str) -> Kind:
    return Kind(severity="error", means=means, remedy=remedy)


def _warning(means: str, remedy: str) -> Kind:
    return Kind(severity="warning", means=means, remedy=remedy)


KINDS = {
    # files and rows
    "broken_file": _error("a file is damaged, only a part of it can be read", "fetch it anew; the rest is used"),
    "broken_json": _error("an entry is no JSON", "write the entry anew, or leave it out"),
    "bad_encoding": _error("text that is no UTF-8, or holds half a character", "save it as UTF-8, or leave it out"),
    "wrong_type": _error(
        "a field is missing, or is of another type than the format has",
        "see Data in the documentation, and the key `columns`",
    ),
    "unknown_role": _error("a turn is of a role that is none", "name it user, assistant or system"),
    # conversations
    "no_turns": _error("a conversation without turns", "leave it out"),
    "unlabelled": _error(
        "no token is labelled: no answer, or it was cut off", "raise data.max_length, or leave it out"
    ),
    "refused_by_template": _error(
        "the chat template does not write such a conversation", "choose another data.template, or leave it out"
    ),
    "too_long": _error("more positions than the language model has", "set data.max_length"),
    "above_budget": _error("more than a micro-batch may have", "raise training.micro_batch_positions or _media"),
    "mark_in_text": _error("the text holds the mark of an input", "take it out of the text"),
    "mark_without_medium": _error("more marks than media", "add the medium, or take the mark out"),
    "medium_without_mark": _error("more media than marks", "add the mark, or take the medium out"),
    # media
    "missing_medium": _error("a medium is not there", "is `media` the folder? else fetch it, or leave the sample out"),
    "outside_folder": _error("a name leads out of the folder with the media", "move the medium there"),
    "address": _error("a medium is named by an address", "fetch it into the folder with the media"),
    "empty_medium": _error("a medium of no bytes, or no samples", "fetch it anew, or leave the sample out"),
    "truncated_medium": _error("a medium is cut off", "fetch it anew, or leave the sample out"),
    "unreadable_medium": _error("a medium cannot be decoded", "fetch it anew, or leave the sample out"),
    "too_large": _error("a medium is beyond a limit", "raise data.limits if it is meant, or make it smaller"),
    "not_a_number": _error("a sound with samples that are no finite numbers", "write it anew, or leave it out"),
    # the rest
    "missing_package": _error("a package that reads it is not installed", "install what the message names"),
    "crashed": _error("the process that looked at it died", "leave the sample out; its medium may crash training"),
    "other": _error("an error that is none of these", "read the detail"),
    # remarks
    "cut": _warning("longer than data.max_length, so its end is not learnt", "raise data.max_length if that matters"),
    "beyond_positions": _warning("longer than the language model was made for", "set data.max_length"),
    "duplicate": _warning("the same conversation about the same media as another", "leave it out (--also duplicate)"),
    "empty_answer": _warning("an answer without text", "leave it out, unless silence is to be learnt"),
    "mark_as_text": _warning("<image>, <audio> or <video> stands there and means nothing", "is a medium missing?"),
    "replacement_character": _warning("U+FFFD stands where a character was lost", "read the original's encoding"),
    "mojibake": _warning("text that was read in a wrong encoding, such as Ã© for é", "read the original as UTF-8"),
    "control_characters": _warning("NUL or control characters in the text", "take them out"),
    "silent_sound": _warning("a sound that is silent throughout", "is the recording right?"),
    "single_colour": _warning("an image of a single colour", "is the image right?"),
    "extreme_shape": _warning("an image many times as long as wide, or as wide as long", "is it cropped right?"),
}

# What messages of this package say, to kinds; the first that is found counts. Pinned by tests/data/test_doctor.py.
_SIGNS = (
    ("codec can't decode|half a character", "bad_encoding"),
    ("this is no JSON|too deep to read", "broken_json"),
    ("a turn is from |has the role ", "unknown_role"),
    ("which stands for an input in text", "mark_in_text"),
    ("refuses a conversation of|so what the assistant said cannot be told", "refused_by_template"),
    ("positions, the language model has", "too_long"),
    ("without (?:image|audio|video), and the row has none left", "mark_without_medium"),
    ("there are more (?:image|audio|video)s than parts", "medium_without_mark"),
    ("the limit \\w+ is |Pillow's limit", "too_large"),
    ("is an address", "address"),
    ("lies outside ", "outside_folder"),
    ("there is no (?:image|audio|video|such file)|, and no folder is|that no name can have", "missing_medium"),
    ("samples that are no finite numbers", "not_a_number"),
    ("it is empty|it has no frames", "empty_medium"),
    ("[Tt]runcated|unexpected end|ends within|ended prematurely", "truncated_medium"),
    ("cannot be read", "unreadable_medium"),
    ("expected|must (?:be|have)|there is no column|names no type|of type|cannot be learnt from|neither", "wrong_type"),
)
_COUNTS = re.compile(r"(\d+) marks? .{1,80}? but (\d+) ")
_LONGEST = 500


def kind_of(error: Exception, name: str) -> Finding:
    """What an error says is wrong with a sample.

    Args:
        error: as reading or collating the sample raised it.
        name: of the sample, which messages begin with.

    Returns:
        The finding.
    """
    detail = str(error).removeprefix(f"{name}: ") or type(error).__name__
    shown = detail if len(detail) <= _LONGEST else f"{detail[:_LONGEST]}..."
    if isinstance(error, UnlabelledError):
        return Finding("unlabelled", shown)
    if isinstance(error, ImportError):
        return Finding("missing_package", shown)
    counts = _COUNTS.search(detail)
    if counts is not None:
        more = int(counts[1]) > int(counts[2])
        return Finding("mark_without_medium" if more else "medium_without_mark", shown)
    if not isinstance(error, ValueError | OSError):
        return Finding("other", f"{type(error).__name__}: {shown}")
    return Finding(next((kind for sign, kind in _SIGNS if re.search(sign, detail)), "other"), shown)


# --- texts ------------------------------------------------------------------------------------------------------------

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# UTF-8 that was read as Windows-1252 or Latin-1. Without quotes, dashes and the ellipsis behind a capital: people write
# "AMANHÃ…" and "CAFÉ”".
_MOJIBAKE = re.compile(
    "[ÃÂ][\u0080-\u00aa\u00ac-\u00ba\u00bc-\u00bf]"
    "|Ã[\u00bb\u00ab\u20ac\u201a\u0192\u201e\u2020\u2021\u02c6\u2030\u0160"
    "\u2039\u0152\u017d\u2022\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
    "|â€.|â\u0080[\u0080-\u00bf]|ï»¿|ðŸ|ð\u009f"
    "|(?:[ÐÑ][\u0080-\u00bf]){2,}"
)
_MARK = re.compile("<(?:image|audio|video)>")


def remarks_on(text: str) -> Iterator[Finding]:
    """What looks wrong in a text that can be used.

    Args:
        text: of a turn.

    Yields:
        One finding of a kind.
    """
    for kind, pattern in (
        ("mark_as_text", _MARK),
        ("replacement_character", re.compile("\ufffd")),
        ("mojibake", _MOJIBAKE),
        ("control_characters", _CONTROL),
    ):
        found = pattern.search(text)
        if found is not None:
            around = text[max(0, found.start() - 20) : found.end() + 20]
            yield Finding(kind, f"{around!r}")
