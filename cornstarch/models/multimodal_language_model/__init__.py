"""The multimodal language model and its processor; files in the order of the data flow, see each first line."""

from cornstarch.models.multimodal_language_model.callbacks import AveragePool, Chain, OutputHiddenStates, SelectFeatures
from cornstarch.models.multimodal_language_model.configuration import MultimodalConfig, MultimodalProjectorConfig
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.exporting import Exported, export_to_hf
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector

__all__ = [
    "AveragePool",
    "Chain",
    "Exported",
    "ModalEncoderModule",
    "MultimodalConfig",
    "MultimodalModel",
    "MultimodalProcessor",
    "MultimodalProjector",
    "MultimodalProjectorConfig",
    "OutputHiddenStates",
    "SelectFeatures",
    "export_to_hf",
]
