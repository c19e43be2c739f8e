"""6. Checking a model: the loss per labelled token, and how many generated answers are exactly right."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cornstarch.data import Collator, Sample
from cornstarch.data.collation import labelled_batch
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import MultimodalModel, freezing
from cornstarch.training.config import EvaluationConfig
from cornstarch.training.loop import Batch, labelled_tokens

# (samples, generated answers) -> a number that is logged.
AnswerMetric = Callable[[Sequence[Sample], Sequence[str]], float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a check came to.

    Attributes:
        figures: `eval_loss`; with generation `eval_exact_match`, and `eval_{name}` of metrics of the caller's own.
        answers: the generated text of every sample; empty without generation.
    """

    figures: dict[str, float]
    answers: list[str]


def evaluate(
    model: MultimodalModel,
    collator: Collator,
    samples: Sequence[Sample],
    config: EvaluationConfig | None = None,
    metrics: Mapping[str, AnswerMetric] | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> Evaluation:
    """Check a model on samples; it is in the mode it was in afterwards.

    Args:
        model: on its device.
        collator: of its processor.
        samples: at least one.
        config: sizes, and whether to generate.
        metrics: name to a function of samples and answers.
        autocast: the precision to compute in; the weights' own if not given.

    Returns:
        Figures and answers.

    Raises:
        ArgumentError: if there is no sample, or no labelled token.
    """
    config = config or EvaluationConfig()
    if not samples:
        raise ArgumentError("there is nothing to check the model on: the source has no samples")
    with in_evaluation_mode(model), autocast or nullcontext():
        figures = {"eval_loss": _loss(model, _labelled_batches(collator, samples, config.batch_size))}
        answers: list[str] = []
        if config.generate:
            answers = answer(model, collator, samples, config)
            figures["eval_exact_match"] = exact_match(samples, answers)
            for name, metric in (metrics or {}).items():
                figures[f"eval_{name}"] = float(metric(samples, answers))
    return Evaluation(figures=figures, answers=answers)


def answer(
    model: MultimodalModel, collator: Collator, samples: Sequence[Sample], config: EvaluationConfig, **options: Any
) -> list[str]:
    """Generate the assistant's last turn of every sample, greedily unless options say else.

    Args:
        model: on its device.
        collator: of its processor.
        samples: conversations; their last turn, if it is the assistant's, is not shown.
        config: batch size and longest answer.
        **options: for `generate`.

    Returns:
        The text of each answer, without the token that ends it and white space around it.
    """
    tokenizer = collator.processor.llm_tokenizer
    options = {"do_sample": False, "max_new_tokens": config.max_new_tokens, **end_of_turn(model, collator), **options}
    texts: list[str] = []
    with in_evaluation_mode(model):
        for chunk in chunks(samples, config.batch_size):
            batch = collator.prompts(chunk).to(model.device)
            generated = model.generate(**batch, **options)
            new = generated[:, batch["input_ids"].shape[1] :]
            texts.extend(text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True))
    return texts


def end_of_turn(model: MultimodalModel, collator: Collator) -> dict[str, Any]:
    """Arguments of `generate` that end an answer: what ends a turn in the chat template, and what ends one anyway."""
    known = getattr(model.generation_config, "eos_token_id", None)
    ends = set(known if isinstance(known, list) else [] if known is None else [known])
    end = collator.end_of_turn
    if end is not None:
        ends.add(end)
    padding = collator.processor.llm_tokenizer.pad_token_id
    return {"eos_token_id": sorted(ends) or None, "pad_token_id": padding}


def exact_match(samples: Sequence[Sample], answers: Sequence[str]) -> float:
    """Share of the answers that are exactly the samples', but for white space around them."""
    return sum(is_right(sample, text) for sample, text in zip(samples, answers, strict=True)) / len(samples)


def is_right(sample: Sample, answer: str) -> bool:
    """Whether an answer is exactly the sample's, but for white space around it."""
    return answer == sample.answer.strip()


def chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """Samples in pieces of a size."""
    return (samples[start : start + size] for start in range(0, len(samples), size))


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; the mode is put back afterwards."""
    with freezing.evaluating(model), torch.no_grad():
        yield


def _labelled_batches(collator: Collator, samples: Sequence[Sample], size: int) -> Iterator[Batch]:
    """Batches without the samples that no label is left in, which have no part in the loss."""
    for chunk in chunks(samples, size):
        batch, _ = labelled_batch(collator, chunk)
        if batch is not None:
            yield batch


def _loss(model: MultimodalModel, batches: Iterator[Batch]) -> float:
    """The loss per labelled token over all batches."""
    total, count = 0.0, 0
    for batch in batches:
        labelled = labelled_tokens(batch, model.modality_token_ids.values())
        if labelled:
            placed = {name: value.to(model.device) for name, value in batch.items()}
            total += float(model(**placed, use_cache=False).loss) * labelled
            count += labelled
    if not count:
        raise ArgumentError("there is no loss: no sample has a labelled token, an answer of the assistant's")
    return total / count
