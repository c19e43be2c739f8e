"""5. The loop: micro-batches -> loss -> backward -> clip -> step, and one record per step out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from cornstarch.data.batches import StepBatch
from cornstarch.errors import ArgumentError, TrainingError
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX
from cornstarch.training import health
from cornstarch.training.random_state import random_state, set_random_state
from cornstarch.training.schedules import Decay, constant, share_at

Batch = Mapping[str, Tensor]
# (model, batch, output) -> a scalar that is added to the loss. `output.logits` are there.
LossTerm = Callable[[nn.Module, Batch, Any], Tensor]
# (batch, output) -> a number that is logged. `output.logits` are there.
Metric = Callable[[Batch, Any], float]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in one step.

    Attributes:
        step: from 1.
        loss: the mean over the step's labelled tokens, and loss terms, before the step.
        tokens: positions that are no padding.
        labelled_tokens: those that carry loss.
        samples: of the step.
        seconds: from the batch's request to the end of the step.
        learning_rates: the highest of every part that trains.
        grad_norm: length of the gradient before clipping.
        grad_norms: the same of every part that trains.
        metrics: of loss terms and metrics, by name; means over the micro-batches, weighted as their losses are.
    """

    step: int
    loss: float
    tokens: int
    labelled_tokens: int
    samples: int
    seconds: float
    learning_rates: dict[str, float]
    grad_norm: float
    grad_norms: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)


class Callback:
    """What can be done at the moments of a run. Methods that are not overridden do nothing."""

    def on_start(self, loop: "Loop") -> None:
        """Before the first step."""

    def on_gradients(self, loop: "Loop") -> None:
        """The step's gradients are complete; clipping and the optimizer come next."""

    def on_step(self, loop: "Loop", record: StepRecord) -> None:
        """After a step; `loop.step` is its number."""

    def on_evaluation(self, loop: "Loop", figures: Mapping[str, float]) -> None:
        """The model was checked at `loop.step`."""

    def on_end(self, loop: "Loop") -> None:
        """After the last step, also where the run was stopped; not after an error."""


