"""Liger kernels in the place of norms and activations of parts that are there already, from outside.

Liger (https://github.com/linkedin/Liger-Kernel, optional) knows model types. Its own functions are used for what they
change in a model; what they change in transformers, for every model of the process, is put back. So rotary embeddings,
which they exchange in no other way, stay as they are. Losses stay too: head and loss run on labelled rows here.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import compiling, freezing

# What is bound to a module by Liger; what it stores beside these does nothing by itself.
_BOUND = ("forward", "extra_repr", "_get_name")
# What is left as it is, of the arguments of Liger's functions.
_OFF = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
# Where Liger's functions change what all models share.
_SHARED = ("torch.nn", "torch.nn.functional", "transformers.models.", "transformers.loss.")
_ROWS = 16  # of the question
# Kernels sum in float32, in another order than the plain module, whose error in float32 is 0 by definition.
_ORDER_OF_SUMS = 8 * torch.finfo(torch.float32).eps


def why_not(part: nn.Module) -> str | None:
    """Why Liger's kernels cannot be used in a part.

    Args:
        part: an encoder or a language model, wrapped or not, where it is to run.

    Returns:
        The reason; None if they can be tried.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed (pip install liger-kernel)"
    device = next((parameter.device.type for parameter in part.parameters()), "cpu")
    if device == "cpu" and not _interprets():
        return "its kernels run on a GPU, and the model is on cpu"
    kind = getattr(getattr(freezing.unwrap(part), "config", None), "model_type", None)
    known: Mapping[str, Any] = _liger().MODEL_TYPE_TO_APPLY_LIGER_FN
    return None if kind in known else f"Liger knows no model of type {kind!r}"


def enable(part: nn.Module) -> dict[str, str]:
    """Put Liger's kernels in the place of norms and activations of `part`, those that compute the same.

    Args:
        part: an encoder or a language model, wrapped or not, where it is to run.

    Returns:
        Class of modules that Liger has a kernel for and that stay as they are, to the reason.

    Raises:
        ArgumentError: if no kernel can be used, with the reason; the part is as before then.
    """
    reason = why_not(part)
    base: Any = freezing.unwrap(part)
    if reason is not None:
        raise ArgumentError(f"no Liger kernels in {type(base).__name__}: {reason}")
    apply: Callable[..., None] = _liger().MODEL_TYPE_TO_APPLY_LIGER_FN[base.config.model_type]
    options = {name: value for name, value in _OFF.items() if name in inspect.signature(apply).parameters}
    try:
        with _shared_put_back():
            apply(model=base, **options)
    except Exception as error:  # made for other releases of transformers, or for another class of this type
        disable(base)
        raise ArgumentError(f"no Liger kernels in {type(base).__name__}: {error}") from error
    kept = _without_wrong(base)
    if not is_enabled(base):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items()) or "nothing in it is replaced"
        raise ArgumentError(f"no Liger kernels in {type(base).__name__}: {reasons}")
    return kept


def disable(part: nn.Module) -> None:
    """Compute norms and activations of `part` as they were."""
    for module in replaced(part).values():
        _put_back(module)


def _put_back(module: nn.Module) -> None:
    for name in _BOUND:
        vars(module).pop(name, None)


def _can_be_asked(module: nn.Module) -> bool:
    """Whether a module takes rows and nothing else, so that it can be asked by itself; experts take their routing."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return sum(parameter.default is parameter.empty for parameter in parameters) == 1


def replaced(part: nn.Module) -> dict[str, nn.Module]:
    """The modules of a part that run Liger's kernels, by name."""
    return {name: module for name, module in part.named_modules() if _is_replaced(module)}


def is_enabled(part: nn.Module) -> bool:
    """Whether any module of `part` runs Liger's kernels."""
    return any(map(_is_replaced, part.modules()))


def _is_replaced(module: nn.Module) -> bool:
    function = getattr(vars(module).get("forward"), "__func__", None)
    return str(getattr(function, "__module__", "")).startswith("liger_kernel.")


# --- do they compute the same -----------------------------------------------------------------------------------------


