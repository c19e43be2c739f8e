"""1. What a run is, as data: typed, documented, checked when it is made.

The docstring under a field is what `cornstarch train --help` says about it. Nothing here loads or builds anything.
"""

from cornstarch.training.config.checking import NO_SUCH_FIELD, FieldError, problems
from cornstarch.training.config.data import (
    DataConfig,
    DigitsAndTonesConfig,
    DigitsConfig,
    LimitsConfig,
    LlavaConfig,
    MixtureConfig,
    OneSourceConfig,
    RowsConfig,
    SourceConfig,
)
from cornstarch.training.config.model import (
    CallbacksConfig,
    EncoderConfig,
    LanguageModelConfig,
    ModelConfig,
    NamedConfig,
    PartConfig,
    ProcessorConfig,
    ProjectorConfig,
    QuantizationConfig,
    TowerConfig,
)
from cornstarch.training.config.training import (
    EvaluationConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from cornstarch.training.config.trains import GroupConfig, TrainsConfig
from cornstarch.training.config.whole import TrainConfig

__all__ = [
    "NO_SUCH_FIELD",
    "CallbacksConfig",
    "DataConfig",
    "DigitsAndTonesConfig",
    "DigitsConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FieldError",
    "GroupConfig",
    "LanguageModelConfig",
    "LimitsConfig",
    "LlavaConfig",
    "MixtureConfig",
    "ModelConfig",
    "NamedConfig",
    "OneSourceConfig",
    "OptimizerConfig",
    "PartConfig",
    "ProcessorConfig",
    "ProjectorConfig",
    "QuantizationConfig",
    "RowsConfig",
    "RunConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TowerConfig",
    "TrainConfig",
    "TrainingConfig",
    "TrainsConfig",
    "problems",
]
