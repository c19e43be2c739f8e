"""The training loop: batches in, trained weights and one record per step out."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from cornstarch.errors import ArgumentError, TrainingError
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: number of optimizer steps.
        learning_rate: the highest learning rate, reached after the warm-up; a cosine leads from there to 0.
        warmup: share of the steps in which the learning rate rises linearly.
        betas: AdamW's decay rates of its two moments.
        weight_decay: for weight matrices; vectors (biases, norms) are not decayed.
        max_grad_norm: longer gradients are shortened to this.

    Raises:
        ArgumentError: for a value outside its range.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError(f"steps must be at least 1, found {self.steps}")
        if not 0 <= self.warmup <= 1:
            raise ArgumentError(f"warmup is a share of the steps, between 0 and 1, found {self.warmup}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in one step.

    Attributes:
        step: counted from 1.
        loss: the batch's loss, before the step.
        tokens: positions of the batch that are no padding.
    """

    step: int
    loss: float
    tokens: int


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """The learning rate of a step (counted from 1): linear warm-up, then a cosine that ends just above 0."""
    warmup = max(1, round(config.warmup * config.steps))
    if step <= warmup:
        return config.learning_rate * step / warmup
    done = (step - warmup) / (config.steps - warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    config: LoopConfig,
    on_step: Callable[[StepRecord], None] | None = None,
) -> list[StepRecord]:
    """Train what is trainable in a model.

    Args:
        model: called with a batch's tensors, returns something with a `loss`; left in training mode.
        batches: at least as many batches as there are steps.
        config: how long and how fast.
        on_step: called after every step.

    Returns:
        One record per step.

    Raises:
        TrainingError: if the loss or the gradient is not finite, naming the step; the weights are those before it.
            Also if nothing is trainable or the batches run out.
    """
    optimizer = make_optimizer(model, config)
    model.train()
    records: list[StepRecord] = []
    for step, batch in zip(range(1, config.steps + 1), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        loss = _step(model, batch, optimizer, config.max_grad_norm, step)
        records.append(StepRecord(step=step, loss=loss, tokens=_tokens(batch)))
        if on_step is not None:
            on_step(records[-1])
    if len(records) < config.steps:
        raise TrainingError(f"the batches ran out after step {len(records)} of {config.steps}")
    return records


def make_optimizer(model: nn.Module, config: LoopConfig) -> AdamW:
    """AdamW over what is trainable, with weight decay on matrices only.

    Args:
        model: frozen parameters of it are left out.
        config: its settings.

    Returns:
        The optimizer.

    Raises:
        TrainingError: if nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainingError("nothing to train: every parameter of the model is frozen")
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The loss per labelled position over several batches, in evaluation mode; the mode is put back afterwards."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        labelled = int((batch["labels"] != IGNORE_INDEX).sum())
        total += float(model(**_placed(batch, model)).loss) * labelled
        count += labelled
    model.train(was_training)
    return total / count


def _step(model: nn.Module, batch: Batch, optimizer: AdamW, max_grad_norm: float, step: int) -> float:
    """One optimizer step; returns the loss before it."""
    optimizer.zero_grad()
    loss = model(**_placed(batch, model)).loss
    _refuse_non_finite("loss", loss.item(), step)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    _refuse_non_finite("gradient norm", norm.item(), step)
    optimizer.step()
    return float(loss.item())


def _refuse_non_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} at step {step}: look at the batch of this step, or lower the learning rate"
        )


def _tokens(batch: Batch) -> int:
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["labels"].numel()


def _placed(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}
