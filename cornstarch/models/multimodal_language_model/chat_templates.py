"""1e. Chat templates that take content in parts: which do, and how to make one that does of one that does not."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from cornstarch.errors import ArgumentError

Form = Literal["parts", "parts or text"]

_ANSWER = "\ue000"  # stands in no template
# Turns typed content into a string, as `MultimodalProcessor.apply_chat_template` does, and writes nothing itself. What
# follows begins behind an expression, since Jinja would take a line break behind a statement for the statement's.
_PREAMBLE = """\
{%- set written = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['content'] is iterable and message['content'] is not string -%}
    {%- set content = namespace(text='') -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'text' -%}
        {%- set content.text = content.text + part['text'] -%}
      {%- elif part['type'] in TYPES -%}
        {%- set content.text = content.text + MARK -%}
      {%- else -%}
        {{- raise_exception('content of type ' ~ part['type'] ~ ': known types are text, ' ~ TYPES | join(', ')) -}}
      {%- endif -%}
    {%- endfor -%}
    {%- set written.messages = written.messages + [dict(message, content=content.text)] -%}
  {%- else -%}
    {%- set written.messages = written.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = written.messages -%}
{{- '' }}"""


def with_typed_content(template: Any, mark: str, types: Sequence[str]) -> Any:
    """A chat template that takes content in parts, around one that may take strings only.

    Args:
        template: of a tokenizer: Jinja, templates by name, or None.
        mark: what to write for an input.
        types: the types of parts that mean one.

    Returns:
        The same, each template with what turns typed content into strings before it.
    """
    if template is None:
        return None
    if isinstance(template, dict):
        return {name: with_typed_content(entry, mark, types) for name, entry in template.items()}
    preamble = _PREAMBLE.replace("TYPES", _literal(list(types))).replace("MARK", _literal(mark))
    return preamble + str(template)


def _literal(value: Any) -> str:
    """A value as Jinja reads it; JSON's strings and lists are Jinja's too."""
    return json.dumps(value, ensure_ascii=False)


def closing_of(rest: str, tokens: Iterable[str]) -> str:
    """What ends a turn, of all that a chat template writes after the text of a conversation's last turn.

    Args:
        rest: what it writes there.
        tokens: the tokens that a tokenizer finds in text as they are.

    Returns:
        Up to the first such token, with it, if there are only blanks before it: templates may go on with a line break,
        or a token that ends the whole text. Else everything but blanks at the end.
    """
    text = rest.lstrip()
    token = max((token for token in tokens if token.strip() and text.startswith(token)), key=len, default=None)
    return rest.rstrip() if token is None else rest[: len(rest) - len(text) + len(token)]


def end_of_turn(tokenizer: Any) -> int | None:
    """The id of the token with which a tokenizer's chat template ends what the assistant says.

    Args:
        tokenizer: with or without a template.

    Returns:
        The id; None if there is no template, or no such token, or the template refuses a plain exchange.
    """
    if tokenizer.chat_template is None:
        return None
    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        exchange = [{"role": "user", "content": content("a")}, {"role": "assistant", "content": content(_ANSWER)}]
        try:
            text = str(tokenizer.apply_chat_template(exchange, tokenize=False))
        except Exception:  # templates refuse in ways of their own
            continue
        if _ANSWER in text:
            return ids.get(closing_of(text.rpartition(_ANSWER)[2], ids).lstrip())
    return None


def form_of(tokenizer: Any, template: Any, marks: Mapping[str, str]) -> Form | None:
    """Which content a chat template takes, found by what it writes.

    Args:
        tokenizer: whose template it is.
        template: another one to use, or its name; None is the tokenizer's own.
        marks: type of parts that mean an input, to the mark to be written for it.

    Returns:
        `"parts"` if it writes the mark of each type and the text of parts, `"parts or text"` if it writes strings too;
        None if it does not take parts.
    """
    try:
        found = tokenizer.get_chat_template(template)
    except ValueError:  # whoever renders says what is wrong
        return None
    return _form(_Hashed(tokenizer), found, tuple(marks.items()))


class _Hashed:
    """A tokenizer as one of the arguments by which results are remembered: templates write its special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._words = tuple(sorted((name, str(word)) for name, word in tokenizer.special_tokens_map.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)


@functools.lru_cache(maxsize=64)
def _form(hashed: _Hashed, template: str, marks: tuple[tuple[str, str], ...]) -> Form | None:
    word = "content"

    def written(content: Any) -> str:
        try:
            asked = [{"role": "user", "content": content}]
            return str(hashed.tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False))
        except Exception:  # templates refuse in ways of their own
            return ""

    for kind, mark in marks:
        found = written([{"type": kind}, {"type": "text", "text": f"{word}1"}, {"type": "text", "text": f"{word}2"}])
        places = [found.find(f"{word}1"), found.find(f"{word}2")]
        if found.count(mark) != 1 or -1 in places or "{" in found[places[0] : places[1]]:
            return None
    return "parts or text" if f"{word}3" in written(f"{word}3") else "parts"


def typed(entry: Any, kinds: Mapping[str, str], form: Form) -> Any:
    """A message, or a conversation of them, as a template that takes parts has it.

    Args:
        entry: content is a string or a list of parts.
        kinds: type of a part to the type that the template knows.
        form: what the template takes.

    Returns:
        The same with the template's types, and with strings as parts if it takes no others.

    Raises:
        ArgumentError: for a part whose type names no modality.
    """
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        return [typed(message, kinds, form) for message in entry]
    if not isinstance(entry, Mapping) or entry.get("content") is None:
        return entry
    content = entry["content"]
    if isinstance(content, str):
        return {**entry, "content": [{"type": "text", "text": content}]} if form == "parts" else entry
    parts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise ArgumentError(
                f"content is a list of parts such as {{'type': 'text', 'text': ...}}, found {type(part).__name__} in it"
            )
        kind = part.get("type")
        if kind == "text":
            parts.append(part)
        elif isinstance(kind, str) and kind in kinds:
            parts.append({**part, "type": kinds[kind]})
        else:
            raise ArgumentError(f"content of type {kind!r}: known types are text, {', '.join(kinds)}")
    return {**entry, "content": parts}


def with_marks(entry: Any, marks: Mapping[str, str]) -> Any:
    """A message, or a conversation of them, as a template that takes strings only has it.

    Args:
        entry: content is a string or a list of parts.
        marks: type of a part to what is written for it.

    Returns:
        The same with parts as one string.

    Raises:
        ArgumentError: for a part whose type names no modality.
    """
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        return [with_marks(message, marks) for message in entry]
    if not isinstance(entry, Mapping) or isinstance(entry.get("content"), str | None):
        return entry
    written = []
    for part in entry["content"]:
        if not isinstance(part, Mapping):
            raise ArgumentError(
                f"content is a list of parts such as {{'type': 'text', 'text': ...}}, found {type(part).__name__} in it"
            )
        if part.get("type") == "text":
            if not isinstance(part.get("text"), str):
                raise ArgumentError(f"a part of type 'text' needs its `text`, a string; found {sorted(part)}")
            written.append(part["text"])
        elif part.get("type") in marks:
            written.append(marks[part["type"]])
        else:
            raise ArgumentError(f"content of type {part.get('type')!r}: known types are text, {', '.join(marks)}")
    return {**entry, "content": "".join(written)}
