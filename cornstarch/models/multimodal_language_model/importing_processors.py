"""6c. In from Hugging Face: the processor that belongs to a model that was taken apart."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import cached_file

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import parts
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

# What Hugging Face's processors write beside the tokenizer's own files.
_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_WHERE = ("cache_dir", "local_files_only", "revision", "token")


def from_hugging_face(
    cls: type[MultimodalProcessor], name_or_path: str | Path, model: MultimodalModel, **kwargs: Any
) -> MultimodalProcessor:
    """See `MultimodalProcessor.from_pretrained_multimodal_model`."""
    origin = model.origin or {}
    if "shape" not in origin or len(model.encoders) != 1:
        raise ArgumentError(
            "the model was not taken out of a Hugging Face multimodal model: load it with "
            "MultimodalModel.from_pretrained_multimodal_model, or make its processor with MultimodalProcessor(...)"
        )
    files = read_files(name_or_path, **{name: value for name, value in kwargs.items() if name in _WHERE})
    ((key, encoder),) = model._modal_encoders.items()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{name_or_path} has no tokenizer: {str(error).splitlines()[0]}") from error
    template = chat_template(files)
    if template is not None:
        tokenizer.chat_template = template
    mark = tokenizer.convert_ids_to_tokens(model.modality_token_ids[key])
    if not isinstance(mark, str):
        raise ArgumentError(
            f"{name_or_path}: its tokenizer has no token of the id {model.modality_token_ids[key]}, which marks an "
            "input in the model's config"
        )
    processors = {key: parts.load_processor(encoder.module, name_or_path, **kwargs)}
    processor = cls(processors, tokenizer, model, predefined_tokens={key: mark})
    processor.origin_files = files
    return processor


def read_files(name_or_path: str | Path, **where: Any) -> dict[str, str]:
    """The text files of a checkpoint's processor, but for its tokenizer's.

    Args:
        name_or_path: a folder or a name on the hub.
        **where: for the hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        Name to contents, of those that there are.
    """
    found = {}
    for name in _FILES:
        path = cached_file(
            str(name_or_path),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
        if path is not None:
            found[name] = Path(path).read_text(encoding="utf-8")
    return found


def chat_template(files: Mapping[str, str]) -> Any:
    """The chat template in a processor's files; None if only the tokenizer has one."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    for name in ("chat_template.json", "processor_config.json"):
        found = json.loads(files.get(name, "{}")).get("chat_template")
        if found is not None:
            return found
    return None
