"""Cornstarch: build, train and run multimodal language models out of unmodified Hugging Face parts."""

from cornstarch.errors import (
    ArgumentError,
    CheckpointError,
    CornstarchError,
    MediaError,
    MissingFileError,
    ModalityMismatchError,
    TrainingError,
    UnknownArgumentError,
)
from cornstarch.models.multimodal_language_model import (
    ModalEncoderModule,
    MultimodalConfig,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
    OutputHiddenStates,
    SelectFeatures,
)
from cornstarch.pipeline_template import PipelineTemplate
from cornstarch.version import __version__

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "CornstarchError",
    "MediaError",
    "MissingFileError",
    "ModalEncoderModule",
    "ModalityMismatchError",
    "MultimodalConfig",
    "MultimodalModel",
    "MultimodalProcessor",
    "MultimodalProjector",
    "MultimodalProjectorConfig",
    "OutputHiddenStates",
    "PipelineTemplate",
    "SelectFeatures",
    "TrainingError",
    "UnknownArgumentError",
    "__version__",
]
