"""2. A conversation -> the text the model reads, and which characters of it the assistant says."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from cornstarch.data.samples import Sample, text_of
from cornstarch.data.turns import Chat
from cornstarch.errors import ArgumentError, SampleError
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

_VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# What Vicuna was trained with (FastChat's conversation template), and LLaVA-1.5 after it.
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. "
)
# Templates for tokenizers that have none. Jinja as in Hugging Face, with `first_token` for what their text starts with.
TEMPLATES = {
    "plain": (
        "{{ first_token }}{% for message in messages %}{{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    ),
    "vicuna": "{{ first_token }}" + _VICUNA,
    "vicuna_v1": (
        "{{ first_token }}{% if messages[0]['role'] != 'system' %}{{ '" + _VICUNA_SYSTEM + "' }}{% endif %}" + _VICUNA
    ),
}
DEFAULT_TEMPLATE = "plain"


class Rendered(NamedTuple):
    """What a conversation reads like.

    Attributes:
        text: with a mark for every medium.
        spans: (start, end) of the characters of every turn of the assistant, with the token that ends it.
        plain: (start, end) of what looks like special tokens but was said by somebody, so that it is text.
    """

    text: str
    spans: list[tuple[int, int]]
    plain: list[tuple[int, int]]


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

    Where the assistant's turns are is found by writing the conversation again with a turn's text exchanged: what comes
    before and after it then must come before and after the turn's text here. A turn is its text and the token that
    ends it, and blanks before the text that a prompt to generate does not have. Where a template changes a turn's text
    (thoughts that it takes apart), the turn is all that follows the prompt to generate it.

    Args:
        processor: its tokenizer has the template.
        sample: the conversation.
        turns: which of the assistant's turns to find.
        generate: end where the assistant's last turn begins or, if the conversation does not end with one, its next.

    Returns:
        Text and spans; no spans of turns with `generate`.

    Raises:
        SampleError: if the template fails, or a text part holds a modality's mark; also if the template changes
            earlier turns when later ones follow, so that nobody can tell what the assistant said.
    """
    for message in sample.messages:
        for token in (*processor.tokens.values(), *processor.feature_tokens.values()):
            if token in text_of(message):
                raise SampleError(
                    f"{sample.name}: the text holds {token!r}, which stands for an input in text: take it out, or "
                    "choose another mark (predefined_tokens)",
                    sample.name,
                )
    chat = Chat(processor, sample, _name_of_template(processor.llm_tokenizer))
    answered = sample.messages[-1:] and sample.messages[-1]["role"] == "assistant"
    if generate and not answered:
        text, spans = chat.prompt(), []
    else:
        spans = chat.spans(last=generate or turns == "last")
        text = chat.whole
    if generate and answered:
        text, spans = text[: spans[0][0]], []
    shown, plain = chat.without_brackets(text)
    return Rendered(shown, [(chat.place(text, start), chat.place(text, end)) for start, end in spans], plain)


def _name_of_template(tokenizer: Any) -> str:
    """What messages call a tokenizer's chat template."""
    template = tokenizer.chat_template
    for name, known in TEMPLATES.items():
        if template in (known.replace("{{ first_token }}", first) for first in (tokenizer.bos_token or "", "")):
            return f"the chat template {name!r}"
    begin = f" ({template[:40]!r}...)" if isinstance(template, str) else ""
    return f"the chat template of the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r}{begin}"