def _without_wrong(part: nn.Module) -> dict[str, str]:
    """Ask one of each kind of replaced modules; those whose kernel fails, or computes something else, are put back."""
    reasons: dict[str, str | None] = {}
    kept = {}
    for module in replaced(part).values():
        kind = f"{type(module)} {module!r}"
        if kind not in reasons:
            reasons[kind] = _why_wrong(module)
        if reasons[kind] is not None:
            _put_back(module)
            kept[type(module).__name__] = str(reasons[kind])
    return kept


def _why_wrong(module: nn.Module) -> str | None:
    if not _can_be_asked(module):
        return "it takes more than rows, so its kernel cannot be compared with it"
    try:
        found, allowed = errors(module)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # kernels are for some releases of Triton
        return f"its kernel fails ({type(error).__name__}: {error})"
    # Not `found > allowed`: a NaN is wrong.
    return None if found <= allowed else f"its kernel is off by {found:.3g}, where {allowed:.3g} is allowed"


def errors(module: nn.Module) -> tuple[float, float]:
    """The error of a replaced module against float32, and what is allowed: twice that of the plain module.

    Args:
        module: a norm or a feed-forward network that takes rows (..., width).

    Returns:
        Both relative to the largest entry; the larger of those of the output and of the input's gradient.
    """
    parameters = list(module.parameters())
    dtype, device = parameters[0].dtype, parameters[0].device
    given = torch.randn(1, _ROWS, _width(module), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    found = _output_and_gradient(module, given)
    with _plain(module):
        plain = _output_and_gradient(module, given)
        with _in_float32(module):
            exact = _output_and_gradient(module, given.float())
    pairs = [
        (_error(ours, right), 2 * _error(theirs, right) + _ORDER_OF_SUMS)
        for ours, theirs, right in zip(found, plain, exact, strict=True)
    ]
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[0] == pair[0] else float("inf"))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).abs().max() / exact.abs().max())


def _width(module: nn.Module) -> int:
    """Of the rows a module takes: a norm's weight has it, and each first matrix of a feed-forward network."""
    for inner in module.modules():
        width = getattr(inner, "in_features", None)
        if isinstance(width, int):
            return width
    return int(next(module.parameters()).shape[-1])


def _output_and_gradient(module: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    given = given.detach().requires_grad_()
    with torch.enable_grad(), freezing.evaluating(module), compiling.eagerly():
        output: Tensor = module(given)
        # Kernels may write into what they are given back, so it is nobody else's.
        weights = torch.linspace(-1, 1, output.numel(), device=given.device).reshape(output.shape).to(output.dtype)
        (gradient,) = torch.autograd.grad(output, given, weights)
    return output.detach(), gradient


@contextmanager
def _plain(module: nn.Module) -> Iterator[None]:
    """A replaced module as it was; behind it, replaced again."""
    bound = {name: vars(module).pop(name) for name in _BOUND if name in vars(module)}
    try:
        yield
    finally:
        vars(module).update(bound)


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """The weights of a module in float32; behind it, their own again."""
    former = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, data in former:
            parameter.data = data.float() if data.is_floating_point() else data
        yield
    finally:
        for parameter, data in former:
            parameter.data = data


# --- Liger ------------------------------------------------------------------------------------------------------------


def _liger() -> Any:
    """Liger's module of functions; what its import changes is nothing."""
    return importlib.import_module("liger_kernel.transformers.monkey_patch")


def _interprets() -> bool:
    """Whether Triton was told to interpret kernels, which then run on a CPU, for tests."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


@contextmanager
def _shared_put_back() -> Iterator[None]:
    """Whatever is changed inside in modules that all models share is as before behind it."""
    before = {name: dict(vars(module)) for name, module in list(sys.modules.items()) if _is_shared(name)}
    try:
        yield
    finally:
        for name, names in before.items():
            now = vars(sys.modules[name])
            for key in [key for key, value in now.items() if names.get(key) is not value]:
                if key in names:
                    now[key] = names[key]
                elif str(getattr(now[key], "__module__", "")).startswith("liger_kernel."):
                    del now[key]


def _is_shared(name: str) -> bool:
    return any(name == shared or (shared.endswith(".") and name.startswith(shared)) for shared in _SHARED)
