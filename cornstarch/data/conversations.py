"""2. A conversation -> the text the model reads, and which characters of it the assistant says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from cornstarch.data.samples import Message, Sample, text_of
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

# Templates for tokenizers that have none. Jinja as in Hugging Face, with `first_token` for what their text starts with.
TEMPLATES = {
    "plain": (
        "{{ first_token }}{% for message in messages %}{{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    ),
    "vicuna": (
        "{{ first_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
DEFAULT_TEMPLATE = "plain"


class Rendered(NamedTuple):
    """What a conversation reads like.

    Attributes:
        text: with a mark for every medium.
        spans: (start, end) of the characters of every turn of the assistant, with the token that ends it.
    """

    text: str
    spans: list[tuple[int, int]]


def set_template(tokenizer: Any, template: str | None = None) -> None:
    """Give a tokenizer a chat template.

    Args:
        tokenizer: changed in place.
        template: a name in `TEMPLATES`, or a file with a Jinja template. None keeps the tokenizer's own, and gives one
            that has none `plain`: turns one after the other, a line break after what is asked, the end token after
            what is answered.

    Raises:
        ArgumentError: if there is no such template or file.
    """
    if template is None:
        if tokenizer.chat_template is not None:
            return
        template = DEFAULT_TEMPLATE
    if template in TEMPLATES:
        ids = tokenizer("a")["input_ids"]
        starts = bool(ids) and ids[0] == tokenizer.bos_token_id
        first = tokenizer.bos_token if starts else ""
        tokenizer.chat_template = TEMPLATES[template].replace("{{ first_token }}", first)
        return
    try:
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"the template {template!r} is none of {', '.join(TEMPLATES)}, and no file that can be read: {error}"
        ) from error


def render(
    processor: MultimodalProcessor, sample: Sample, *, turns: Literal["all", "last"] = "all", generate: bool = False
) -> Rendered:
    """Write a conversation with the tokenizer's chat template.

    What the assistant says is found by rendering the conversation up to each of its turns and with it, and comparing:
    the text before a turn must be the beginning of the text with it, and that of the whole.

    Args:
        processor: its tokenizer has the template.
        sample: the conversation.
        turns: which of the assistant's turns to find.
        generate: end where the assistant's next turn begins.

    Returns:
        Text and spans.

    Raises:
        ArgumentError: if the template fails, or a text part holds a modality's mark; also if the template changes
            earlier turns when later ones follow, so that nobody can tell what the assistant said.
    """
    for message in sample.messages:
        for token in (*processor.tokens.values(), *processor.feature_tokens.values()):
            if token in text_of(message):
                raise ArgumentError(
                    f"{sample.name}: the text holds {token!r}, which stands for an input in text: take it out, or "
                    "choose another mark (predefined_tokens)"
                )
    text = _render(processor, sample, len(sample.messages), generate)
    said = [number for number, message in enumerate(sample.messages) if message["role"] == "assistant"]
    return Rendered(text, [_span(processor, sample, turn, text) for turn in (said[-1:] if turns == "last" else said)])


def _span(processor: MultimodalProcessor, sample: Sample, turn: int, text: str) -> tuple[int, int]:
    """The characters of one turn of the assistant in the whole text."""
    before = _render(processor, sample, turn, generate=True)
    after = _render(processor, sample, turn + 1, generate=False).rstrip()
    if not text.startswith(after) or not after.startswith(before):
        raise ArgumentError(
            f"{sample.name}: the tokenizer's chat template writes turn {turn} differently when other turns follow it, "
            "so what the assistant said cannot be told; use another template (data.template), or train on the last "
            "turn only (data.turns)"
        )
    return len(before), len(after)


def _render(processor: MultimodalProcessor, sample: Sample, turns: int, generate: bool) -> str:
    messages: Sequence[Message] = [_plain(message) for message in sample.messages[:turns]]
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=generate))
    except (TemplateError, ValueError, IndexError) as error:
        raise ArgumentError(
            f"{sample.name}: the tokenizer's chat template refuses turn {turns - 1}: {error}"
        ) from error


def _plain(message: Message) -> Message:
    """A message without its media, whose places stay."""
    if isinstance(message["content"], str):
        return message
    parts = [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]]
    return {**message, "content": parts}
