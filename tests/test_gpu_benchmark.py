"""The benchmark for a GPU runs in tiny sizes, with every check right; without a GPU it says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="needs the sources, of which the benchmarks are a part")
def test_tiny(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "3", "--output", str(output)]
    assert subprocess.run(command, check=False).returncode == 0
    found = json.loads(output.read_text())
    assert found["checks"]
    assert all(check["right"] is not False for check in found["checks"].values())
    failed = [name for name, cell in found["cells"].items() if "failed" in cell and "liger" not in name]
    assert not failed
    for name, cell in found["cells"].items():
        other = found["cells"].get(f"{name.rpartition(' ')[0]} plain")
        if name.endswith(" hf") and other is not None:
            assert cell["first_loss"] == pytest.approx(other["first_loss"], rel=2e-2), name


@pytest.mark.skipif(torch.cuda.is_available() or not SCRIPT.exists(), reason="needs the sources, and no GPU")
def test_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stdout
