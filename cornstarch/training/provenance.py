"""9b. What a run's folder says of its model: how it was trained, and what it is made of; for a model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model.model_card import is_on_the_hub
from cornstarch.training.config import (
    DigitsAndTonesConfig,
    DigitsConfig,
    MixtureConfig,
    RowsConfig,
    SourceConfig,
    TrainConfig,
)
from cornstarch.training.folder import RunFolder
from cornstarch.training.metrics import read_metrics
from cornstarch.training.reading import read_config


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model comes from.

    Attributes:
        text: how it was trained, as Markdown; None where no run's folder says it.
        base_model: the names on the hub of its parts.
    """

    text: str | None = None
    base_model: tuple[str, ...] = ()


def find_run(model: str | Path) -> RunFolder | None:
    """The folder of the run that a model belongs to.

    Args:
        model: a run folder, its model, or a checkpoint in it.

    Returns:
        The folder; None if there is none.
    """
    place = Path(model).resolve()
    for folder in (place, *list(place.parents)[:3]):
        if RunFolder(folder).config.is_file():
            return RunFolder(folder)
    return None


def read(model: str | Path) -> Provenance:
    """What the run of a model says of it.

    Args:
        model: a run folder, its model, or a checkpoint in it.

    Returns:
        As much as there is; a config that can no longer be read says nothing.
    """
    run = find_run(model)
    if run is None:
        return Provenance()
    try:
        config = read_config(run.config)
    except ArgumentError:
        return Provenance(text="The run's config cannot be read by this version of Cornstarch.")
    return Provenance(text="\n".join(_lines(config, _figures(run, _step_of(model)))), base_model=_base_model(config))


def _step_of(model: str | Path) -> int | None:
    """The step of the checkpoint that is named; None for the end of the run."""
    names = (part.partition("-") for part in Path(model).parts)
    return next((int(number) for name, _, number in names if name == "step" and number.isdecimal()), None)


def _figures(run: RunFolder, step: int | None) -> dict[str, Any]:
    """The last of each figure up to a step."""
    found: dict[str, Any] = {}
    for line in read_metrics(run.metrics) if run.metrics.is_file() else []:
        if step is None or line.get("step", 0) <= step:
            found |= {name: value for name, value in line.items() if value is not None}
    return found


def _lines(config: TrainConfig, figures: Mapping[str, Any]) -> list[str]:
    training, optimizer = config.training, config.optimizer
    lines = [
        f"- {figures.get('step', 'unknown')} steps of {training.batch_size} samples, seed {training.seed}, precision "
        f"{training.precision}",
        f"- optimizer {optimizer.name}, schedule {config.schedule.name}",
        f"- data: {_source(config.data.train)}",
    ]
    trains = [f"{part} {entry.mode}" for part, entry in config.trains.items()]
    if trains:
        lines.append(f"- what trained: {', '.join(trains)}")
    names = [name for name in figures if name == "loss" or name.startswith("eval_")]
    for name in sorted(names, key=lambda name: (name != "loss", name)):
        lines.append(f"- {name}: {figures[name]:.4g}")
    return lines


def _source(source: SourceConfig | None) -> str:
    if isinstance(source, MixtureConfig):
        return f"a mixture of {'; '.join(map(_source, source.sources))}"
    if isinstance(source, RowsConfig):
        what = {"llava": "conversations in LLaVA's format", "caption": "images with texts"}
        return f"{what.get(source.source, f'rows in the format {source.source}')}, {Path(source.path).name}"
    if isinstance(source, DigitsAndTonesConfig):
        return "questions about the handwritten digits of scikit-learn and synthesised keys of a telephone"
    if isinstance(source, DigitsConfig):
        return "questions about the handwritten digits of scikit-learn"
    return "given by the caller"


def _base_model(config: TrainConfig) -> tuple[str, ...]:
    parts = [config.model, *config.model.encoders.values(), config.model.language_model]
    names = [part.path for part in parts if part is not None and part.path is not None]
    return tuple(dict.fromkeys(name for name in names if is_on_the_hub(name)))
