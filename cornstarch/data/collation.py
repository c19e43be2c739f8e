"""3. Samples -> a batch the model takes, with labels on what the assistant says."""

from collections.abc import Sequence
from typing import Any, Literal

from transformers import BatchFeature

from cornstarch.data.conversations import render
from cornstarch.data.samples import Sample
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor


class Collator:
    """Makes batches of samples: `model(**collator(samples))` has a loss.

    Args:
        processor: of the model; its tokenizer must have a chat template (`cornstarch.data.set_template`).
        max_length: positions a sample may take; what is longer is cut at its end, never through an input's positions.
        turns: which of the assistant's turns carry labels.

    Raises:
        ArgumentError: if the tokenizer has no chat template.
    """

    def __init__(
        self,
        processor: MultimodalProcessor,
        max_length: int | None = None,
        turns: Literal["all", "last"] = "all",
    ) -> None:
        if processor.llm_tokenizer.chat_template is None:
            raise ArgumentError("the tokenizer has no chat template: give it one with cornstarch.data.set_template")
        self.processor = processor
        self.max_length = max_length
        self.turns = turns

    def __call__(self, samples: Sequence[Sample]) -> BatchFeature:
        """A right-padded batch with `labels` on what the assistant says and the token that ends it.

        Args:
            samples: at least one.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, S), and the encoders' tensors.

        Raises:
            ArgumentError: if a conversation cannot be written as text; the message names the sample.
            ModalityMismatchError: if marks and inputs do not pair.
            MediaError: if a medium cannot be read.
        """
        rendered = [render(self.processor, sample, turns=self.turns) for sample in samples]
        options = {"padding": True, "padding_side": "right", "label_spans": [spans for _, spans in rendered]}
        if self.max_length is not None:
            options |= {"truncation": True, "max_length": self.max_length}
        return self._process(samples, [text for text, _ in rendered], options)

    def prompts(self, samples: Sequence[Sample]) -> BatchFeature:
        """A left-padded batch of conversations up to the assistant's last turn, to generate that.

        Args:
            samples: at least one; what a prompt holds is never cut.

        Returns:
            `input_ids`, `attention_mask` (B, S), and the encoders' tensors.

        Raises:
            ArgumentError: if a conversation cannot be written as text; the message names the sample.
            ModalityMismatchError: if marks and inputs do not pair.
            MediaError: if a medium cannot be read.
        """
        prompts = [sample.prompt for sample in samples]
        text = [render(self.processor, sample, generate=True).text for sample in prompts]
        return self._process(prompts, text, {"padding": True, "padding_side": "left"})

    @property
    def end_of_turn(self) -> int | None:
        """The id of the special token with which the chat template ends the assistant's turns; None if it has none."""
        messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
        text, spans = render(self.processor, Sample(messages=messages, name="a conversation"))
        tokenizer = self.processor.llm_tokenizer
        ids = tokenizer(text[: spans[-1][1]], add_special_tokens=False)["input_ids"]
        return int(ids[-1]) if ids[-1] in tokenizer.all_special_ids else None

    def _process(self, samples: Sequence[Sample], text: list[str], options: dict[str, Any]) -> BatchFeature:
        inputs: dict[str, dict[str, Any]] = {}
        for key, (argument, kinds) in self.processor.media_arguments.items():
            media = [[medium for kind, medium in sample.media if kind in kinds] for sample in samples]
            if any(media):
                inputs[key] = {argument: media}
        # A template writes the special tokens itself.
        return self.processor(inputs, {"text": text, "add_special_tokens": False, **options}, return_tensors="pt")
