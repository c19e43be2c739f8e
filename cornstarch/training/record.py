"""5c. What happened in a step, for whoever writes, shows or plots it."""

from dataclasses import dataclass, field

from cornstarch.data.steps import BadSample
from cornstarch.training.step_flops import Work

# What a line of metrics has anyway.
RESERVED = (
    *("step", "loss", "tokens", "tokens_per_second", "labelled_tokens", "samples", "grad_norm", "skipped"),
    *("bad_samples", "flops", "flops_per_second", "mfu"),
)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in one step.

    Attributes:
        step: from 1.
        loss: the mean over the step's labelled tokens, and loss terms, before the step.
        tokens: positions that are no padding.
        labelled_tokens: those that carry loss.
        samples: of the step.
        skipped: batches before it from which there was nothing to learn.
        bad: samples of the step, and of the batches before it, that could not be used.
        unlabelled: names of those in which no token is labelled.
        seconds: from the batch's request to the end of the step.
        learning_rates: the highest of every part that trains.
        grad_norm: length of the gradient before clipping.
        grad_norms: the same of every part that trains.
        metrics: of loss terms and metrics, by name; means over the micro-batches, weighted as their losses are.
        work: floating-point operations of the forward and backward passes; None of a model without parts.
    """

    step: int
    loss: float
    tokens: int
    labelled_tokens: int
    samples: int
    skipped: int = 0
    bad: tuple[BadSample, ...] = ()
    unlabelled: tuple[str, ...] = ()
    seconds: float
    learning_rates: dict[str, float]
    grad_norm: float
    grad_norms: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)
    work: Work | None = None
