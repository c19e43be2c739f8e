"""10. A whole run: a config in, a run folder out. The order in which pieces are put together can be read here."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cornstarch.data import Batches, Collator, Sample, Source, first_samples
from cornstarch.errors import ArgumentError, CheckpointError, TrainingError
from cornstarch.models.multimodal_language_model import MultimodalModel, MultimodalProcessor, anatomy
from cornstarch.training import building, checkpoints, pictures, report, selection
from cornstarch.training.config import ModelConfig, SourceConfig, TrainConfig
from cornstarch.training.devices import check_precision, pick_device
from cornstarch.training.evaluation import AnswerMetric, Evaluation, evaluate
from cornstarch.training.folder import RunFolder
from cornstarch.training.loop import Callback, Loop, LossTerm, Metric, StepRecord, labelled_tokens
from cornstarch.training.metrics import MetricsFile, Trackers, as_line, read_metrics
from cornstarch.training.optimizers import make_optimizer, parameter_groups
from cornstarch.training.progress import Progress
from cornstarch.training.random_state import seed_everything
from cornstarch.training.reading import to_values, to_yaml
from cornstarch.training.schedules import Decay, make_schedule
from cornstarch.training.signals import StopOnSignal

_LOOKED_AT = 64  # samples that are searched for labels before the first step


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to.

    Attributes:
        folder: of the run.
        model: the trained model, in evaluation mode.
        processor: its processor.
        step: the last that was taken.
        stopped: the reason why it was not the last of the run; None if it was.
        figures: of the last check; empty without validation data.
    """

    folder: Path
    model: MultimodalModel
    processor: MultimodalProcessor
    step: int
    stopped: str | None
    figures: dict[str, float]


def train(
    config: TrainConfig,
    *,
    source: Source | None = None,
    validation: Source | None = None,
    callbacks: Sequence[Callback] = (),
    loss_terms: Mapping[str, LossTerm] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    answer_metrics: Mapping[str, AnswerMetric] | None = None,
    schedule: Decay | None = None,
) -> Result:
    """Run what a config describes.

    Args:
        config: the run.
        source: training samples, instead of `config.data.train`.
        validation: samples to check on, instead of `config.data.validation`.
        callbacks: called at the moments of the run, after the run's own.
        loss_terms: name to a function of model, batch and output, whose value is added to the loss.
        metrics: name to a function of batch and output, logged every step.
        answer_metrics: name to a function of samples and generated answers, logged at every check.
        schedule: a function of its own instead of `config.schedule`'s name.

    Returns:
        The trained model, and where everything lies.

    Raises:
        ArgumentError: for a config that cannot be run.
        TrainingError: if nothing can be learnt, or a number is not finite; the last checkpoint is whole then.
    """
    training = config.training
    device = pick_device(training.device)
    check_precision(device, training.precision)
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    folder = RunFolder(config.run.folder)
    pictures.require_matplotlib()
    seed_everything(training.seed)
    source = source or _source(config.data.train)
    validation = validation or (building.make_source(config.data.validation) if config.data.validation else None)
    folder.check(overwrite=config.run.overwrite, resume=config.run.resume)
    resumed = checkpoints.last(folder.checkpoints) if config.run.resume else None
    model, processor = _model(config, resumed)
    model.to(device)
    speed_up(model, gradient_checkpointing=training.gradient_checkpointing, compile=training.compile)
    collator = Collator(processor, config.data.max_length, config.data.turns)
    batches = Batches(
        source,
        collator,
        training.batch_size,
        micro_batch_size=training.micro_batch_size,
        seed=training.seed,
        workers=config.data.workers,
    )
    groups = parameter_groups(model, config.optimizer, config.trains, config.schedule.warmup)
    steps = training.steps or math.ceil((training.epochs or 0) * batches.steps_per_epoch)

    optimizer = make_optimizer(groups, config.optimizer)
    schedule = schedule or make_schedule(config.schedule.name, config.schedule.arguments)
    rows = report.part_rows(model, groups)
    print(report.part_table(rows), flush=True)
    _show_first_sample(collator, source)
    state = checkpoints.load(resumed) if resumed is not None else None
    if resumed is None:
        folder.clear()
    folder.write(to_yaml(config), device)

    with StopOnSignal() as signals, Progress(steps) as progress:
        recorder = _Recorder(config, folder, progress)
        keeper = _Keeper(config, folder, model, processor)
        checker = _Checker(config, model, collator, validation, answer_metrics)
        loop = Loop(
            model,
            optimizer,
            batches,
            steps=steps,
            schedule=schedule,
            max_grad_norm=config.optimizer.max_grad_norm,
            precision=training.precision,
            loss_terms=loss_terms,
            metrics=metrics,
            callbacks=[signals, recorder, checker, keeper, *callbacks],
        )
        if state is not None:
            loop.load_state_dict(state)
        try:
            stopped = loop.run()
        except TrainingError:
            keeper.keep_if_new(loop)  # the weights are those before the step that failed
            raise
        finally:
            recorder.close()
    model.save_pretrained(folder.model)
    processor.save_pretrained(folder.model)
    model.eval()
    return Result(
        folder=folder.path, model=model, processor=processor, step=loop.step, stopped=stopped, figures=checker.figures
    )


# --- before the first step --------------------------------------------------------------------------------------------


def _source(config: SourceConfig | None) -> Source:
    if config is None:
        raise ArgumentError("data.train must be given: there is nothing to train on")
    return building.make_source(config)


