"""6b. The shapes that Hugging Face's multimodal models have: which of their modules is which part of a composition.

A shape is told by a model's structure, not by its name. The same table takes a model apart (`importing`) and puts the
parts back where they came from (`returning`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from cornstarch.models.multimodal_language_model import anatomy
from cornstarch.models.multimodal_language_model.callbacks import (
    Chain,
    MaskPaddedSounds,
    OutputHiddenStates,
    PixelShuffle,
    SelectFeatures,
)
from cornstarch.models.multimodal_language_model.configuration import (
    MultimodalProjectorConfig,
    TransformersProjectorConfig,
)
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.llm_callbacks import (
    DeepFeatures,
    FeaturesSeeEachOther,
    OutputDeepFeatures,
    RotaryPositions,
)
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector
from cornstarch.models.multimodal_language_model.tiles import JoinTiles, SplitTiles, UnpadImages


class Shape(NamedTuple):
    """One way in which a multimodal model is put together.

    Attributes:
        name: by which a saved composition says where its parts came from.
        key: the modality.
        modules: place in the composition to place in the original, of every module and parameter that has weights.
            `language_model.base_model` and `language_model.lm_head` stand for the backbone and the head.
        configs: part of the composition to the entry of the original's config that describes it.
        token_id: the entry of the original's config with the id that marks the modality's positions.
        encoder: makes the encoder module of the original.
        callback: makes the callback before the language model, or None.
        fits: whether a model that has all these modules is of this shape.
    """

    name: str
    key: str
    modules: Mapping[str, str]
    configs: Mapping[str, str]
    token_id: str
    encoder: Callable[[PreTrainedModel], ModalEncoderModule]
    callback: Callable[[PreTrainedModel], Any] = lambda original: None
    fits: Callable[[PreTrainedModel], bool] = lambda original: True


def place_of(root: Any, path: str) -> Any:
    """What stands at a dotted path of a module; None if nothing does."""
    for name in path.split("."):
        if isinstance(root, nn.Sequential):
            root = root[int(name)] if int(name) < len(root) else None
        else:
            root = getattr(root, name, None)
    return root


def shape_of(original: PreTrainedModel) -> Shape | None:
    """The shape of a model; None if it is none of these."""
    return next((shape for shape in SHAPES if _has(original, shape) and shape.fits(original)), None)


def _has(original: PreTrainedModel, shape: Shape) -> bool:
    """Whether a model has every module of a shape, and no weights in any other."""
    if any(place_of(original, theirs) is None for theirs in shape.modules.values()):
        return False
    places = tuple(shape.modules.values())
    return all(any(name == place or name.startswith(f"{place}.") for place in places) for name in _names(original))


def _names(original: PreTrainedModel) -> list[str]:
    return [name for name, _ in original.named_parameters(remove_duplicate=False)]


# --- a vision tower, two linears, a language model --------------------------------------------------------------------

_TWO_LINEARS = {
    "vision_encoder.module": "model.vision_tower",
    "vision_encoder.projector.projection.0": "model.multi_modal_projector.linear_1",
    "vision_encoder.projector.projection.2": "model.multi_modal_projector.linear_2",
    "language_model.base_model": "model.language_model",
    "language_model.lm_head": "lm_head",
}
_VISION_CONFIGS = {"vision_encoder.module": "vision_config", "language_model": "text_config"}


def _chosen_layers(config: Any) -> SelectFeatures:
    layers = config.vision_feature_layer
    return SelectFeatures(
        layers=(layers,) if isinstance(layers, int) else tuple(layers),
        skip_first=1 if config.vision_feature_select_strategy == "default" else 0,
    )


def _two_linears(original: Any) -> MultimodalProjector:
    first, second = original.model.multi_modal_projector.linear_1, original.model.multi_modal_projector.linear_2
    config = MultimodalProjectorConfig(
        {"hidden_size": first.in_features},
        {"hidden_size": first.out_features},
        "mlp",
        original.config.projector_hidden_act,
        bias=first.bias is not None,
    )
    with torch.device("meta"):
        projector = MultimodalProjector(config)
    projector.projection = nn.Sequential(first, projector.projection[1], second)
    return projector


def _whole_images(original: Any) -> ModalEncoderModule:
    return ModalEncoderModule(
        original.model.vision_tower,
        _two_linears(original),
        preprocess_callback=OutputHiddenStates(),
        postprocess_module_callback=_chosen_layers(original.config),
    )


def _tiled_images(original: Any) -> ModalEncoderModule:
    config, newline = original.config, original.model.image_newline
    layout = {"resolutions": config.image_grid_pinpoints, "tile": config.vision_config.image_size}
    most = "".join(filter(str.isdigit, getattr(config, "vision_aspect_ratio", "")))
    join = JoinTiles(**layout, width=newline.shape[0], most_tiles=int(most) if most else None)
    join.newline = newline
    return ModalEncoderModule(
        original.model.vision_tower,
        _two_linears(original),
        preprocess_callback=Chain(callbacks=(SplitTiles(**layout), OutputHiddenStates())),
        postprocess_module_callback=_chosen_layers(config),
        postprocess_projector_callback=join,
    )


# --- a tower that projects by itself, positions in three axes ---------------------------------------------------------


def _merging_tower(original: Any) -> ModalEncoderModule:
    tower, width = original.model.visual, {"hidden_size": anatomy.embedding_width(original.model.language_model)}
    return ModalEncoderModule(
        tower,
        MultimodalProjector(MultimodalProjectorConfig(width, width, "identity")),
        postprocess_module_callback=OutputDeepFeatures() if _is_deep(original) else None,
    )


def _is_deep(original: Any) -> bool:
    return place_of(original, "model.visual.deepstack_merger_list") is not None


def _rotary_positions(original: Any) -> Any:
    config = original.config.vision_config
    positions = RotaryPositions(grids={"vision": "image_grid_thw"}, merge=config.spatial_merge_size)
    return Chain(callbacks=(positions, DeepFeatures(keys=("vision",)))) if _is_deep(original) else positions


# --- other projectors -------------------------------------------------------------------------------------------------


def _one_linear(linear: nn.Linear) -> MultimodalProjector:
    config = MultimodalProjectorConfig(
        {"hidden_size": linear.in_features}, {"hidden_size": linear.out_features}, bias=linear.bias is not None
    )
    return MultimodalProjector(config, linear)


def _shuffled_pixels(original: Any) -> ModalEncoderModule:
    tower, connector = original.model.vision_model, original.model.connector
    return ModalEncoderModule(
        tower,
        _one_linear(connector.modality_projection.proj),
        preprocess_callback=UnpadImages(patch=tower.config.patch_size),
        postprocess_module_callback=PixelShuffle(scale=connector.scale_factor),
    )


def _sounds(original: Any) -> ModalEncoderModule:
    return ModalEncoderModule(
        original.model.audio_tower,
        _one_linear(original.model.multi_modal_projector.linear),
        preprocess_callback=MaskPaddedSounds(),
    )


def _pooled_by_projector(original: Any) -> ModalEncoderModule:
    projector = original.model.multi_modal_projector
    config = TransformersProjectorConfig.of(projector, original.config)
    return ModalEncoderModule(original.model.vision_tower, MultimodalProjector(config, projector))


def _seeing_each_other(original: Any) -> FeaturesSeeEachOther:
    return FeaturesSeeEachOther(window=getattr(original.config.get_text_config(), "sliding_window", None))


# The first that fits counts.
SHAPES: tuple[Shape, ...] = (
    Shape("two_linears", "vision", _TWO_LINEARS, _VISION_CONFIGS, "image_token_id", _whole_images),
    Shape(
        "tiles",
        "vision",
        _TWO_LINEARS | {"vision_encoder.postprocess_projector_callback.newline": "model.image_newline"},
        _VISION_CONFIGS,
        "image_token_id",
        _tiled_images,
    ),
    Shape(
        "merging_tower",
        "vision",
        {
            "vision_encoder.module": "model.visual",
            "language_model.base_model": "model.language_model",
            "language_model.lm_head": "lm_head",
        },
        _VISION_CONFIGS,
        "image_token_id",
        _merging_tower,
        _rotary_positions,
        fits=lambda original: hasattr(original.model.visual, "merger"),
    ),
    Shape(
        "shuffled_pixels",
        "vision",
        {
            "vision_encoder.module": "model.vision_model",
            "vision_encoder.projector.projection": "model.connector.modality_projection.proj",
            "language_model.base_model": "model.text_model",
            "language_model.lm_head": "lm_head",
        },
        _VISION_CONFIGS,
        "image_token_id",
        _shuffled_pixels,
        fits=lambda original: hasattr(original.model.connector, "scale_factor"),
    ),
    Shape(
        "features_see_each_other",
        "vision",
        {
            "vision_encoder.module": "model.vision_tower",
            "vision_encoder.projector.projection": "model.multi_modal_projector",
            "language_model.base_model": "model.language_model",
            "language_model.lm_head": "lm_head",
        },
        _VISION_CONFIGS,
        "image_token_id",
        _pooled_by_projector,
        _seeing_each_other,
        fits=lambda original: hasattr(original.model.multi_modal_projector, "mm_input_projection_weight"),
    ),
    Shape(
        "sounds",
        "audio",
        {
            "audio_encoder.module": "model.audio_tower",
            "audio_encoder.projector.projection": "model.multi_modal_projector.linear",
            "language_model.base_model": "model.language_model",
            "language_model.lm_head": "lm_head",
        },
        {"audio_encoder.module": "audio_config", "language_model": "text_config"},
        "audio_token_id",
        _sounds,
    ),
)
