"""1e. A whole run."""

from dataclasses import field
from typing import Annotated

from pydantic import BeforeValidator

from cornstarch.training.config.checking import FieldError, config_class
from cornstarch.training.config.data import DataConfig, RowsConfig
from cornstarch.training.config.model import ModelConfig
from cornstarch.training.config.training import (
    EvaluationConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from cornstarch.training.config.trains import TrainsConfig, from_mode


@config_class
class TrainConfig:
    """A whole run: `cornstarch train CONFIG.yaml`, or `cornstarch.train(config)`."""

    model: ModelConfig
    """The model: its parts, or a saved one."""
    trains: dict[str, Annotated[TrainsConfig, BeforeValidator(from_mode)]] = field(default_factory=dict)
    """What trains: part ({key}_encoder, {key}_projector, language_model) to a mode, or to more. Parts that are not
    named train in full, or in a saved model as they did."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is learnt from."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights are changed."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate changes."""
    training: TrainingConfig
    """How long, on how much at once, and where."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How the model is checked."""
    run: RunConfig = field(default_factory=RunConfig)
    """Where a run leaves what it made."""

    def __post_init__(self) -> None:
        if self.model.path is None:
            parts = [f"{key}_{half}" for key in self.model.encoders for half in ("encoder", "projector")]
            parts.append("language_model")
            for part in self.trains:
                _check_name(part, parts, ("trains", part))
        stream = isinstance(self.data.train, RowsConfig) and self.data.train.streaming
        if stream and self.training.steps is None:
            raise FieldError(("training", "steps"), "must be given: nobody knows how long a stream is, found epochs")
        if stream and self.training.length_window > 1:
            raise FieldError(("training", "length_window"), "steps of a stream cannot share out samples; must be 1")
        if self.run.best_by == "eval_exact_match" and not self.evaluation.generate:
            raise FieldError(("run", "best_by"), "eval_exact_match needs evaluation.generate: true")
        quantized = self.model.language_model is not None and self.model.language_model.quantization is not None
        mode = self.trains["language_model"].mode if "language_model" in self.trains else "full"
        if quantized and mode not in ("frozen", "lora"):
            raise FieldError(
                ("trains",), f"a quantised language model trains as lora or is frozen, found language_model: {mode}"
            )


def _check_name(name: str, known: list[str], where: tuple[str, ...]) -> None:
    if name not in known:
        raise FieldError(where, f"the model has no part {name!r}; its parts: {', '.join(known)}")
