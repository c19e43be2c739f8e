"""7. Checkpoints: everything that decides what comes, in a folder that appears whole or not at all.

    checkpoints/step-<N>/
        model/                   model and processor, as `save_pretrained` leaves them: `cornstarch generate` takes it
        state.safetensors        tensors of the optimizer and of random generators
        state.json               the rest of the state, and the figures of a check at this step

Nothing is pickled.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cornstarch._files import flush
from cornstarch.errors import CheckpointError
from cornstarch.models.multimodal_language_model import MultimodalModel, MultimodalProcessor

_NAME = re.compile(r"step-(\d+)")
_TENSORS, _STATE = "state.safetensors", "state.json"
_WRITING, _REMOVING = ".writing-", ".removing-"
_TENSOR = "tensor:"  # what stands in state.json in the place of a tensor, before its name


def save(
    folder: Path,
    model: MultimodalModel,
    processor: MultimodalProcessor,
    state: Mapping[str, Any],
    figures: Mapping[str, float] | None = None,
) -> Path:
    """Write a checkpoint.

    Args:
        folder: of all checkpoints.
        model: what to save.
        processor: what to save.
        state: of the loop, with `step`; tensors in mappings and lists of JSON values.
        figures: of a check of the model at this step.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if it cannot be written, for want of space say; nothing is left of it then, and others are whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    final = folder / f"step-{state['step']}"
    aside = Path(tempfile.mkdtemp(prefix=_WRITING, dir=folder))
    try:
        model.save_pretrained(aside / "model")
        processor.save_pretrained(aside / "model")
        tensors: dict[str, Tensor] = {}
        plain = _without_tensors(state, tensors, "")
        save_file(tensors, aside / _TENSORS)
        text = json.dumps({"format": 1, "state": plain, "figures": dict(figures or {})})
        (aside / _STATE).write_text(text, encoding="utf-8")
        aside.chmod(0o755)
        for path in aside.rglob("*"):
            flush(path)
        if final.exists():
            final.rename(_removed(final))
        aside.rename(final)
        flush(folder)
    except SafetensorError as error:  # how its writer reports a full disk
        raise OSError(f"{final} cannot be written: {error}") from error
    finally:
        _sweep(folder)
    return final


def load(checkpoint: Path) -> dict[str, Any]:
    """The loop's state in a checkpoint.

    Args:
        checkpoint: its folder.

    Returns:
        The state, as it was given to `save`.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    try:
        plain = _read(checkpoint)["state"]
        return _with_tensors(plain, load_file(checkpoint / _TENSORS))  # type: ignore[no-any-return]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{checkpoint} is no whole checkpoint: {error!r}") from error


def last(folder: Path) -> Path | None:
    """The checkpoint with the highest step; None if there is none."""
    return max(_all(folder), key=_step, default=None)


def keep(folder: Path, newest: int, best_by: str) -> None:
    """Remove all but the newest checkpoints and the best.

    Args:
        folder: of all checkpoints.
        newest: how many to keep by step.
        best_by: the figure that makes one the best, the lowest of a loss and the highest of anything else.
    """
    found = sorted(_all(folder), key=_step)
    kept = {*found[-newest:], best(folder, best_by)}
    for checkpoint in found:
        if checkpoint not in kept:
            checkpoint.rename(_removed(checkpoint))  # half of one must not be taken for a whole one
    _sweep(folder)


def best(folder: Path, best_by: str) -> Path | None:
    """The checkpoint with the best figure, the earlier of equals; None if none has the figure."""
    sign = 1 if best_by.endswith("loss") else -1
    figures = {checkpoint: _read(checkpoint)["figures"].get(best_by) for checkpoint in sorted(_all(folder), key=_step)}
    with_one = [checkpoint for checkpoint, figure in figures.items() if figure is not None]
    return min(with_one, key=lambda checkpoint: sign * figures[checkpoint], default=None)


def _removed(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{_REMOVING}{checkpoint.name}-{os.getpid()}")


def _sweep(folder: Path) -> None:
    """Remove what was not written, or not removed, to its end."""
    for leftover in (*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_REMOVING}*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _all(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / _STATE).is_file())


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _read(checkpoint: Path) -> Any:
    try:
        return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / _STATE} is damaged: {error}") from error


def _without_tensors(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The value as JSON, its tensors put aside under the names that stand in their places."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone().contiguous()
        return f"{_TENSOR}{name}"
    if isinstance(value, Mapping):
        # Pairs, since JSON would make text of numbers as keys.
        return {"pairs": [[key, _without_tensors(inner, tensors, f"{name}/{key}")] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, tensors, f"{name}/{index}") for index, inner in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, Mapping):
        return {key: _with_tensors(inner, tensors) for key, inner in value["pairs"]}
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    return value
