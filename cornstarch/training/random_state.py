"""5a. The state of every source of random numbers that a model may draw from."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed PyTorch on every device, NumPy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state, as tensors and JSON values.

    Args:
        device: whose generator to include, besides the CPU's.

    Returns:
        `torch`, `device` (absent on the CPU), `numpy`, `python`.
    """
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    version, numbers, following = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {"keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)), "rest": [position, has_gauss, gauss]},
        "python": [version, list(numbers), following],
    }
    assert algorithm == "MT19937", "the legacy state is always this generator's"
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put a state back.

    Args:
        state: of `random_state`.
        device: whose generator it includes.
    """
    torch.set_rng_state(state["torch"])
    keys = state["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *state["numpy"]["rest"]))
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)
