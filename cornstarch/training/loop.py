"""5. The loop: micro-batches -> loss -> backward -> clip -> step, and one record per step out."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from cornstarch.data.steps import BadSample, StepBatch
from cornstarch.errors import ArgumentError, TrainingError
from cornstarch.models.multimodal_language_model.composition import Composition
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX
from cornstarch.training import health
from cornstarch.training.devices import autocast
from cornstarch.training.random_state import random_state, set_random_state
from cornstarch.training.record import RESERVED, StepRecord
from cornstarch.training.schedules import Decay, constant, share_at
from cornstarch.training.step_flops import FlopsOfSteps, Work

Batch = Mapping[str, Tensor]
_MOST_SKIPPED = 100  # batches in a row from which there is nothing to learn
# (model, batch, output) -> a scalar that is added to the loss. `output.logits` are there.
LossTerm = Callable[[nn.Module, Batch, Any], Tensor]
# (batch, output) -> a number that is logged. `output.logits` are there.
Metric = Callable[[Batch, Any], float]


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

    def state_dict(self) -> dict[str, Any]:
        """What the callback must know to go on; kept in checkpoints. Tensors, and what JSON has."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another callback of this class stood."""


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
        for name in self.metrics:
            if name in RESERVED or "/" in name:
                raise ArgumentError(f"a metric cannot be called {name!r}: lines of metrics have that of their own")
        self.callbacks = list(callbacks)
        self._flops = FlopsOfSteps(model) if any(isinstance(part, Composition) for part in model.modules()) else None
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
        self.stop_reason = None
        self.model.train()
        self._tell("on_start")
        while self.step < self.steps and self.stop_reason is None:
            self._tell("on_step", self.take_step())
        self._tell("on_end")
        return self.stop_reason if self.step < self.steps else None

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
        started, skipped = time.perf_counter(), 0
        bad, unlabelled = tuple[BadSample, ...](), tuple[str, ...]()
        while True:
            before = self.batches.state_dict()
            batch = next(self.batches)
            bad, unlabelled = bad + batch.bad, unlabelled + batch.unlabelled
            try:
                record = self._take(batch, started)
            except TrainingError:
                self.batches.load_state_dict(before)  # the step can be taken again
                raise
            if record is not None:
                return replace(record, skipped=skipped, bad=bad, unlabelled=unlabelled)
            skipped += 1
            if skipped == _MOST_SKIPPED:
                raise TrainingError(
                    f"step {self.step + 1}: {skipped} batches in a row have nothing to learn from: no labelled token, "
                    "or nothing that trains had any part in the loss, so it cannot fall; the last are "
                    f"{_listed(batch.names or [entry.name for entry in batch.bad])}"
                )

    def _take(self, batch: StepBatch, started: float) -> StepRecord | None:
        """Take a step on a batch; None if there is nothing to learn from it."""
        step = self.step + 1
        marks = getattr(self.model, "modality_token_ids", {}).values()
        labelled = [labelled_tokens(micro, marks) for micro in batch.micro_batches]
        rates = self._set_learning_rates(step)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Any] = {}
        done: list[Work] = []
        for micro, count in zip(batch.micro_batches, labelled, strict=True):
            if count:  # without labels there is nothing to average, and nothing to learn
                with self._counting(micro, count) as counted:
                    self._accumulate(self._placed(micro), count / sum(labelled), values)
                done += counted
        if all(parameter.grad is None for parameter in self._trained()):
            return None
        self._tell("on_gradients")
        parts, norms = self._grad_norms()
        # The numbers are fetched from the device here, once everything is under way there.
        figures = {name: float(value) for name, value in values.items()}
        lengths = [float(length) for length in norms.tolist()]
        if not all(map(math.isfinite, (figures["loss"], *lengths))):
            used = [micro for micro, count in zip(batch.micro_batches, labelled, strict=True) if count]
            raise self._not_finite(step, batch, figures, used)
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
            work=sum(done[1:], done[0]) if done else None,
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

    def _counting(self, micro: Batch, labelled: int) -> AbstractContextManager[list[Work]]:
        return nullcontext([]) if self._flops is None else self._flops.counting(micro, labelled)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of matrix products."""
        return autocast(self._device, self.precision)

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

    def _grad_norms(self) -> tuple[list[str], Tensor]:
        """Names of the parts that have gradients, and the length of the gradient of each."""
        gradients: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            found = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if found:
                gradients.setdefault(group["part"], []).extend(found)
        return list(gradients), torch.stack([_length(found).to(self._device) for found in gradients.values()])

    def _not_finite(
        self, step: int, batch: StepBatch, figures: Mapping[str, float], used: Sequence[Batch]
    ) -> TrainingError:
        """The error for a step whose loss or gradient is not finite, with where that came from."""
        loss = figures["loss"]
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        terms = [name for name, value in figures.items() if name.startswith("loss/") and not math.isfinite(value)]
        if terms:
            where = f"the loss term {terms[0].removeprefix('loss/')!r} is {figures[terms[0]]}"
        else:
            with self.autocast():
                where = health.explain(self.model, [self._placed(micro) for micro in used])
        self.optimizer.zero_grad(set_to_none=True)
        return TrainingError(
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
        """Everything that decides what comes, but for the model's weights."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "random": random_state(self._device),
            "callbacks": [[type(callback).__name__, callback.state_dict()] for callback in self.callbacks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loop stood; the model's weights must be that one's.

        Learning rates, decay and other settings are this loop's; what the optimizer has gathered is the other's.

        Args:
            state: of `state_dict`.

        Raises:
            ArgumentError: if something else trains than did, or the data are others.
        """
        self.batches.load_state_dict(state["batches"])
        self.optimizer.load_state_dict(_with_state_of(self.optimizer.state_dict(), state["optimizer"]))
        self.step = state["step"]
        left = [(name, inner) for name, inner in state["callbacks"] if inner]
        for callback in self.callbacks:
            found = next((entry for entry in left if entry[0] == type(callback).__name__), None)
            if found is not None:
                callback.load_state_dict(found[1])
                left.remove(found)
        set_random_state(state["random"], self._device)


def _with_state_of(mine: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with its own settings and what another has gathered, parameter by parameter."""
    if not all("names" in group for group in (*mine["param_groups"], *other["param_groups"])):
        return dict(other)
    places, theirs = _places(mine), _places(other)
    strange = sorted(places.keys() ^ theirs.keys())
    if strange:
        raise ArgumentError(f"cannot go on: other parameters train than did, among them {', '.join(strange[:4])}")
    state = {places[name]: other["state"][place] for name, place in theirs.items() if place in other["state"]}
    return {"state": state, "param_groups": mine["param_groups"]}


def _places(state: Mapping[str, Any]) -> dict[str, int]:
    """The number under which an optimizer's state keeps each parameter, by its name."""
    pairs = (zip(group["names"], group["params"], strict=True) for group in state["param_groups"])
    return {name: place for group in pairs for name, place in group}


def _length(gradients: Sequence[Tensor]) -> Tensor:
    """The length of several gradients together, in float32 at least."""
    exact = torch.float64 if any(gradient.dtype is torch.float64 for gradient in gradients) else torch.float32
    lengths: Any = torch._foreach_norm([*gradients], 2, dtype=exact)
    length: Tensor = torch.stack(lengths).norm()
    return length


def labelled_tokens(batch: Batch, marks: Iterable[int] = ()) -> int:
    """How many labels of a batch carry loss.

    Args:
        batch: with `labels` (B, S).
        marks: ids of modalities, whose positions carry none whatever their labels say.

    Returns:
        The number; the first position of a sequence does not count, having nothing before it to predict it.
    """
    carries = batch["labels"] != IGNORE_INDEX
    if "input_ids" in batch:
        for mark in marks:
            carries &= batch["input_ids"] != mark
    return int(carries[:, 1:].sum())


def real_tokens(batch: Batch) -> int:
    """How many positions of a batch are no padding."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["labels"].numel()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "")
