"""2a. Where the assistant's turns are in a written conversation: found by writing it again with a turn exchanged."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from cornstarch.data.samples import Message, Sample, text_of
from cornstarch.errors import SampleError
from cornstarch.models.multimodal_language_model.chat_templates import closing_of
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

Span = tuple[int, int]


class Chat:
    """A conversation and the chat template that writes it.

    What a text holds of the tokenizer's special tokens is put in brackets while the template writes, so that the
    template's own can be told from it. Positions are of the text with these brackets, until `without_brackets`.

    Args:
        processor: its tokenizer has the template.
        sample: the conversation.
        template: what messages call the template.
    """

    def __init__(self, processor: MultimodalProcessor, sample: Sample, template: str) -> None:
        self._processor, self._template, self.name = processor, template, sample.name
        added = processor.llm_tokenizer.added_tokens_decoder.values()
        self._added = [token.content for token in added]
        special = [token.content for token in added if token.special]
        looks_special = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
        texts = "".join(text_of(message) for message in sample.messages)
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in texts)
        self._open, self._close, self._word = next(free), next(free), next(free)
        self._bracketed = re.compile(f"{self._open}(.*?){self._close}", re.DOTALL)

        def guarded(text: str) -> str:
            return looks_special.sub(f"{self._open}\\g<0>{self._close}", text) if special else text

        self._messages = [_written(message, guarded) for message in sample.messages]
        self._said = [number for number, message in enumerate(self._messages) if message["role"] == "assistant"]
        self.whole = self._render(self._messages)

    def spans(self, last: bool) -> list[Span]:
        """The characters of the assistant's turns in `whole`, each with the token that ends it.

        Args:
            last: of the last turn only.

        Returns:
            (start, end) for each.

        Raises:
            SampleError: if the template does not say where a turn is; the message names template and turn.
        """
        said = self._said[-1:] if last else self._said
        try:
            return [self._span(turn) for turn in said]
        except SampleError:
            again = self._render(self._messages)
            if again == self.whole:
                raise
            self.whole = again  # the template writes the date, and midnight came
            return [self._span(turn) for turn in said]

    def prompt(self) -> str:
        """The conversation up to where the assistant's next turn begins."""
        before, _ = self._around([*self._messages, {"role": "assistant", "content": self._word}])
        return before[: self._begin(before, len(self._messages))]

    def without_brackets(self, text: str) -> tuple[str, list[Span]]:
        """A text as the tokenizer gets it, and which characters of it only look like special tokens."""
        brackets = re.compile(f"[{self._open}{self._close}]")
        plain = [(self.place(text, m.start(1)), self.place(text, m.end(1))) for m in self._bracketed.finditer(text)]
        return brackets.sub("", text), plain

    def place(self, text: str, place: int) -> int:
        """Where a place in a text with brackets is without them."""
        return place - text.count(self._open, 0, place) - text.count(self._close, 0, place)

    def _span(self, turn: int) -> Span:
        """Of one turn in the whole text.

        The turn's text is exchanged for one that stands nowhere else. What comes before and after it in the result
        must come before and after the turn's text in the whole.
        """
        before, after = self._around(self._exchanged(turn, self._messages))
        _, rest = self._around(self._exchanged(turn, self._messages[: turn + 1]))
        closing = closing_of(rest, self._added)
        end = len(self.whole) - len(after)
        fits = len(before) <= end and self.whole.startswith(before) and self.whole.endswith(after)
        if fits and self.whole[len(before) : end].strip() == self._text(turn).strip():
            if not after.startswith(closing):
                raise self._unknown(turn, "ends")
            return self._begin(before, turn), end + len(closing)
        return self._span_by_prompt(turn, rest, closing)

    def _span_by_prompt(self, turn: int, rest: str, closing: str) -> Span:
        """Of a turn whose text the template changes: what follows the prompt to generate it, up to what ends it.

        That holds if the whole text begins as the conversation up to this turn does, and that as its prompt does.
        """
        earlier = self._messages[:turn]
        prompt, bare = self._render(earlier, generate=True), self._render(earlier)
        upto = self._render(self._messages[: turn + 1])
        upto = upto.removesuffix(rest) + closing if upto.endswith(rest) else ""
        if prompt == bare or not upto.startswith(prompt) or not self.whole.startswith(upto):
            raise self._unknown(turn, "writes")
        return len(prompt), len(upto)

    def _begin(self, before: str, turn: int) -> int:
        """Where the assistant takes over in what comes before its text.

        Blanks that the template has there but not in a prompt to generate are the assistant's to write.
        """
        if not before[-1:].isspace():
            return len(before)
        prompt = self._render(self._messages[:turn], generate=True)
        if before.startswith(prompt) and not before[len(prompt) :].strip():
            return len(prompt)
        return len(before.rstrip(" "))

    def _exchanged(self, turn: int, messages: Sequence[Message]) -> list[Message]:
        return [{**m, "content": self._word} if number == turn else m for number, m in enumerate(messages)]

    def _around(self, messages: Sequence[Message]) -> tuple[str, str]:
        """What a template writes before and after the turn whose text was exchanged, the last such."""
        before, word, after = self._render(messages).partition(self._word)
        if not word or self._word in after:
            turn = next(number for number, message in enumerate(messages) if message["content"] == self._word)
            raise self._unknown(turn, "leaves out or repeats")
        return before, after

    def _text(self, turn: int) -> str:
        """A turn's text with marks for its media."""
        content = "{{ messages[0]['content'] }}"
        return str(self._processor.apply_chat_template([self._messages[turn]], chat_template=content))

    def _render(self, messages: Sequence[Message], generate: bool = False) -> str:
        if not messages:
            return ""
        try:
            return str(self._processor.apply_chat_template(messages, add_generation_prompt=generate))
        except (TemplateError, ValueError, IndexError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise SampleError(
                f"{self.name}: {self._template} refuses a conversation of {roles}: {error}", self.name
            ) from error

    def _unknown(self, turn: int, does: str) -> SampleError:
        return SampleError(
            f"{self.name}: {self._template} {does} turn {turn} differently when other turns follow it or its text is "
            "another, so what the assistant said cannot be told; use another template (data.template), or train on the "
            "last turn only (data.turns)",
            self.name,
        )


def _written(message: Message, guarded: Any) -> Message:
    """A message without its media, whose places stay, and with guarded text."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": guarded(content)}
    return {**message, "content": [_part(part, guarded) for part in content]}


def _part(part: Mapping[str, Any], guarded: Any) -> Mapping[str, Any]:
    if part["type"] != "text":
        return {"type": part["type"]}
    return {**part, "text": guarded(part["text"])}
