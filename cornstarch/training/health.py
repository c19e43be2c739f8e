"""5b. Where a number that is not finite came from: the part, and the module in it, that had it first."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from cornstarch.models.multimodal_language_model import MultimodalModel


def explain(model: nn.Module, micro_batches: Sequence[Mapping[str, Tensor]]) -> str:
    """Say what became infinite or no number first, by running the step again and watching every module.

    Args:
        model: as it was before the step.
        micro_batches: of the step, on the model's device.

    Returns:
        The end of a sentence: which weight, input, activation or gradient of which part.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name} of {_part(model, name)} is not finite already"
    for micro in micro_batches:
        for name, value in micro.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                return f"the input {name} is not finite"
    for micro in micro_batches:
        found = _watch(model, micro)
        if found is not None:
            return found
    return "it did not happen again when the step was repeated, so it depends on dropout or on the machine"


def _watch(model: nn.Module, micro: Mapping[str, Tensor]) -> str | None:
    activations: list[str] = []
    gradients: list[tuple[str, bool]] = []

    def behind(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not torch.isfinite(tensor).all():
                    activations.append(name)
                elif tensor.requires_grad:
                    watched: Any = tensor
                    watched.register_hook(lambda gradient: gradients.append((name, _finite(gradient))))

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(behind(name)).remove)
        loss = model(**micro).loss
        if activations:
            return _said(model, "activation", activations[0])
        if not torch.isfinite(loss):
            return "every activation is finite, the loss of them is not: a label may be outside the vocabulary"
        loss.backward()
    # Backward goes from the loss to the inputs: the gradient failed in what ran right behind the first that has it.
    last_good = None
    for name, finite in gradients:
        if not finite:
            return _said(model, "gradient", last_good or name)
        last_good = name
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return _said(model, "gradient", name)
    return None


def _said(model: nn.Module, what: str, name: str) -> str:
    return f"the {what} of {_part(model, name)} went first, at {name}"


def _part(model: nn.Module, name: str) -> str:
    """The part that a module or parameter of this name belongs to."""
    if isinstance(model, MultimodalModel):
        for key in model.encoders:
            if name.startswith(f"{key}_encoder."):
                return f"{key}_projector" if ".projector" in name else f"{key}_encoder"
        return "language_model"
    return "the model"


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
