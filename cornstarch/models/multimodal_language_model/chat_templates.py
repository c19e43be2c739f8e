"""1e. Chat templates that take typed content, for processors that know nothing of marks but what a template writes."""

import json
from collections.abc import Sequence
from typing import Any

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


def end_of_turn(tokenizer: Any) -> int | None:
    """The id of the special token with which a tokenizer's chat template ends what the assistant says.

    Args:
        tokenizer: with or without a template.

    Returns:
        The id; None if there is no template, or no such token, or the template refuses a plain exchange.
    """
    if tokenizer.chat_template is None:
        return None
    asked = [{"role": "user", "content": "a"}]
    try:
        text = str(tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "b"}], tokenize=False))
    except Exception:  # templates refuse in ways of their own
        return None
    ids = tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
    return int(ids[-1]) if ids and ids[-1] in tokenizer.all_special_ids else None
