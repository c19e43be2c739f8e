"""Import edges that the linter of packages cannot see: single modules of PyTorch, and imports at the wrong time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cornstarch

PACKAGE = Path(cornstarch.__file__).parent


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with the names it takes from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=lambda path: path.stem)
def test_the_model_is_single_device(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith(("torch.distributed", "accelerate"))]


def test_only_freezing_knows_adapters() -> None:
    knowing = [p.stem for p in PACKAGE.rglob("*.py") if any(name.split(".")[0] == "peft" for name in imports(p))]
    assert knowing == ["freezing"]


def test_no_device_string() -> None:
    """No device is named in the package: CPU, CUDA and MPS are told apart by tensors."""
    naming = [p.name for p in PACKAGE.rglob("*.py") if '"cuda' in p.read_text(encoding="utf-8")]
    assert naming == []


OPTIONAL = ["peft", "torchvision", "sklearn", "matplotlib", "accelerate", "datasets", "soundfile", "bitsandbytes"]
OPTIONAL += ["torchdata", "pyarrow", "av"]


@pytest.mark.parametrize("what", ["cornstarch", "cornstarch.training, cornstarch.cli.main, cornstarch.data"])
def test_importing_needs_nothing_optional(what: str) -> None:
    """With every optional package unimportable, library and training import: each is asked for where it is used."""
    script = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r})); import {what}"
    subprocess.run([sys.executable, "-c", script], check=True)
