"""6a. Modules made without their weights, which are read afterwards: no memory spent on them, no time to draw them.

Weights come from `torch.empty`, tables that a module computes (rotary frequencies, positions, masks) from `arange`,
`tensor`, `zeros` and the like. So the former alone is sent to the meta device, and tables are as real as ever. Where
that does not hold for a module, it is seen, and the module is made in the ordinary way.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Made = TypeVar("Made", bound=nn.Module)
_REGISTERED = ("_parameters", "_buffers", "_modules")


class _EmptyOnMeta(TorchFunctionMode):
    """Memory that nothing is written into yet is not taken, unless a device is asked for. Holds for this thread alone.

    Patching `nn.Module.register_parameter` or `torch.empty` instead would reach every thread, and two threads that do
    so at once leave it patched for good.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def make(build: Callable[[], Made]) -> Made:
    """A module all of whose parameters are on the meta device, and all else as it should be.

    Args:
        build: makes the module; called again, outside, if a part of it that is not saved depends on its weights.

    Returns:
        The module, its parameters to be replaced by what `state_dict()` names. One that was made in the ordinary way
        has real parameters.

    Raises:
        Exception: what `build` raises when it is called in the ordinary way.
    """
    try:
        with _EmptyOnMeta():
            made = build()
    except Exception:  # code that reads what it has just made, in ways of its own
        return build()
    if any(_left_empty(made)):
        return build()
    _let_go(made)
    return made


def _left_empty(made: nn.Module) -> Iterator[bool]:
    """Whether tensors that `state_dict()` does not name are on the meta device: nothing would ever fill them."""
    named = made.state_dict().keys()
    parameters = made.named_parameters(remove_duplicate=False)
    for name, tensor in chain(parameters, made.named_buffers(remove_duplicate=False)):
        yield tensor.is_meta and name not in named
    for module in made.modules():
        for name, value in vars(module).items():
            yield name not in _REGISTERED and _holds_meta(value)


def _holds_meta(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_meta, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_meta, value))
    # Parameters that a module lists for itself (as an LSTM does) are for it to keep up: they change when it is loaded.
    return isinstance(value, Tensor) and value.is_meta and not isinstance(value, nn.Parameter)


def _let_go(made: nn.Module) -> None:
    """Free the parameters that were made with values (norms of ones, class tokens); those that are one stay one."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in made.modules():
        for name, parameter in module._parameters.items():
            if type(parameter) is nn.Parameter and not parameter.is_meta:
                if parameter not in replaced:
                    empty = torch.empty_like(parameter, device="meta")
                    replaced[parameter] = nn.Parameter(empty, parameter.requires_grad)
                module._parameters[name] = replaced[parameter]
