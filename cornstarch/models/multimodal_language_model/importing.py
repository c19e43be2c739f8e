"""6c. In from Hugging Face: a pretrained multimodal model taken apart by structure."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)

from cornstarch.errors import ArgumentError, MissingFileError
from cornstarch.models.multimodal_language_model import library, manifest, shapes, weightless
from cornstarch.models.multimodal_language_model.backbone import joined
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.shapes import Shape

# Of these, what is taken apart was compared with the original, logit by logit. Others may have a shape and differ in
# what no structure shows.
_COMPARED = (
    "gemma3",
    "idefics3",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)


def from_hugging_face(name_or_path: str | Path, *, weights: bool = True, **kwargs: Any) -> MultimodalModel:
    """Load a Hugging Face multimodal model and build a `MultimodalModel` of its parts.

    Args:
        name_or_path: a folder or a name on the hub.
        weights: read them; otherwise parameters stay on the meta device.
        **kwargs: for the `from_pretrained` of Hugging Face's class.

    Returns:
        The model in evaluation mode, its modality key `"vision"` or `"audio"`.

    Raises:
        ArgumentError: if the model has none of the shapes that can be taken apart.
        MissingFileError: if there is no such model.
    """
    path = Path(name_or_path) / "config.json"
    if path.is_file() and library.read_json(path).get("model_type") == "cornstarch":
        raise ArgumentError(f"{name_or_path} is a saved MultimodalModel: use MultimodalModel.from_pretrained")
    trusted = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
    try:
        config = AutoConfig.from_pretrained(name_or_path, **trusted)
    except OSError as error:
        raise MissingFileError(
            f"{name_or_path} is no folder with a model, and no name on the hub that can be reached"
        ) from error
    classes = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
    cls = next((cls for cls in classes if type(config) in cls._model_mapping), None)
    if cls is None:
        raise ArgumentError(f"{name_or_path} holds a {config.model_type!r}, which is no multimodal language model")
    if weights:
        original = cls.from_pretrained(name_or_path, **kwargs)
    else:
        original = weightless.make(lambda: cls.from_config(copy.deepcopy(config)))
    model = take_apart(original)
    commit = getattr(config, "_commit_hash", None)
    model.origin = {**(model.origin or {}), "path": str(name_or_path), "revision": commit or kwargs.get("revision")}
    for part, *_ in model.parts.values():
        manifest.record(part, name_or_path, config, kwargs.get("revision"))
    return model


def take_apart(original: PreTrainedModel) -> MultimodalModel:
    """Build a `MultimodalModel` of a loaded model's own modules; weights are moved, not copied.

    Args:
        original: a model of one of the shapes in `shapes.SHAPES`; not to be used afterwards.

    Returns:
        The model, in evaluation mode.

    Raises:
        ArgumentError: if the model has another shape.
    """
    shape = shapes.shape_of(original)
    if shape is None:
        body = getattr(original, "model", original)
        found = ", ".join(name for name, _ in body.named_children())
        raise ArgumentError(
            f"{type(original).__name__} cannot be taken apart: its modules ({found}) are arranged in none of the known "
            f"ways ({', '.join(known.name for known in shapes.SHAPES)}). Load its parts one by one, and compose them"
        )
    if original.config.model_type not in _COMPARED:
        warnings.warn(
            f"{type(original).__name__} has the modules of the shape {shape.name!r}, but was never compared with what "
            "is made of it: compare logits with the original before you rely on them",
            stacklevel=2,
        )
    origin = {
        "class": library.path_of(type(original)),
        "config_class": library.path_of(type(original.config)),
        "config": json.loads(original.config.to_json_string(use_diff=False)),
        "shape": shape.name,
    }
    encoder, callback = shape.encoder(original), shape.callback(original)
    model = MultimodalModel({shape.key: encoder}, _language_model(original, shape), callback)
    model.set_modality_token_ids({shape.key: int(getattr(original.config, shape.token_id))})
    model.origin = origin
    return model.eval()  # type: ignore[no-any-return]


def _language_model(original: PreTrainedModel, shape: Shape) -> nn.Module:
    """The causal language model that the backbone and the head belong to."""
    backbone: Any = shapes.place_of(original, shape.modules["language_model.base_model"])
    head: Any = shapes.place_of(original, shape.modules["language_model.lm_head"])
    return joined(backbone, head, original.generation_config)  # type: ignore[no-any-return]
