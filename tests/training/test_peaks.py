"""What MFU is a share of: by the name that a device gives itself."""

from typing import Any

import pytest
import torch

from cornstarch.training import peaks


@pytest.mark.parametrize(
    "name, teraflops",
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("AMD Instinct MI300X", 1307),
        # Names that begin like those of others, and slices of a device.
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A3000 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("something else", None),
    ],
)
def test_known_devices(name: str, teraflops: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By data sheets; None is measured."""

    class Module:
        @staticmethod
        def get_device_name(_: Any) -> str:
            return name

    monkeypatch.setattr(torch, "get_device_module", lambda _: Module)
    monkeypatch.setattr(peaks, "measured_speed", lambda *_: 1.0)
    found = peaks.peak_flops(torch.device("cuda"), "bfloat16")
    assert found == (1.0 if teraflops is None else teraflops * 1e12)