class Batches(Protocol):
    """Steps without end, that know where they stand."""

    def __next__(self) -> StepBatch:
        """The next step's micro-batches."""

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another one stood."""


class Loop:
    """Trains what the optimizer holds.

    The loss of a step is the mean over all its labelled tokens, whatever micro-batches they are in: each micro-batch's
    own mean is weighted with its share of them. So the number of micro-batches changes nothing, and what language
    models add to their loss (routers of experts) is averaged, too.

    Args:
        model: called with a micro-batch, returns something with a `loss`.
        optimizer: its groups may have `part` (a name), `peak` (the highest learning rate) and `warmup`.
        batches: as `cornstarch.data.Batches`.
        steps: of the whole run.
        schedule: share of the highest learning rate after the warm-up.
        max_grad_norm: longer gradients are shortened to this length; None does not.
        precision: `float32`, or `bfloat16` for matrix products in it (autocast).
        loss_terms: name to a function of model, batch and output, whose value is added to the loss.
        metrics: name to a function of batch and output, whose value is logged.
        callbacks: called at the moments that `Callback` has, in this order.

    Raises:
        ArgumentError: for a number of steps below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
        *,
        steps: int,
        schedule: Decay | None = None,
        max_grad_norm: float | None = 1.0,
        precision: str = "float32",
        loss_terms: Mapping[str, LossTerm] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if steps < 1:
            raise ArgumentError(f"a run has at least one step, found {steps}")
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.steps = steps
        self.step = 0
        self.schedule = schedule or constant()
        self.max_grad_norm = max_grad_norm
        self.precision = precision
        self.loss_terms, self.metrics = dict(loss_terms or {}), dict(metrics or {})
        self.callbacks = list(callbacks)
        self.stop_reason: str | None = None
        for group in optimizer.param_groups:
            group.setdefault("part", "model")
            group.setdefault("peak", group["lr"])
            group.setdefault("warmup", 0.0)

    # --- a run --------------------------------------------------------------------------------------------------------

    def run(self) -> str | None:
        """Take the steps that are left.

        Returns:
            None, or the reason for which the run was stopped before the last step.

        Raises:
            TrainingError: if a loss or gradient is not finite; weights and optimizer are those before the step.
        """
        self.model.train()
        self._tell("on_start")
        while self.step < self.steps and self.stop_reason is None:
            self._tell("on_step", self.take_step())
        self._tell("on_end")
        return self.stop_reason

    def stop(self, reason: str) -> None:
        """End the run after the step that is being taken.

        Args:
            reason: for whoever called `run`.
        """
        self.stop_reason = reason

    def tell_evaluation(self, figures: Mapping[str, float]) -> None:
        """Tell the callbacks that the model was checked."""
        self._tell("on_evaluation", figures)

    def _tell(self, moment: str, *what: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, moment)(self, *what)

    # --- a step -------------------------------------------------------------------------------------------------------

    def take_step(self) -> StepRecord:
        """Take one optimizer step.

        Returns:
            What happened.

        Raises:
            TrainingError: if no token is labelled, no gradient arises, or something is not finite.
        """
        started, before = time.perf_counter(), self.batches.state_dict()
        batch = next(self.batches)
        try:
            return self._take(batch, started)
        except TrainingError:
            self.batches.load_state_dict(before)  # the step can be taken again
            raise

    def _take(self, batch: StepBatch, started: float) -> StepRecord:
        step = self.step + 1
        labelled = [labelled_tokens(micro) for micro in batch.micro_batches]
        if not sum(labelled):
            raise TrainingError(
                f"step {step}: none of its {batch.samples} samples has a labelled token, so there is no loss: "
                f"{_listed(batch.names)}"
            )
        rates = self._set_learning_rates(step)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Any] = {}
        for micro, count in zip(batch.micro_batches, labelled, strict=True):
            if count:  # without labels there is nothing to average, and nothing to learn
                self._accumulate(self._placed(micro), count / sum(labelled), values)
        parts, norms = self._grad_norms(step)
        self._tell("on_gradients")
        # The numbers are fetched from the device here, once everything is under way there.
        figures = {name: float(value) for name, value in values.items()}
        lengths = [float(length) for length in norms.tolist()]
        self._refuse_non_finite(step, batch, figures["loss"], dict(zip(parts, lengths, strict=True)))
        if self.max_grad_norm is not None:
            clip_grads_with_norm_(self._trained(), self.max_grad_norm, norms.norm())
        self.optimizer.step()
        self.step = step
        return StepRecord(
            step=step,
            loss=figures.pop("loss"),
            tokens=sum(real_tokens(micro) for micro in batch.micro_batches),
            labelled_tokens=sum(labelled),
            samples=batch.samples,
            seconds=time.perf_counter() - started,
            learning_rates=rates,
            grad_norm=math.hypot(*lengths),
            grad_norms=dict(zip(parts, lengths, strict=True)),
            metrics=figures,
        )

    def _accumulate(self, micro: dict[str, Tensor], share: float, values: dict[str, Any]) -> None:
        """Forward and backward of one micro-batch, whose loss counts for a share of the step's."""
        wants_logits = {"output_logits": True} if self.loss_terms or self.metrics else {}
        with self.autocast():
            output = self.model(**micro, **wants_logits)
            loss = output.loss
            for name, term in self.loss_terms.items():
                value = term(self.model, micro, output)
                loss = loss + value
                values[f"loss/{name}"] = values.get(f"loss/{name}", 0) + value.detach() * share
        with torch.no_grad():
            for name, metric in self.metrics.items():
                values[name] = values.get(name, 0) + metric(micro, output) * share
        values["loss"] = values.get("loss", 0) + loss.detach() * share
        if loss.requires_grad:  # a micro-batch of text has no gradient for anybody where only encoders train
            (loss * share).backward()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of matrix products."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=getattr(torch, self.precision))

    def _set_learning_rates(self, step: int) -> dict[str, float]:
        """Set every group's rate, and return the highest of every part."""
        rates: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            rate = group["peak"] * share_at(step, self.steps, group["warmup"], self.schedule)
            if isinstance(group["lr"], Tensor):  # capturable optimizers
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            rates[group["part"]] = max(rate, rates.get(group["part"], 0.0))
        return rates

    def _grad_norms(self, step: int) -> tuple[list[str], Tensor]:
        """Names of the parts that have gradients, and the length of the gradient of each."""
        gradients: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            found = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            gradients.setdefault(group["part"], []).extend(found)
        gradients = {part: found for part, found in gradients.items() if found}
        if not gradients:
            raise TrainingError(f"step {step}: nothing that trains had any part in the loss, so it cannot fall")
        lengths = [torch.stack(torch._foreach_norm(found)).norm() for found in gradients.values()]
        return list(gradients), torch.stack([length.to(lengths[0]) for length in lengths])

    def _refuse_non_finite(self, step: int, batch: StepBatch, loss: float, norms: Mapping[str, float]) -> None:
        if math.isfinite(loss) and all(map(math.isfinite, norms.values())):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        with self.autocast():
            where = health.explain(self.model, [self._placed(micro) for micro in batch.micro_batches])
        self.optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"{what} at step {step}: {where}. The step was not taken. Look at its samples ({_listed(batch.names)}), or "
            "lower the learning rate"
        )

    def _trained(self) -> Iterator[nn.Parameter]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])

    def _placed(self, micro: Batch) -> dict[str, Tensor]:
        device = self._device
        return {name: value.to(device, non_blocking=True) for name, value in micro.items()}

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes, but for the model's weights: step, optimizer, batches, random numbers."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "random": random_state(self._device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loop, made in the same way, stood; the model's weights must be that one's.

        Args:
            state: of `state_dict`.
        """
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        set_random_state(state["random"], self._device)


def labelled_tokens(batch: Batch) -> int:
    """How many labels of a batch carry loss; the first position of a sequence has nothing before it to predict it."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def real_tokens(batch: Batch) -> int:
    """How many positions of a batch are no padding."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["labels"].numel()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "")
