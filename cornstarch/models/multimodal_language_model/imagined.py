"""5l. What a training step will cost, by shapes alone: without weights, memory or computing.

Weights, and whatever is computed from them, are fake tensors: they have a shape, a dtype and a device, and no values.
The model's own code runs on them, as it is trained. Token ids, masks and grids stay as they are, so code that reads
them goes the way it goes in training. Where code reads what has no values, a choice of experts is made up, evenly.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import quantized
from cornstarch.models.multimodal_language_model.accounting import StepCost, run, with_optimizer

_Module = TypeVar("_Module", bound=nn.Module)
_aten: Any = torch.ops.aten
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


def forecast_step(
    model: nn.Module,
    batch: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    autocast: AbstractContextManager[Any] | None = None,
    device: torch.device | None = None,
) -> StepCost:
    """What a training step costs, by shapes alone; see `measure_step`, which takes it.

    Operations and bytes are those that the step has on `device`, for all that PyTorch itself allocates; what a kernel
    takes for itself for a moment is not seen. Experts are taken to be chosen evenly.

    Args:
        model: a `MultimodalModel`, wrapped or not, with what trains chosen; its weights may be on the meta device.
        batch: of one step, with `labels`. Of floating-point tensors only the shape counts.
        optimizer: of the model's, for what it will keep for each weight that trains; None if there is none.
        autocast: entered around the forward pass.
        device: where the step would run; where the weights are if not given.

    Returns:
        What the step will cost.

    Raises:
        ArgumentError: if the model's code needs values, or parts of it are quantised, so that only running it tells.
    """
    if quantized.is_quantized(model):
        raise ArgumentError("parts of the model are quantised: what their kernels take can only be measured")
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    made = _imagine(model, fake, device)
    given = {
        name: _without_values(value, fake, device) if _has_numbers(value) else value for name, value in batch.items()
    }
    try:
        with _MadeUp():  # type: ignore[no-untyped-call]
            cost, reached = run(made, given, autocast)
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ArgumentError(
            f"what a step costs cannot be told from shapes: the model's code needs values ({_first_line(error)}); "
            "measure_step runs it"
        ) from error
    if optimizer is None:
        return cost
    stand_ins = dict(zip(model.parameters(), made.parameters(), strict=True))
    return with_optimizer(cost, model, _kept(optimizer, stand_ins, reached))


def _imagine(model: _Module, fake: FakeTensorMode, device: torch.device | None) -> _Module:
    """A copy of a model without values, to be run as it is."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_without_values(parameter.detach(), fake, device), parameter.requires_grad)
    for buffer in model.buffers():
        if _has_numbers(buffer) or buffer.is_meta:
            memo[id(buffer)] = _without_values(buffer, fake, device)
    return copy.deepcopy(model, memo)


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _without_values(tensor: Tensor, fake: FakeTensorMode, device: torch.device | None) -> Tensor:
    here = torch.device("cpu") if tensor.is_meta else tensor.device
    return FakeTensor(fake, torch.empty_like(tensor, device="meta"), device or here)


class _MadeUp(TorchDispatchMode):
    """Lets code run on fake tensors that asks for a choice, or takes rows by a mask that has values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _INDEXED:
            args = (args[0], _by_number(args[1]), *args[2:])
        if func is _aten._grouped_mm.default and isinstance(args[0], FakeTensor):
            return _grouped(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is _aten.topk.default and isinstance(args[0], FakeTensor):
            axis = args[2] if len(args) > 2 else -1
            return result[0], _spread(result[1], args[0].shape[axis])
        return result


class _AnyNumber(_MadeUp):
    """And lets it read a number, which is one: for optimizers, whose numbers change no shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0
        return super().__torch_dispatch__(func, types, args, kwargs)


def _grouped(first: Tensor, second: Tensor, offsets: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """What products of groups return; PyTorch tells the shape for bfloat16 alone."""
    columns = second.shape[-1]
    if second.dim() == 2 and first.dim() == 2 and offsets is not None:
        return first.new_empty(offsets.shape[0], first.shape[0], columns)
    return first.new_empty(*first.shape[:-1], columns)


def _spread(like: Tensor, below: int) -> Tensor:
    """Whole numbers below a limit, each as often as any other."""
    return (torch.arange(like.numel(), device=like.device) % below).reshape(like.shape)


def _by_number(places: Any) -> list[Any]:
    """Indices, masks among them as the numbers of the places where they are True."""
    found: list[Any] = []
    for place in places:
        is_mask = isinstance(place, Tensor) and place.dtype is torch.bool and not isinstance(place, FakeTensor)
        found += place.nonzero().unbind(-1) if is_mask else [place]
    return found


def _kept(
    optimizer: torch.optim.Optimizer,
    stand_ins: Mapping[nn.Parameter, nn.Parameter],
    reached: Sequence[nn.Parameter],
) -> dict[nn.Parameter, Any]:
    """What an optimizer like this one keeps for each parameter after its first step.

    Args:
        optimizer: not changed.
        stand_ins: of its parameters, without values.
        reached: those that get a gradient.

    Returns:
        The parameters to the state of their stand-ins.
    """
    plain = {"fused": False, "foreach": False}  # kernels of theirs, which need values, keep what plain code keeps
    groups = []
    for group in optimizer.param_groups:
        settings = {key: plain.get(key, value) for key, value in group.items()}
        groups.append({**settings, "params": [stand_ins[parameter] for parameter in group["params"]]})
    cls: Any = type(optimizer)
    taken = inspect.signature(cls).parameters
    other = cls(groups, **{key: plain.get(key, value) for key, value in optimizer.defaults.items() if key in taken})
    for stand_in in reached:
        stand_in.grad = torch.empty_like(stand_in)
    with _AnyNumber():  # type: ignore[no-untyped-call]
        other.step()
    return {parameter: other.state[own] for parameter, own in stand_ins.items() if own in other.state}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
