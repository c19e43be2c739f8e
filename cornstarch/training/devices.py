"""2b. Where to compute; the only place that turns a name into a device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cornstarch.errors import ArgumentError


def pick_device(name: str) -> torch.device:
    """A device by name, known to compute.

    Args:
        name: `auto` for an accelerator if there is one and else the CPU, or what `torch.device` takes.

    Returns:
        The device.

    Raises:
        ArgumentError: if PyTorch cannot compute there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"training.device: cannot compute on {name!r}: {reason}") from None


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse a precision that a device does not have.

    Args:
        device: where to compute.
        precision: the name of a dtype.

    Raises:
        ArgumentError: if the device multiplies no matrices in it.
    """
    dtype = getattr(torch, precision)
    try:
        torch.ones(2, 2, dtype=dtype, device=device) @ torch.ones(2, 2, dtype=dtype, device=device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"training.precision: {device} does not compute in {precision}: {error}") from None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The precision of matrix products.

    Args:
        device: where they are computed.
        precision: the name of a dtype; `float32` leaves every product in the dtype of its weights.

    Returns:
        A context to compute in.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
