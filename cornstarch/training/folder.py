"""9a. The run folder: what lies where, and that no run's folder is overwritten by another's.

config.yaml            the config, every field resolved
environment.json       versions, machine, command
metrics.jsonl          one object a line
bad_samples.jsonl      samples that could not be used, if any
checkpoints/step-<N>/  see `checkpoints.py`
loss.png               drawn anew at every check of the model
model/                 the trained model and its processor, at the end
trackers/              what TensorBoard shows, if it is asked for
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cornstarch.errors import ArgumentError, MissingFileError
from cornstarch.training import checkpoints
from cornstarch.training.config import TrainConfig
from cornstarch.training.reading import read_config, to_values

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

_OWN = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "bad_samples.jsonl",
    "checkpoints",
    "loss.png",
    "model",
    "trackers",
    "predictions.png",  # the demo's
)
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
        self.bad_samples = self.path / "bad_samples.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.loss = self.path / "loss.png"
        self.model = self.path / "model"
        self.trackers = self.path / "trackers"

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
        if resume and checkpoints.last(self.checkpoints) is None:
            raise ArgumentError(f"run.resume: {self.path} holds no checkpoint to go on from; start it without")
        there = self._there()
        begun = set(there) - {"config.yaml", "environment.json"}  # a start that failed leaves no more than these
        if begun and not overwrite and not resume:
            raise ArgumentError(
                f"run.folder: {self.path} holds a run already ({', '.join(there)}); choose another folder, or pass "
                "--run.overwrite true to replace it, --run.resume true to go on with it"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running in the folder meanwhile; a killed one lets go.

        Raises:
            ArgumentError: if another run is going on there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        with open(self.path / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ArgumentError(f"run.folder: another run is going on in {self.path}; choose another") from None
            yield

    def start(self, config: str, device: torch.device, *, anew: bool) -> None:
        """Remove what a former run left, and write the config and what it is run with.

        Args:
            config: as YAML.
            device: that is computed on.
            anew: remove everything of the former run; otherwise its final model alone, which its last checkpoint has.
        """
        for name in self._there() if anew else ["model"]:
            found = self.path / name
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink(missing_ok=True)
        write_whole(self.config, config)
        write_whole(self.environment, json.dumps(_environment(device), indent=2) + "\n")

    def _there(self) -> list[str]:
        return [name for name in _OWN if (self.path / name).exists()]


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    aside = path.with_name(f".{path.name}-writing")
    if not path.parent.is_dir():
        raise MissingFileError(
            f"{path} cannot be written: there is no folder {path.parent}; make it, or write elsewhere"
        )
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


# What may differ between a run and its continuation: how long, how fast, where and how it is watched.
_MAY_CHANGE = (
    *("optimizer.", "schedule.", "evaluation.", "run.", "data.validation", "data.test", "data.workers"),
    *("data.bad_samples", "data.limits."),
    *("training.steps", "training.epochs", "training.device", "training.threads", "training.precision"),
    *("training.compile", "training.liger", "training.micro_batch_size", "training.gradient_checkpointing"),
    *("training.micro_batch_positions", "training.micro_batch_media"),
)


def refuse_other_config(former: Path, config: TrainConfig) -> None:
    """Refuse to go on with a config that describes another model, other data, or other parts that train.

    Args:
        former: the config file of the run.
        config: what it is to go on with.

    Raises:
        ArgumentError: naming everything that differs and may not.
    """
    mine, theirs = flat(to_values(config)), flat(to_values(read_config(former)))
    differing = [
        f"{key} was {theirs.get(key)!r} and is {mine.get(key)!r}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key) and not key.startswith(_MAY_CHANGE) and not _is_rate(key)
    ]
    if differing or mine["optimizer.name"] != theirs["optimizer.name"]:
        listed = "; ".join(differing) or f"optimizer.name was {theirs['optimizer.name']}"
        raise ArgumentError(f"run.resume: this is not the run that {former} describes: {listed}")


def _is_rate(key: str) -> bool:
    """Whether a key of `trains` says how fast, not what."""
    rates = ("learning_rate", "weight_decay", "warmup", "layer_decay")
    return key.startswith("trains.") and (key.endswith(rates) or ".groups" in key)


def flat(values: Any, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Nested mappings as one, with dots between the levels of keys."""
    if not isinstance(values, dict) or not values:
        return {".".join(keys): values}
    return {name: value for key, inner in values.items() for name, value in flat(inner, (*keys, str(key))).items()}


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
