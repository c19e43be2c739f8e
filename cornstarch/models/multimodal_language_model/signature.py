"""5a. A forward method whose signature names the arguments of the parts it is made of."""

import functools
import inspect
from types import MethodType
from typing import Any


class NamesItsInputs:
    """Makes a model's `forward` name the arguments of its parts in its signature.

    `transformers.Trainer` keeps the columns of a data set that `inspect.signature(model.forward)` names. Which those
    are depends on the encoders, so the signature belongs to the instance; the method is the class's as usual.
    """

    def __init__(self, function: Any) -> None:
        self._function = function

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self._function
        return MethodType(_naming(self._function, instance._input_names), instance)


_KNOWN: dict[tuple[Any, tuple[str, ...]], Any] = {}


def _naming(function: Any, names: tuple[str, ...]) -> Any:
    if (function, names) not in _KNOWN:
        _KNOWN[function, names] = _with_signature(function, names)
    return _KNOWN[function, names]


def _with_signature(function: Any, names: tuple[str, ...]) -> Any:
    @functools.wraps(function)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    parameters = list(inspect.signature(function).parameters.values())
    taken = {parameter.name for parameter in parameters}
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names if name not in taken
    ]
    signature = inspect.Signature([*parameters[:-1], *named, parameters[-1]])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward
