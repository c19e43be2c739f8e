"""1g. Saving and loading a processor.

multimodal_processor.json       marks, rules, classes, and the text files of the processor that it was made of
tokenizer/                      Hugging Face's own files
processors/{key}/               Hugging Face's own files of each modality's processor
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, FeatureExtractionMixin
from transformers.image_processing_base import ImageProcessingMixin

from cornstarch import _files
from cornstarch.errors import CheckpointError, MissingFileError
from cornstarch.models.multimodal_language_model import input_rules, library
from cornstarch.models.multimodal_language_model.concatenated_processing import ConcatenatedProcessor
from cornstarch.models.multimodal_language_model.input_rules import InputRule

_FILE = "multimodal_processor.json"
_FORMAT = 1
# Processors of encoders, the tokenizer, the marks, the original's text files, and the rules.
Saved = tuple[dict[str, Any], Any, dict[str, str], dict[str, str], dict[str, InputRule]]


def save(processor: Any, directory: Path) -> None:
    """Write a processor into a folder; see `MultimodalProcessor.save_pretrained`."""
    with _files.replacing(directory, "processor") as folder:
        processor.llm_tokenizer.save_pretrained(folder / "tokenizer")
        for key, inner in processor.encoder_processors.items():
            if hasattr(inner, "save_pretrained"):
                inner.save_pretrained(folder / "processors" / key)
        description = {
            "format": _FORMAT,
            "encoder_processors": {key: _described(p) for key, p in processor.encoder_processors.items()},
            "tokens": processor.tokens,
            "num_feature_calculation_funcs": sorted(processor.num_feature_calculation_funcs),
            "origin_files": processor.origin_files,
            "rules": {key: input_rules.describe(rule) for key, rule in processor.rules.items() if rule != InputRule()},
        }
        (folder / _FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read(
    directory: Path,
    functions: Mapping[str, Any],
    given: Mapping[str, Any],
    rules: Mapping[str, InputRule],
    trust_remote_code: bool,
) -> Saved:
    """What a processor is made of, from a folder; see `MultimodalProcessor.from_pretrained`."""
    return _files.read(
        directory, "processor", _FILE, lambda folder: _read(folder, functions, given, rules, trust_remote_code)
    )


def _read(
    folder: Path,
    functions: Mapping[str, Any],
    given: Mapping[str, Any],
    rules: Mapping[str, InputRule],
    trust_remote_code: bool,
) -> Saved:
    """What a processor is made of, from a folder in which nothing changes."""
    if folder.is_dir() and not (folder / _FILE).is_file():
        raise MissingFileError(
            f"{folder} holds no processor ({_FILE} is not there): save it with processor.save_pretrained, or give "
            "Trainer processing_class=processor"
        )
    description = library.read_json(folder / _FILE)
    if description["format"] > _FORMAT:
        raise CheckpointError(f"{folder} has format {description['format']}, this version reads up to {_FORMAT}")
    missing = [key for key in description["num_feature_calculation_funcs"] if key not in functions]
    if missing:
        raise CheckpointError(
            f"{folder} was saved with a counting function of the caller's own for {', '.join(missing)}: pass it "
            "again as num_feature_calculation_funcs"
        )
    saved = description.get("rules", {})
    missing = [key for key, entry in saved.items() if "custom" in (entry["text"] or {}) and key not in rules]
    if missing:
        raise CheckpointError(
            f"{folder} was saved with a text function of the caller's own for {', '.join(missing)} "
            f"({saved[missing[0]]['text']['custom']}): pass its rule again, rules={{{missing[0]!r}: InputRule(...)}}"
        )
    processors = dict(given)
    for key, path in description["encoder_processors"].items():
        if key not in processors:
            processors[key] = _read_processor(folder, key, path)
    load = functools.partial(AutoTokenizer.from_pretrained, trust_remote_code=trust_remote_code)
    tokenizer = _load(folder / "tokenizer", "tokenizer_config.json", load)
    built = {key: rules[key] if key in rules else input_rules.build(entry) for key, entry in saved.items()}
    return (
        processors,
        tokenizer,
        dict(description["tokens"]),
        dict(description.get("origin_files", {})),
        {**rules, **built},
    )


def _described(processor: Any) -> str | dict[str, str]:
    """By what `_read_processor` finds a processor's class, or those of the processors in it."""
    if type(processor) is ConcatenatedProcessor:
        return {name: library.path_of(type(inner)) for name, inner in processor.processors.items()}
    return library.path_of(type(processor))


def _read_processor(folder: Path, key: str, path: str | Mapping[str, str]) -> Any:
    if isinstance(path, Mapping):
        return ConcatenatedProcessor(
            {name: _read_processor(folder, f"{key}.{name}", inner) for name, inner in path.items()}
        )
    if not path.startswith("transformers."):
        raise CheckpointError(
            f"{folder} was saved with a processor of the caller's own for {key!r} ({path}): pass it again, "
            f"encoder_processors={{{key!r}: ...}}"
        )
    if not all(name.isidentifier() for name in key.split(".")):
        raise CheckpointError(f"{folder / _FILE} has the modality key {key!r}, which is no identifier")
    where = f"encoder_processors[{key!r}]"
    found: Any = library.find_class(path, where)
    if not isinstance(found, type) or not issubclass(found, ImageProcessingMixin | FeatureExtractionMixin):
        raise CheckpointError(f"{where}: {path} is no processor of images, videos or sounds")
    return _load(folder.joinpath("processors", *key.split(".")), "preprocessor_config.json", found.from_pretrained)  # type: ignore[attr-defined]


def _load(place: Path, config: str, load: Callable[[Path], Any]) -> Any:
    """What Hugging Face's `load` reads from a folder, which must hold `config`: without it, defaults would be taken."""
    if not library.read_json(place / config):
        raise CheckpointError(f"{place / config} is damaged, it is empty")
    try:
        return load(place)
    except ImportError:  # an optional package is not installed
        raise
    except Exception as error:  # the tokenizers library raises no class of its own
        raise CheckpointError(f"{place} is damaged or incomplete: {error}") from error
