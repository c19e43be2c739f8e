"""6g. Where each part of a model came from: kept with the part, saved with the model."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from cornstarch.models.multimodal_language_model import freezing, library
from cornstarch.models.multimodal_language_model.concatenation import ConcatenatedEncoders

_PLACE = "cornstarch_source"  # the attribute of a module that says where it came from
_FIELDS = ("path", "revision", "class", "part_of")


def record(module: nn.Module, path: Any, config: Any = None, revision: str | None = None) -> None:
    """Note on a part where it was loaded from.

    Args:
        module: the part, wrapped or not.
        path: the folder or the name on the hub.
        config: of the whole that the part was in, which knows the commit that was read; None takes the part's own.
        revision: that was asked for; counts where no commit is known.
    """
    base = freezing.unwrap(module)
    own = getattr(base, "config", None)
    config = own if config is None else config
    whole = config is not own and type(config) is not type(own)
    source = {
        "path": str(path),
        "revision": getattr(config, "_commit_hash", None) or revision,
        "class": library.path_of(type(base)),
        "part_of": next(iter(getattr(config, "architectures", None) or [type(config).__name__])) if whole else None,
    }
    vars(base)[_PLACE] = source


def of(parts: Mapping[str, nn.Module], origin: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Where parts came from.

    Args:
        parts: by name, wrapped or not.
        origin: of the model, if it was imported as a whole.

    Returns:
        Part to `path`, `revision` (the commit where it is known), `class`, and `part_of`: the class of the model that
        the part was taken out of. All but the class are None where nothing is known, as of a part that was made here.
    """
    return {name: _source(freezing.unwrap(part), origin or {}) for name, part in _pieces(parts)}


def restore(parts: Mapping[str, nn.Module], described: Mapping[str, Mapping[str, Any]]) -> None:
    """Note on parts what `of` said when they were saved; of where they were saved nothing is said."""
    for name, part in _pieces(parts):
        entry = dict.fromkeys(_FIELDS) | dict(described.get(name, {}))
        vars(freezing.unwrap(part))[_PLACE] = {field: entry[field] for field in _FIELDS}


def _pieces(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Parts, and of one that is several encoders side by side each as `{part}.{name}`."""
    for name, part in parts.items():
        base = freezing.unwrap(part)
        if isinstance(base, ConcatenatedEncoders):
            yield from ((f"{name}.{inner}", encoder) for inner, encoder in base.encoders.items())
        else:
            yield name, part


def _source(part: nn.Module, origin: Mapping[str, Any]) -> dict[str, Any]:
    config, cls = getattr(part, "config", None), library.path_of(type(part))
    noted = vars(part).get(_PLACE)
    if noted is not None:
        return {**noted, "class": cls}
    path = getattr(config, "_name_or_path", None)
    if path:
        return {"path": path, "revision": getattr(config, "_commit_hash", None), "class": cls, "part_of": None}
    if origin.get("path"):
        whole = origin.get("class")
        return {"path": origin["path"], "revision": origin.get("revision"), "class": cls, "part_of": whole}
    return {"path": None, "revision": None, "class": cls, "part_of": None}
