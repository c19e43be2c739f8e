"""Compilation of a part's layers from outside, one by one, with `torch.compile`.

What stands between layers (merging, positions, loss) depends on the batch, and is little work. Layers of one structure
share what was compiled for one of them, so the time it takes does not grow with their number. What is compiled is a
layer's `forward`: hooks on it run as they are, and a checkpoint stands around what is compiled.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn

from cornstarch.models.multimodal_language_model import anatomy, checkpointing

_OTHER = "_forward_before_compiling"


def enable(part: nn.Module, **options: Any) -> None:
    """Compile the layers of `part`, each when it is first run.

    Args:
        part: an encoder, a projector or a language model, wrapped or not.
        **options: for `torch.compile`.
    """
    disable(part)
    kinds: dict[str, Callable[..., Any]] = {}
    for layer in anatomy.layers(part):
        kind = f"{type(layer).__qualname__}: {layer!r}"
        if kind not in kinds:
            kinds[kind] = _compiled(type(layer), options)
        place = checkpointing.place_of_forward(layer)
        if place in vars(layer):  # put there by somebody else (accelerate's hooks), who goes on working
            vars(layer)[_OTHER] = vars(layer)[place]
        vars(layer)[place] = MethodType(kinds[kind], layer)


def disable(part: nn.Module) -> None:
    """Run the layers of `part` as they are again."""
    for layer in part.modules():
        place = checkpointing.place_of_forward(layer)
        if _is_compiled(layer, place):
            del vars(layer)[place]
            if _OTHER in vars(layer):
                vars(layer)[place] = vars(layer).pop(_OTHER)


def is_enabled(part: nn.Module) -> bool:
    """Whether any layer of `part` is compiled here."""
    return any(_is_compiled(layer, checkpointing.place_of_forward(layer)) for layer in part.modules())


@contextmanager
def eagerly() -> Iterator[None]:
    """Run everything as it is: what is asked once, of a few positions, is not worth compiling."""
    try:
        stance: Any = torch.compiler.set_stance("force_eager")
    except RuntimeError:  # inside of something compiled, which cannot be left
        stance = nullcontext()
    with stance:
        yield


def _is_compiled(layer: nn.Module, place: str) -> bool:
    return getattr(vars(layer).get(place), "is_compiled", False)


def _compiled(cls: type[nn.Module], options: dict[str, Any]) -> Callable[..., Any]:
    names = anatomy.class_arguments(cls).names
    # PyTorch compiles a function only so many times, whatever calls it. So layers of another structure have a function
    # of their own, and so have training and evaluation.
    with_graph, without = (torch.compile(_code_of_its_own(_plain), **options) for _ in range(2))

    # A method bound to the layer, not a closure over it: a deep copy of the layer must call the copy.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # A cache is another object for every prompt, grows with every token, and each layer looks into it at a place
        # of its own: it would be compiled again for each of them.
        if anatomy.is_given_cache(names, args, kwargs):
            return _plain(self, *args, **kwargs)
        return (with_graph if torch.is_grad_enabled() else without)(self, *args, **kwargs)

    forward.is_compiled = True  # type: ignore[attr-defined]
    return forward


def _plain(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    other = vars(layer).get(_OTHER)
    return type(layer).forward(layer, *args, **kwargs) if other is None else other(*args, **kwargs)


def _code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which PyTorch takes for another."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
