"""6f. A projector by itself, out of a saved model or a multimodal model of Hugging Face's."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cornstarch import _files
from cornstarch.errors import ArgumentError, CheckpointError
from cornstarch.models.multimodal_language_model import importing, library, manifest, pretrained, weightless
from cornstarch.models.multimodal_language_model.configuration import projector_config
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector


def load_projector(key: str, path: str | Path, *, weights: bool = True, **options: Any) -> MultimodalProjector:
    """The projector of a modality out of a model that was saved, or of a multimodal model of Hugging Face's.

    Of the latter only its own projector is taken, not what stands around it there (chosen layers, joined tiles);
    weights are read from safetensors files only.

    Args:
        key: the modality; the only one of the other model if it has none of this name.
        path: a folder with a model saved by `save_pretrained` (or a run folder's `model`), or a folder or a name on the
            hub with a multimodal model of Hugging Face's.
        weights: read them; otherwise parameters are on the meta device.
        **options: for Hugging Face's `from_pretrained`, such as `dtype` and `revision`; of them only `dtype` is for a
            saved model.

    Returns:
        The projector, its weights on the CPU.

    Raises:
        ArgumentError: if there is no such modality, or its projector is the caller's own module.
        CheckpointError: if a file is damaged.
        MissingFileError: if there is no such model.
    """
    folder = Path(path)
    if (folder / "config.json").is_file() and library.read_json(folder / "config.json")["model_type"] == "cornstarch":
        return _files.read(folder, "model", "config.json", lambda place: _saved(key, place, folder, options, weights))
    whole = importing.from_hugging_face(path, weights=weights, **{"use_safetensors": True, **options})
    encoder = whole._modal_encoders[_chosen(key, list(whole.encoders), path)]
    projector = encoder.projector
    assert projector is not None, "a model gives every encoder a projector"
    origin = whole.origin or {}
    config = library.find_class(origin["config_class"], "the model's origin").from_dict(dict(origin["config"]))
    config._commit_hash = getattr(whole.language_model.config, "_commit_hash", None)
    manifest.record(projector, path, config, options.get("revision"))
    return projector


def _chosen(key: str, keys: list[str], path: Any) -> str:
    if key in keys:
        return key
    if len(keys) == 1:
        return keys[0]
    raise ArgumentError(f"{path} has no projector for {key!r}; its modalities: {', '.join(keys) or 'none'}")


def _saved(key: str, folder: Path, path: Path, options: dict[str, Any], weights: bool) -> MultimodalProjector:
    """The projector in a folder in which nothing changes."""
    description = library.read_json(folder / "config.json")
    key = _chosen(key, list(description["encoders"]), path)
    entry = description["encoders"][key]
    if entry["projector"] is None:
        raise ArgumentError(f"{path}: the projector of {key!r} is a module of the caller's own, which is not saved")
    projector: MultimodalProjector = weightless.make(lambda: MultimodalProjector(projector_config(entry["projector"])))
    if not weights:
        return projector
    prefix = f"{key}_encoder.projector."
    state = {
        name.removeprefix(prefix): pretrained.copied(value, options.get("dtype"))
        for file in pretrained.weight_files(folder, description["weight_files"])
        for name, value in pretrained.mapped_tensors(file)
        if name.startswith(prefix)
    }
    try:
        projector.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the projector of {key!r} does not fit its description: {error}") from error
    source = description.get("manifest", {}).get(f"{key}_projector", {})
    manifest.restore({key: projector}, {key: source})
    if source.get("path") is None:  # made there
        manifest.record(projector, path)
    return projector


def fit(
    projector: MultimodalProjector, key: str, path: str | Path, wanted: tuple[int | None, int]
) -> MultimodalProjector:
    """Check that a loaded projector fits between an encoder and a language model.

    Args:
        projector: as loaded.
        key: the modality.
        path: where it was loaded from.
        wanted: width of the rows that it will be given, None if unknown; and the embedding's width.

    Returns:
        The projector.

    Raises:
        ArgumentError: with the widths on both sides.
    """
    found = projector.widths
    if any(None not in pair and pair[0] != pair[1] for pair in zip(found, wanted, strict=True)):
        raise ArgumentError(
            f"the projector of {key!r} in {path} leads from width {_width(found[0])} to {_width(found[1])}; here the "
            f"encoder (with its callbacks) yields width {_width(wanted[0])}, and the language model embeds in width "
            f"{wanted[1]}"
        )
    return projector


def _width(width: int | None) -> str:
    return "unknown" if width is None else str(width)


def as_precise(projector: nn.Module, *dtypes: torch.dtype | None) -> None:
    """Cast a projector to the most precise of some dtypes, as one that is made is."""
    known = [dtype for dtype in dtypes if dtype is not None] or [torch.float32]
    dtype = known[0]
    for other in known[1:]:
        dtype = torch.promote_types(dtype, other)
    projector.to(dtype)
