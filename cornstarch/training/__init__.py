"""Training: a config in, a run folder out; and every piece of that by itself.

Files stand in the order of a run: config (and reading it) -> building -> selection -> optimizers and schedules -> loop
-> evaluation -> checkpoints -> metrics -> the report, and the run that puts them together.
"""

from cornstarch.training.building import build_model, load_run
from cornstarch.training.config import (
    CallbacksConfig,
    DataConfig,
    DigitsAndTonesConfig,
    DigitsConfig,
    EncoderConfig,
    EvaluationConfig,
    GroupConfig,
    LanguageModelConfig,
    LimitsConfig,
    LlavaConfig,
    MixtureConfig,
    ModelConfig,
    NamedConfig,
    OptimizerConfig,
    PartConfig,
    ProcessorConfig,
    ProjectorConfig,
    QuantizationConfig,
    RowsConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
    TrainConfig,
    TrainingConfig,
    TrainsConfig,
)
from cornstarch.training.data_check import DataCheck, check_data
from cornstarch.training.evaluation import Evaluation, answer, evaluate
from cornstarch.training.loop import Callback, Loop
from cornstarch.training.metrics import read_metrics
from cornstarch.training.optimizers import make_optimizer, parameter_groups
from cornstarch.training.reading import parse_config, read_config, to_yaml
from cornstarch.training.record import StepRecord
from cornstarch.training.report import part_rows, part_table, sample_text
from cornstarch.training.run import Result, train
from cornstarch.training.schedules import SCHEDULES, make_schedule
from cornstarch.training.selection import choose
from cornstarch.training.sourcing import make_source

__all__ = [
    "SCHEDULES",
    "Callback",
    "CallbacksConfig",
    "DataCheck",
    "DataConfig",
    "DigitsAndTonesConfig",
    "DigitsConfig",
    "EncoderConfig",
    "Evaluation",
    "EvaluationConfig",
    "GroupConfig",
    "LanguageModelConfig",
    "LimitsConfig",
    "LlavaConfig",
    "Loop",
    "MixtureConfig",
    "ModelConfig",
    "NamedConfig",
    "OptimizerConfig",
    "PartConfig",
    "ProcessorConfig",
    "ProjectorConfig",
    "QuantizationConfig",
    "Result",
    "RowsConfig",
    "RunConfig",
    "ScheduleConfig",
    "StepRecord",
    "TowerConfig",
    "TrainConfig",
    "TrainingConfig",
    "TrainsConfig",
    "answer",
    "build_model",
    "check_data",
    "choose",
    "evaluate",
    "load_run",
    "make_optimizer",
    "make_schedule",
    "make_source",
    "parameter_groups",
    "parse_config",
    "part_rows",
    "part_table",
    "read_config",
    "read_metrics",
    "sample_text",
    "to_yaml",
    "train",
]
