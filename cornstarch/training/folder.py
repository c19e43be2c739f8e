"""9a. The run folder: what lies where, and that no run's folder is overwritten by another's.

config.yaml            the config, every field resolved
environment.json       versions, machine, command
metrics.jsonl          one object a line
checkpoints/step-<N>/  see `checkpoints.py`
loss.png               drawn anew at every check of the model
model/                 the trained model and its processor, at the end
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cornstarch.errors import ArgumentError

_OWN = ("config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "loss.png", "model")
_PACKAGES = (
    "cornstarch",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "accelerate",
    "numpy",
    "pillow",
)


class RunFolder:
    """Paths in a run's folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.loss = self.path / "loss.png"
        self.model = self.path / "model"

    def check(self, *, overwrite: bool = False, resume: bool = False) -> None:
        """Refuse a folder that holds a run, unless that is to be overwritten or gone on with; change nothing.

        Args:
            overwrite: the run that is there may be removed.
            resume: the run that is there is to be gone on with.

        Raises:
            ArgumentError: if the folder holds a run, or is none; or there is nothing to resume.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ArgumentError(f"run.folder: {self.path} is a file; choose another folder")
        if resume and not self.checkpoints.is_dir():
            raise ArgumentError(f"run.resume: {self.path} holds no checkpoint to go on from")
        there = self._there()
        if there and not overwrite and not resume:
            raise ArgumentError(
                f"run.folder: {self.path} holds a run already ({', '.join(there)}); choose another folder, or pass "
                "--run.overwrite true to replace it, --run.resume true to go on with it"
            )

    def clear(self) -> None:
        """Remove the run that is there; files of others stay."""
        for name in self._there():
            found = self.path / name
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()

    def _there(self) -> list[str]:
        return [name for name in _OWN if (self.path / name).exists()]

    def write(self, config: str, device: torch.device) -> None:
        """Make the folder, and write the config and what it is run with.

        Args:
            config: as YAML.
            device: that is computed on.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, config)
        write_whole(self.environment, json.dumps(_environment(device), indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    aside = path.with_name(f".{path.name}-writing")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _environment(device: torch.device) -> Mapping[str, Any]:
    accelerator = device.type != "cpu" and hasattr(torch.get_device_module(device), "get_device_name")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.get_device_module(device).get_device_name(device) if accelerator else str(device),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
