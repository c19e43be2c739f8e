"""10c. What a config's steps cost, part by part: measured on its first micro-batch, and told from shapes alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cornstarch.data.steps import StepBatch
from cornstarch.errors import ArgumentError, TrainingError
from cornstarch.models.multimodal_language_model import (
    MultimodalModel,
    StepCost,
    forecast_step,
    measure_step,
)
from cornstarch.models.multimodal_language_model.accounting import with_optimizer
from cornstarch.training import building, report, selection, sourcing
from cornstarch.training.config import TrainConfig
from cornstarch.training.devices import autocast, check_precision, pick_device
from cornstarch.training.loop import labelled_tokens
from cornstarch.training.optimizers import make_optimizer, parameter_groups
from cornstarch.training.random_state import seed_everything

_COSTS = (
    *("weight_bytes", "gradient_bytes", "optimizer_bytes", "saved_bytes"),
    *("forward_flops", "backward_flops", "recomputed_flops"),
)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a config's steps cost.

    Attributes:
        rows: of `part_rows`, one a part.
        micro_batch: shape of the micro-batch, and how many a step has.
        measured: of one micro-batch; None if it was not run.
        forecast: the same, from shapes alone; None if only running it tells.
        why_no_forecast: why.
    """

    rows: list[dict[str, Any]]
    micro_batch: dict[str, Any]
    measured: StepCost | None
    forecast: StepCost | None
    why_no_forecast: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything, in values for JSON."""
        costs = {"measured": self.measured, "forecast": self.forecast}
        parts = {
            row["part"]: {
                **{key: value for key, value in row.items() if key != "part"},
                **{name: _of_part(cost, row["part"]) for name, cost in costs.items()},
            }
            for row in self.rows
        }
        return {
            "micro_batch": self.micro_batch,
            "parts": parts,
            "together": {name: _together(cost) for name, cost in costs.items()},
            "why_no_forecast": self.why_no_forecast,
        }


def _of_part(cost: StepCost | None, part: str) -> dict[str, Any] | None:
    if cost is None:
        return None
    values = asdict(cost.parts[part])
    return {name: values[name] for name in _COSTS}


def _together(cost: StepCost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    sums = {name: sum(asdict(part)[name] or 0 for part in cost.parts.values()) for name in _COSTS}
    # A step holds weights and optimizer throughout, and at its height activations and gradients beside them.
    held = sums["weight_bytes"] + sums["optimizer_bytes"] + cost.peak_bytes
    return {**sums, "peak_bytes": cost.peak_bytes, "peak_bytes_with_weights_and_optimizer": held}


def inspect_config(config: TrainConfig, *, measure: bool = True) -> Inspection:
    """What the steps that a config describes cost.

    Args:
        config: of the training.
        measure: load weights and run the forward and backward pass of the first micro-batch, and a step of the
            optimizer. Otherwise no weights are read, and no memory is taken for them.

    Returns:
        What was measured and what was forecast.

    Raises:
        ArgumentError: for a config that cannot be run.
        TrainingError: if nothing trains, or nothing of the first step is labelled.
    """
    device = pick_device(config.training.device)
    check_precision(device, config.training.precision)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    seed_everything(config.training.seed)
    model, processor = building.build_model(config.model, config.data.template, weights=measure)
    selection.choose_for(config, model, processor.llm_tokenizer)
    if measure:
        model.to(device)
    model.train()
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    micro, shape = _first_micro_batch(config, model, processor)
    micro = {name: value.to(device) for name, value in micro.items()}
    groups = parameter_groups(model, config.optimizer, config.trains, config.schedule.warmup)
    optimizer = make_optimizer(groups, config.optimizer)
    context = autocast(device, config.training.precision)
    forecast, why = None, None
    try:
        forecast = forecast_step(model, micro, optimizer, context, device)
    except ArgumentError as error:
        if not measure:
            raise
        why = str(error)
    measured = measure_step(model, micro, autocast=context) if measure else None
    if measured is not None:
        measured = with_optimizer(measured, model, _state_after_a_step(model, micro, optimizer, context))
    rows = report.part_rows(model, groups)
    return Inspection(rows=rows, micro_batch=shape, measured=measured, forecast=forecast, why_no_forecast=why)


def _first_micro_batch(config: TrainConfig, model: MultimodalModel, processor: Any) -> tuple[dict[str, Tensor], Any]:
    """The first micro-batch with a labelled token, as training would take it, and its shape."""
    source = sourcing.training_source(config.data)
    batches = sourcing.make_batches(config, source, sourcing.make_collator(processor, config.data), workers=0)
    try:
        step: StepBatch = next(batches)
    finally:
        batches.close()
    marks = model.modality_token_ids.values()
    for micro in step.micro_batches:
        labelled = labelled_tokens(micro, marks)
        if labelled:
            samples, positions = micro["labels"].shape
            shape = {
                "samples": samples,
                "positions": positions,
                "labelled_tokens": labelled,
                "inputs": _inputs(model, micro),
                "micro_batches_per_step": len(step.micro_batches),
                "samples_per_step": step.samples,
            }
            return dict(micro), shape
    raise TrainingError("data.train: no token of the first step is labelled, so it has no loss")


def _inputs(model: MultimodalModel, micro: Mapping[str, Tensor]) -> dict[str, int]:
    """Modality key to positions that its inputs take."""
    ids = micro.get("input_ids")
    return {} if ids is None else {key: int((ids == mark).sum()) for key, mark in model.modality_token_ids.items()}


def _state_after_a_step(
    model: MultimodalModel, micro: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, context: Any
) -> Mapping[Any, Any]:
    """What an optimizer keeps; the model is changed by a step."""
    with context:
        loss = model(**micro).loss
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer.state
