"""2f. How many floating-point operations a second a device can do: what MFU is a share of."""

import functools
import re
import time

import torch

# Dense matrix products of the makers' data sheets, without sparsity: bfloat16, and float32 as PyTorch computes it.
_PEAKS = {
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A40": (150e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10": (125e12, 31.2e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 5090": (209e12, 105e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "MI300X": (1307e12, 163e12),
    "MI250X": (383e12, 47.9e12),
}
_SIZE = 1024  # of the matrices that are multiplied to see how fast a machine is
_SECONDS = 0.2


def peak_flops(device: torch.device, precision: str) -> float:
    """The most floating-point operations a second that a device does.

    Args:
        device: where.
        precision: name of the dtype of matrix products.

    Returns:
        By the maker's data sheet, for devices that are known; else what a short matrix product reaches.
    """
    tell = getattr(torch.get_device_module(device), "get_device_name", None)
    name = tell(device) if tell is not None else ""
    known = next((peaks for words, peaks in _PEAKS.items() if set(words.split()) <= set(name.split())), None)
    # "A100-SXM4-80GB" is an A100, "RTX A1000" is none.
    known = known or next((peaks for words, peaks in _PEAKS.items() if re.search(rf"{words}(?!\d)", name)), None)
    if known is None or "MIG" in name.split():  # a slice of a device
        return measured_speed(device, precision)
    return known[0] if precision in ("bfloat16", "float16") else known[1]


@functools.cache
def measured_speed(device: torch.device, precision: str) -> float:
    """How fast a machine multiplies matrices.

    Args:
        device: where.
        precision: name of a dtype.

    Returns:
        Floating-point operations a second, the best of a fraction of a second.
    """
    matrix = torch.ones(_SIZE, _SIZE, dtype=getattr(torch, precision), device=device)
    best, started = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for a device that works aside
        best = min(best, time.perf_counter() - before)
    return 2 * _SIZE**3 / best
