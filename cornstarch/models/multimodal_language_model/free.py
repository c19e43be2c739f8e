"""5m. Proof that frozen parts cost nothing, for people's own tests."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cornstarch.errors import ArgumentError, FrozenCostError
from cornstarch.models.multimodal_language_model import freezing
from cornstarch.models.multimodal_language_model.accounting import Meter, composition_in

_TEXT = "language_model"


def assert_frozen_is_free(
    model: nn.Module, batch: Mapping[str, Any], autocast: AbstractContextManager[Any] | None = None
) -> None:
    """Run a training step's forward and backward pass, and see that frozen parts cost what they must and no more.

    A frozen part before which nothing trains builds no autograd graph and saves 0 bytes for the backward pass. One that
    must pass a gradient on computes no gradient of its weights. Every frozen part is in evaluation mode, without
    dropout. It holds whatever wraps the model or its parts: PEFT, gradient checkpointing, `Trainer`, `torch.compile`.

    The model is put into training mode with `train()`. Gradients are as before.

    Args:
        model: a `MultimodalModel`, wrapped or not, with what trains chosen.
        batch: of one step, with `labels` and an input of every encoder that is to be looked at.
        autocast: entered around the forward pass.

    Raises:
        ArgumentError: if the batch has no labels, or nothing of the model is frozen.
        FrozenCostError: if a frozen part costs something; it is an `AssertionError`, too.
    """
    composition = composition_in(model)
    if batch.get("labels") is None:
        raise ArgumentError("what a step costs is that of a loss: the batch needs labels")
    frozen = {name: modules for name, modules in composition.parts.items() if _are_frozen(modules)}
    if not frozen:
        raise ArgumentError(f"no part of the model is frozen, of {', '.join(composition.parts)}")
    model.train()
    for name, modules in frozen.items():
        _check_mode(name, modules)
    around = autocast if autocast is not None else nullcontext()
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())  # whatever surrounds it, else nothing would be seen
        traces = {
            name: [stack.enter_context(_traced(module)) for module in modules] for name, modules in frozen.items()
        }
        with around:
            loss = model(**batch).loss
    passing = [name for name in frozen if _is_behind(name, composition.parts)]
    for name, seen in traces.items():
        if name not in passing:
            for trace in seen:
                _check_trace(name, trace)
    if passing and loss.requires_grad:
        del loss
        _check_work(model, batch, passing, around)


def _are_frozen(modules: list[nn.Module]) -> bool:
    found = [freezing.is_frozen(module) for module in modules if any(True for _ in module.parameters())]
    return bool(found) and all(found)


def _is_behind(name: str, parts: Mapping[str, list[nn.Module]]) -> bool:
    """Whether anything trains whose gradient must go through a part."""
    before = [name.removesuffix("_projector") + "_encoder"] if name.endswith("_projector") else []
    before = [other for other in parts if other != _TEXT] if name == _TEXT else before
    modules = [module for other in before for module in parts.get(other, [])]
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def _check_mode(name: str, modules: list[nn.Module]) -> None:
    for module in modules:
        for place, inner in module.named_modules():
            if inner.training:
                raise FrozenCostError(
                    f"{name} is frozen, but {place or type(inner).__name__} is in training mode after model.train(), "
                    "so its dropout runs: freeze it with model.train(encoders_mode=..., llm_mode=...), and let no code "
                    "call train() on the parts themselves"
                )


# --- the forward pass -------------------------------------------------------------------------------------------------


@dataclass
class _Trace:
    """What a module's forward pass left for a backward pass."""

    saved: int = 0
    graph: str | None = None


@contextmanager
def _traced(module: nn.Module) -> Iterator[_Trace]:
    trace, running = _Trace(), list[Any]()

    def pack(tensor: Tensor) -> Tensor:
        trace.saved += tensor.nbytes
        return tensor.detach()  # an output that a node saves would hold the node

    def start(*_: Any) -> None:
        running.append(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        running[-1].__enter__()

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)
        for tensor in tree_leaves(list(output.values()) if isinstance(output, dict) else output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                trace.graph = type(tensor.grad_fn).__name__

    hooks = [module.register_forward_pre_hook(start, prepend=True), module.register_forward_hook(stop)]
    try:
        yield trace
    finally:
        for hook in hooks:
            hook.remove()


def _check_trace(name: str, trace: _Trace) -> None:
    if trace.graph is not None or trace.saved:
        graph = f"its output hangs on an autograd graph ({trace.graph})" if trace.graph is not None else "no graph"
        raise FrozenCostError(
            f"{name} is frozen and nothing before it trains, so it should save 0 bytes for the backward pass and build "
            f"no graph; found {trace.saved:,} bytes, {graph}. Does something make its inputs or embeddings require a "
            "gradient (enable_input_require_grads on the part, a hook, inputs with requires_grad)?"
        )


# --- the backward pass ------------------------------------------------------------------------------------------------


def _check_work(
    model: nn.Module, batch: Mapping[str, Any], passing: list[str], around: AbstractContextManager[Any]
) -> None:
    """Compare the operations of the backward pass with those that the gradients asked for take."""
    with torch.enable_grad(), Meter(model, batch) as meter:
        with around:
            loss = model(**batch).loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.grad(loss, trained, allow_unused=True)
    if meter.failure is not None:
        raise meter.failure
    for name in passing:
        if meter.spent[name] > meter.needed[name]:
            raise FrozenCostError(
                f"{name} is frozen and passes a gradient on, for which {meter.needed[name]:,} floating-point "
                f"operations do; its backward pass took {meter.spent[name]:,}: something computes gradients of its "
                "weights, though none of them requires one"
            )