def _model(config: TrainConfig, resumed: Path | None) -> tuple[MultimodalModel, MultimodalProcessor]:
    """The model with what trains chosen; or as a checkpoint has it."""
    if resumed is not None:
        return building.build_model(ModelConfig(path=str(resumed)), config.data.template)
    model, processor = building.build_model(config.model, config.data.template)
    added = config.model.language_model.added_tokens if config.model.language_model is not None else []
    selection.choose(model, config.trains, [processor.llm_tokenizer.convert_tokens_to_ids(token) for token in added])
    return model, processor


def speed_up(model: MultimodalModel, *, gradient_checkpointing: bool, compile: bool) -> None:
    """Trade memory for work, or the time of the first step for that of all others; no number changes.

    Args:
        model: changed in place.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: compile every layer with `torch.compile`, when it first runs.
    """
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if compile:
        for modules in model.parts.values():
            for layer in anatomy.layers(modules[0]):
                layer.compile()


def _show_first_sample(collator: Collator, source: Source) -> None:
    """Show what the model will get; refuse data in which nothing is to be learnt."""
    samples = first_samples(source, _LOOKED_AT)
    print(report.sample_text(collator, samples[0]), flush=True)
    if not any(labelled_tokens(collator([sample])) for sample in samples):
        raise TrainingError(
            f"none of the first {len(samples)} samples has a labelled token, so there is no loss that could fall: "
            "labels are on what the assistant says; is data.max_length so short that answers are cut off?"
        )


# --- what happens at the moments of a run -----------------------------------------------------------------------------


class _Recorder(Callback):
    """Writes metrics, shows progress, draws the loss."""

    def __init__(self, config: TrainConfig, folder: RunFolder, progress: Progress) -> None:
        self._config, self._folder, self._progress = config, folder, progress
        self._file = MetricsFile(folder.metrics)
        run = config.run
        self._trackers = Trackers(run.trackers, folder.path, run.project, _flat(to_values(config)))
        self._records: list[StepRecord] = []

    def on_start(self, loop: Loop) -> None:
        self._file.cut(loop.step)
        self._progress.start(loop.step)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        self._records.append(record)
        if loop.step % self._config.run.log_every == 0 or loop.step == loop.steps:
            self._write(as_line(self._records))
            self._records.clear()
        self._progress.update(record)

    def on_evaluation(self, loop: Loop, figures: Mapping[str, float]) -> None:
        self._write({"step": loop.step, **figures})
        self._progress.say(f"step {loop.step}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        self._draw()

    def on_end(self, loop: Loop) -> None:
        self._draw()

    def close(self) -> None:
        self._trackers.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._trackers.log(line)
        try:
            self._file.write(line)
        except OSError as error:
            _warn(f"{self._folder.metrics} cannot be written, its lines wait for space: {error}")

    def _draw(self) -> None:
        try:
            lines = read_metrics(self._folder.metrics)
            losses = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
            checks = [(line["step"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
            if losses:
                pictures.draw_losses(self._folder.loss, losses, checks)
        except OSError as error:
            _warn(f"{self._folder.loss} cannot be written: {error}")


class _Checker(Callback):
    """Checks the model every so many steps, and at the end."""

    def __init__(
        self,
        config: TrainConfig,
        model: MultimodalModel,
        collator: Collator,
        validation: Source | None,
        metrics: Mapping[str, AnswerMetric] | None,
    ) -> None:
        self._config, self._model, self._collator, self._metrics = config.evaluation, model, collator, metrics
        self._validation, self._seed = validation, config.training.seed
        self.figures: dict[str, float] = {}

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        every = self._config.every
        due = loop.step == loop.steps or (every is not None and loop.step % every == 0)
        if self._validation is None or not due:
            return
        samples: list[Sample] = first_samples(self._validation, self._config.samples, self._seed)
        found: Evaluation = evaluate(
            self._model, self._collator, samples, self._config, self._metrics, autocast=loop.autocast()
        )
        self.figures = found.figures
        loop.tell_evaluation(found.figures)


class _Keeper(Callback):
    """Saves checkpoints every so many steps and at the end, and removes old ones."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, model: MultimodalModel, processor: MultimodalProcessor
    ) -> None:
        self._config, self._folder, self._model, self._processor = config.run, folder.checkpoints, model, processor
        self._figures: dict[int, dict[str, float]] = {}
        self._saved: int | None = None

    def on_start(self, loop: Loop) -> None:
        self._saved = loop.step

    def on_evaluation(self, loop: Loop, figures: Mapping[str, float]) -> None:
        self._figures = {loop.step: dict(figures)}

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        every = self._config.checkpoint_every
        if every is not None and loop.step % every == 0 and loop.step != loop.steps:
            try:
                self._save(loop)
            except OSError as error:
                _warn(f"no checkpoint at step {loop.step}: {error}. Former ones are whole; training goes on")

    def on_end(self, loop: Loop) -> None:
        self.keep_if_new(loop)

    def keep_if_new(self, loop: Loop) -> None:
        """Save the last state unless it is saved already; CheckpointError if that fails."""
        if loop.step == self._saved:
            return
        try:
            self._save(loop)
        except OSError as error:
            raise CheckpointError(
                f"no checkpoint at step {loop.step}: {error}. Former ones in {self._folder} are whole: make room and "
                "go on with --run.resume true"
            ) from error

    def _save(self, loop: Loop) -> None:
        figures = self._figures.get(loop.step)
        checkpoints.save(self._folder, self._model, self._processor, loop.state_dict(), figures)
        self._saved = loop.step
        checkpoints.keep(self._folder, self._config.keep_last, self._config.best_by)


def _flat(values: Any, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {".".join(keys): values}
    return {name: value for key, inner in values.items() for name, value in _flat(inner, (*keys, str(key))).items()}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
