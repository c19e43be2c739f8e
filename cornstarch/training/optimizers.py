"""4. An optimizer with a group for every part, pattern and layer that has settings of its own."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cornstarch.errors import ArgumentError, TrainingError
from cornstarch.models.multimodal_language_model import MultimodalModel, freezing, pieces
from cornstarch.training.config import OptimizerConfig, TrainsConfig
from cornstarch.training.selection import parameters_of

# Optimizers of PyTorch's that this loop cannot use, with the reason.
_UNFIT: dict[Any, str] = {
    torch.optim.LBFGS: "calls the model several times a step, which this loop does not do",
    torch.optim.SparseAdam: "is for sparse gradients, which there are none of",
}
# Their update in one pass over the weights is four times as fast on a CPU as tensor by tensor, PyTorch's default.
_FUSED = (torch.optim.Adam, torch.optim.AdamW)
_NUMBERED = re.compile(r"\.\d+$")


def parameter_groups(
    model: MultimodalModel,
    config: OptimizerConfig,
    trains: Mapping[str, TrainsConfig] | None = None,
    warmup: float = 0.0,
) -> list[dict[str, Any]]:
    """Everything that trains, in groups as `torch.optim` takes them.

    Args:
        model: frozen parameters of it are left out.
        config: settings of all that has no others.
        trains: part to settings of its own.
        warmup: share of the steps, of all that has no other.

    Returns:
        Groups with `params`, `names`, `lr`, `weight_decay`; and, for the loop, `part`, `peak` (the highest learning
        rate) and `warmup`.

    Raises:
        TrainingError: if nothing trains.
        ArgumentError: for a pattern that matches nothing that trains.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    behind = {part: _layers_behind(modules[0]) for part, modules in model.parts.items() if modules}
    unused = {(part, n) for part, choice in (trains or {}).items() for n in range(len(choice.groups))}
    for part, name, parameter in parameters_of(model):
        if not parameter.requires_grad:
            continue
        if parameter.dtype is torch.float16:
            raise ArgumentError(
                f"{part} trains in float16, whose small gradients are lost without a loss scale: "
                "set its dtype to float32 or bfloat16"
            )
        choice = (trains or {}).get(part, TrainsConfig())
        number = next((n for n, group in enumerate(choice.groups) if group.matches(name)), None)
        own = choice.groups[number] if number is not None else None
        unused.discard((part, number if number is not None else -1))
        rate = _first(own and own.learning_rate, choice.learning_rate, config.learning_rate)
        rate *= choice.layer_decay ** behind[part].get(name, 0)
        plain = 0.0 if parameter.dim() < 2 else _first(choice.weight_decay, config.weight_decay)
        settings = (
            part,
            rate,
            _first(own and own.weight_decay, plain),
            _first(own and own.warmup, choice.warmup, warmup),
        )
        keys = dict(zip(("part", "peak", "weight_decay", "warmup"), settings, strict=True))
        group = groups.setdefault(settings, {"params": [], "names": [], "lr": rate, **keys})
        group["params"].append(parameter)
        group["names"].append(f"{part}.{name}")
    if not groups:
        raise TrainingError("nothing to train: every parameter of the model is frozen")
    for part, number in sorted(unused):
        patterns = (trains or {})[part].groups[number].parameters
        raise ArgumentError(f"trains.{part}.groups.{number}: nothing that trains is called {' or '.join(patterns)}")
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    """An optimizer by name, fused where PyTorch can and the arguments choose no other implementation.

    Args:
        groups: of `parameter_groups`.
        config: its name and arguments.

    Returns:
        The optimizer.

    Raises:
        ArgumentError: for a name that torch.optim does not have, or arguments that it refuses.
    """
    cls = getattr(torch.optim, config.name, None)
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)) or cls is Optimizer:
        known = [name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name, None), type)]
        raise ArgumentError(f"optimizer.name: torch.optim has no {config.name!r}; it has: {', '.join(known)}")
    if cls in _UNFIT:
        raise ArgumentError(f"optimizer.name: {config.name} {_UNFIT[cls]}")
    try:
        return cls(groups, **{"lr": config.learning_rate, **_implementation(cls, groups, config), **config.arguments})
    except (TypeError, ValueError, IndexError, RuntimeError, AssertionError) as error:
        raise ArgumentError(f"optimizer.arguments: {config.name} refuses them: {error}") from error


def _implementation(cls: type, groups: list[dict[str, Any]], config: OptimizerConfig) -> dict[str, bool]:
    """The argument that makes the update fused; none where that cannot be, or where something else is asked for."""
    chosen = {"fused", "foreach", "differentiable"} & config.arguments.keys()
    parameters = [parameter for group in groups for parameter in group["params"]]
    used = {parameter.device.type for parameter in parameters}
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    fits = used <= there and all(parameter.is_floating_point() for parameter in parameters)
    return {"fused": True} if cls in _FUSED and not chosen and fits else {}


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _layers_behind(part: nn.Module) -> dict[str, int]:
    """How many layers of a part run behind each of its parameters."""
    base = freezing.unwrap(part)
    owners = pieces.pieces(base)
    numbered = [bool(_NUMBERED.search(piece)) for piece in owners]
    places = {name: place for place, names in enumerate(owners.values()) for name in names}
    by_identity = {id(parameter): places.get(name) for name, parameter in base.named_parameters()}
    found = {name: by_identity.get(id(parameter)) for name, parameter in part.named_parameters()}
    return {name: sum(numbered[place + 1 :]) if place is not None else 0 for name, place in found.items()}
