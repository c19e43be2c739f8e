"""3. Samples -> a batch the model takes, with labels on what the assistant says."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from transformers import BatchFeature

from cornstarch.data.conversations import Rendered, render
from cornstarch.data.samples import Sample
from cornstarch.errors import ArgumentError, UnlabelledError
from cornstarch.models.multimodal_language_model.chat_templates import end_of_turn
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX
from cornstarch.models.multimodal_language_model.processed import Processed
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor
from cornstarch.models.multimodal_language_model.remembering import remembered

_Arguments = tuple[dict[str, dict[str, Any]], dict[str, Any]]  # of the processor: its inputs, and its text


class Collator:
    """Makes batches of samples: `model(**collator(samples))` has a loss.

    Args:
        processor: of the model; its tokenizer must have a chat template (`cornstarch.data.set_template`).
        max_length: positions a sample may take; what is longer is cut at its end, never through an input's positions.
            One that has no label left is an `UnlabelledError`.
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
        self.most_positions = processor.most_positions

    def __call__(self, samples: Sequence[Sample]) -> BatchFeature:
        """A right-padded batch with `labels` on what the assistant says and the token that ends it.

        Args:
            samples: at least one.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, S), and the encoders' tensors.

        Raises:
            SampleError: if a conversation cannot be written as text; the message names the sample.
            UnlabelledError: if a sample has no labelled token, perhaps since it was cut.
            ArgumentError: if a sample has more positions than the language model has in its table.
            ModalityMismatchError: if marks and inputs do not pair.
            MediaError: if a medium cannot be read.
        """
        batch = self.processor(*self._arguments(samples, self.max_length), return_tensors="pt")
        self._check_lengths(samples, batch)
        # What stands first is predicted from nothing, so it is not learnt.
        learnt = (batch["labels"][:, 1:] != IGNORE_INDEX).any(dim=1).tolist()
        places = tuple(place for place, is_learnt in enumerate(learnt) if not is_learnt)
        if places:
            name = samples[places[0]].name
            raise UnlabelledError(self.without_label(name), name, places)
        return batch

    def _check_lengths(self, samples: Sequence[Sample], batch: BatchFeature) -> None:
        if self.most_positions is None or batch["input_ids"].shape[1] <= self.most_positions:
            return
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        place = lengths.index(max(lengths))
        raise ArgumentError(self.beyond_the_table(samples[place].name, lengths[place]))

    def beyond_the_table(self, name: str, length: int) -> str | None:
        """What is wrong with a sample of so many positions, in words; None if the language model has as many."""
        if self.most_positions is None or length <= self.most_positions:
            return None
        return (
            f"{name}: it has {length:,} positions, the language model has {self.most_positions:,} in its table; cut "
            "samples with max_length (data.max_length)"
        )

    def look_into(self, sample: Sample, *, cut: bool = True) -> Processed:
        """The batch of one sample and what became of each of its inputs; it need not have a label.

        Args:
            sample: the sample.
            cut: to `max_length`; otherwise in whole.

        Returns:
            The batch that calling this with the sample returns, and its inputs.

        Raises:
            SampleError: as when called, for all but a label.
            ModalityMismatchError: as when called.
            MediaError: as when called.
        """
        return self.processor.look_into(*self._arguments([sample], self.max_length if cut else None))

    def without_label(self, name: str) -> str:
        """What is wrong with a sample of which no token is labelled, in words."""
        cut = "" if self.max_length is None else f" within its first {self.max_length} positions"
        return (
            f"{name}: no labelled token{cut}: labels are on what the assistant says; does the conversation have an "
            "answer, and is max_length above what stands before it?"
        )

    def prompts(self, samples: Sequence[Sample]) -> BatchFeature:
        """A left-padded batch of conversations up to the assistant's last turn, to generate that.

        A prompt ends where the labels of that turn would begin, with all that the template writes before it.

        Args:
            samples: at least one; what a prompt holds is never cut.

        Returns:
            `input_ids`, `attention_mask` (B, S), and the encoders' tensors.

        Raises:
            SampleError: if a conversation cannot be written as text; the message names the sample.
            ModalityMismatchError: if marks and inputs do not pair.
            MediaError: if a medium cannot be read.
        """
        rendered = [render(self.processor, _up_to_answer(sample), generate=True) for sample in samples]
        options = {"padding": True, "padding_side": "left"}
        return self.processor(*self._inputs([s.prompt for s in samples], rendered, options), return_tensors="pt")

    @property
    def end_of_turn(self) -> int | None:
        """The id of the token with which the chat template ends the assistant's turns; None if it has none."""
        return end_of_turn(self.processor.llm_tokenizer)

    def _arguments(self, samples: Sequence[Sample], max_length: int | None) -> _Arguments:
        """The processor's, for samples with labels."""
        rendered = [render(self.processor, sample, turns=self.turns) for sample in samples]
        options: dict[str, Any] = {"padding": True, "padding_side": "right"}
        options["label_spans"] = [conversation.spans for conversation in rendered]
        if max_length is not None:
            options |= {"truncation": True, "max_length": max_length}
        return self._inputs(samples, rendered, options)

    def _inputs(self, samples: Sequence[Sample], rendered: Sequence[Rendered], options: dict[str, Any]) -> _Arguments:
        inputs: dict[str, dict[str, Any]] = {}
        for key, (argument, kinds) in self.processor.media_arguments.items():
            media = [[medium for kind, medium in sample.media if kind in kinds] for sample in samples]
            if any(media):
                inputs[key] = {argument: media}
                if _must_be_padded(self.processor.encoder_processors[key]):
                    inputs[key]["padding"] = True
        options["text"] = [conversation.text for conversation in rendered]
        if any(conversation.plain for conversation in rendered):
            options["plain_spans"] = [conversation.plain for conversation in rendered]
        # A template writes the special tokens itself.
        return inputs, {"add_special_tokens": False, **options}


class Collated(NamedTuple):
    """A sample by itself.

    Attributes:
        sample: the sample.
        batch: of it alone; None if no token of it is labelled.
    """

    sample: Sample
    batch: BatchFeature | None


def labelled_batch(
    collator: Callable[[Sequence[Sample]], BatchFeature], samples: Sequence[Sample]
) -> tuple[BatchFeature | None, list[Sample]]:
    """A batch of the samples in which a token is labelled.

    Args:
        collator: makes batches.
        samples: at least one.

    Returns:
        The batch, None if there is nothing left for it; and the samples that were left out.

    Raises:
        ArgumentError: if a sample cannot be used for another reason.
        MediaError: if a medium cannot be read.
    """
    try:
        return collator(samples), []
    except UnlabelledError as error:
        out = error.places
    left = [sample for place, sample in enumerate(samples) if place not in out]
    return (collator(left) if left else None), [samples[place] for place in out]


@remembered
def _must_be_padded(processor: Any) -> bool:
    """Whether it is a feature extractor that pads sounds to the longest only if it is told to."""
    padding = inspect.signature(processor).parameters.get("padding")
    return padding is not None and padding.default is False


def _up_to_answer(sample: Sample) -> Sample:
    """The conversation without what follows the assistant's last turn."""
    number = len(sample.prompt.messages)
    return replace(sample, messages=sample.messages[: number + 1])
