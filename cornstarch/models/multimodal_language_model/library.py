"""Finding again, by what a file says, a class of an installed library; nothing else a file names is ever run."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import transformers

from cornstarch.errors import ArgumentError, CheckpointError, MissingFileError
from cornstarch.models.multimodal_language_model import backbone

# A text backbone with this package's own head: the one class outside `transformers` that a file may name.
_WITH_HEAD = re.compile(re.escape(f"{backbone.__name__}.{backbone.BackboneWithHead.__name__}") + r"\[([\w.]+)\]")


def path_of(cls: type) -> str:
    """The name under which `find_class` finds a class again."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_found(cls: type) -> bool:
    """Whether a class is one of `transformers`' own, and so can be found by name."""
    return cls.__module__.startswith("transformers.")


def find_class(path: str, where: str) -> Any:
    """A class of `transformers` by its path, or this package's language model around such a class.

    Args:
        path: as `path_of` gave it.
        where: which part of what is being loaded it is for, for messages.

    Returns:
        The class, or its stand-in where an optional package that it needs is not installed.

    Raises:
        CheckpointError: if the path is not one of `transformers`, or the installed version has no such class.
    """
    around = _WITH_HEAD.fullmatch(path)
    if around is not None:
        try:
            return backbone.with_head(find_class(around[1], where))
        except ArgumentError as error:
            raise CheckpointError(f"{where}: {error}") from None
    module, _, name = path.rpartition(".")
    if not module.startswith("transformers."):
        raise CheckpointError(
            f"{where} was saved with {path}, which is no class of transformers: give the object itself again when "
            "loading"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        # Classes that need an optional package (torchvision) may have a stand-in under their own name.
        found = getattr(transformers, name, None)
    if found is None:
        raise CheckpointError(f"{where} needs {path}, which transformers {transformers.__version__} does not have")
    return found


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        MissingFileError: if it is not there.
        CheckpointError: if it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path} is not there: {path.parent} holds no complete save") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged, it is no JSON: {error}") from error
