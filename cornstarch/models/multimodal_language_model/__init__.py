"""The multimodal language model and its processor; files in the order of the data flow, see each first line."""

from cornstarch.models.multimodal_language_model.accounting import PartCost, StepCost, measure_step
from cornstarch.models.multimodal_language_model.anatomy import Features
from cornstarch.models.multimodal_language_model.backbone import BackboneWithHead
from cornstarch.models.multimodal_language_model.callbacks import (
    AveragePool,
    Chain,
    MaskPaddedSounds,
    OutputHiddenStates,
    PixelShuffle,
    SelectFeatures,
    StackRows,
)
from cornstarch.models.multimodal_language_model.concatenated_processing import ConcatenatedProcessor
from cornstarch.models.multimodal_language_model.concatenation import ConcatenatedEncoders
from cornstarch.models.multimodal_language_model.configuration import MultimodalConfig, MultimodalProjectorConfig
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.exporting import Exported, export_to_hf
from cornstarch.models.multimodal_language_model.free import assert_frozen_is_free
from cornstarch.models.multimodal_language_model.imagined import forecast_step
from cornstarch.models.multimodal_language_model.input_rules import FramedPictures, InputRule, TiledPictures
from cornstarch.models.multimodal_language_model.limits import MediaLimits
from cornstarch.models.multimodal_language_model.llm_callbacks import (
    DeepFeatures,
    FeaturesSeeEachOther,
    OutputDeepFeatures,
    RotaryPositions,
)
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector
from cornstarch.models.multimodal_language_model.resampler import Resampler
from cornstarch.models.multimodal_language_model.tiles import JoinTiles, SplitTiles, UnpadImages

__all__ = [
    "AveragePool",
    "BackboneWithHead",
    "Chain",
    "ConcatenatedEncoders",
    "ConcatenatedProcessor",
    "DeepFeatures",
    "Exported",
    "Features",
    "FeaturesSeeEachOther",
    "FramedPictures",
    "InputRule",
    "JoinTiles",
    "MaskPaddedSounds",
    "MediaLimits",
    "ModalEncoderModule",
    "MultimodalConfig",
    "MultimodalModel",
    "MultimodalProcessor",
    "MultimodalProjector",
    "MultimodalProjectorConfig",
    "OutputDeepFeatures",
    "OutputHiddenStates",
    "PartCost",
    "PixelShuffle",
    "Resampler",
    "RotaryPositions",
    "SelectFeatures",
    "SplitTiles",
    "StackRows",
    "StepCost",
    "TiledPictures",
    "UnpadImages",
    "assert_frozen_is_free",
    "export_to_hf",
    "forecast_step",
    "measure_step",
]
