"""6b. In from Hugging Face: a pretrained multimodal model taken apart by structure."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import library
from cornstarch.models.multimodal_language_model.callbacks import OutputHiddenStates, SelectFeatures
from cornstarch.models.multimodal_language_model.configuration import MultimodalProjectorConfig
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector

_PARTS = ("vision_tower", "multi_modal_projector", "language_model")


def from_hugging_face(name_or_path: str | Path, **kwargs: Any) -> MultimodalModel:
    """Load a Hugging Face multimodal model and build a `MultimodalModel` of its parts.

    Args:
        name_or_path: a folder or a name on the hub.
        **kwargs: for `AutoModelForImageTextToText.from_pretrained`.

    Returns:
        The model in evaluation mode, its modality key `"vision"`.

    Raises:
        ArgumentError: if the model is not built of a vision tower, a two-layer projector and a language model.
    """
    config = Path(name_or_path) / "config.json"
    if config.is_file() and library.read_json(config).get("model_type") == "cornstarch":
        raise ArgumentError(f"{name_or_path} is a saved MultimodalModel: use MultimodalModel.from_pretrained")
    return take_apart(AutoModelForImageTextToText.from_pretrained(name_or_path, **kwargs))


def take_apart(original: PreTrainedModel) -> MultimodalModel:
    """Build a `MultimodalModel` of a loaded model's own modules; weights are moved, not copied.

    Args:
        original: a model of LLaVA-1.5's shape (https://arxiv.org/abs/2310.03744); not to be used afterwards.

    Returns:
        The model.

    Raises:
        ArgumentError: if the model has another shape.
    """
    body, config = original.model, original.config
    missing = [name for name in _PARTS if not hasattr(body, name)]
    linears = [name for name, _ in body.multi_modal_projector.named_parameters()] if not missing else []
    if missing or not set(linears) <= {f"linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}:
        found = ", ".join(name for name, _ in body.named_children())
        raise ArgumentError(
            f"{type(original).__name__} cannot be taken apart: expected {', '.join(_PARTS)} with a projector of two "
            f"linear layers, found {found}" + (f" and projector weights {', '.join(linears)}" if linears else "")
        )
    if hasattr(body, "image_newline"):
        raise ArgumentError(f"{type(original).__name__} tiles its images with newline features, which is not supported")
    layers = config.vision_feature_layer
    encoder = ModalEncoderModule(
        body.vision_tower,
        _projector(body.multi_modal_projector, config.projector_hidden_act),
        preprocess_callback=OutputHiddenStates(),
        postprocess_module_callback=SelectFeatures(
            layers=(layers,) if isinstance(layers, int) else tuple(layers),
            skip_first=1 if config.vision_feature_select_strategy == "default" else 0,
        ),
    )
    model = MultimodalModel({"vision": encoder}, _language_model(original))
    model.set_modality_token_ids({"vision": config.image_token_id})
    return model.eval()  # type: ignore[no-any-return]


def _projector(original: Any, activation: str) -> MultimodalProjector:
    first, second = original.linear_1, original.linear_2
    config = MultimodalProjectorConfig(
        {"hidden_size": first.in_features}, {"hidden_size": first.out_features}, "mlp", activation
    )
    with torch.device("meta"):
        projector = MultimodalProjector(config)
    projector.projection = nn.Sequential(first, projector.projection[1], second)
    return projector


def _language_model(original: PreTrainedModel) -> PreTrainedModel:
    """The causal language model that the backbone and the head belong to."""
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(original.config.get_text_config())
    setattr(language_model, language_model.base_model_prefix, original.model.language_model)
    language_model.set_output_embeddings(original.lm_head)
    language_model.generation_config = original.generation_config
    return language_model
