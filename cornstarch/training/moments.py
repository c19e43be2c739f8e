"""9b. What a run does at its moments: lines of metrics, checks of the model, checkpoints; callbacks like any."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from cornstarch.data import BadSample, Collator, Sample
from cornstarch.errors import ArgumentError, CheckpointError, TrainingError
from cornstarch.models.multimodal_language_model import MultimodalModel, MultimodalProcessor
from cornstarch.training import checkpoints, pictures
from cornstarch.training.config import EvaluationConfig, RunConfig
from cornstarch.training.evaluation import AnswerMetric, evaluate
from cornstarch.training.folder import RunFolder
from cornstarch.training.loop import Callback, Loop
from cornstarch.training.metrics import MetricsFile, Trackers, as_line, read_metrics
from cornstarch.training.progress import Progress
from cornstarch.training.record import StepRecord


class Recorder(Callback):
    """Writes `metrics.jsonl`, logs to trackers, shows progress, draws `loss.png`.

    Args:
        folder: of the run.
        every: steps between lines.
        progress: what shows how far the run is.
        trackers: what else is logged to.
        peak: floating-point operations a second that the device can do.
    """

    def __init__(
        self, folder: RunFolder, every: int, progress: Progress, trackers: Trackers, peak: float | None = None
    ) -> None:
        self._folder, self._every, self._progress, self._trackers = folder, every, progress, trackers
        self._peak = peak
        self._file = MetricsFile(folder.metrics)
        self._records: list[StepRecord] = []

    def on_start(self, loop: Loop) -> None:
        """Leave out lines of steps that will be taken again."""
        self._file.cut(loop.step)
        self._progress.start(loop.step)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        """A line, if it is time for one."""
        self._records.append(record)
        if loop.step % self._every == 0 or loop.step == loop.steps:
            self._flush()
        self._progress.update(record)

    def on_evaluation(self, loop: Loop, figures: Mapping[str, float]) -> None:
        """A line with the figures."""
        self._write({"step": loop.step, **figures})
        self._progress.say(f"step {loop.step}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        if loop.step < loop.steps:
            self._draw()

    def on_end(self, loop: Loop) -> None:
        """What has no line yet, and the picture."""
        self._flush()
        self._draw()

    def _flush(self) -> None:
        if self._records:
            self._write(as_line(self._records, self._peak))
            self._records.clear()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._trackers.log(line)
        try:
            self._file.write(line)
        except OSError as error:
            warn(f"{self._folder.metrics} cannot be written, its lines wait for space: {error}")

    def _draw(self) -> None:
        try:
            lines = read_metrics(self._folder.metrics)
            losses = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
            checks = [(line["step"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
            if losses:
                pictures.draw_losses(self._folder.loss, losses, checks)
        except (OSError, ArgumentError) as error:
            warn(f"{self._folder.loss} cannot be drawn: {error}")


class Reporter(Callback):
    """Names samples that could not be used: on standard error, in `bad_samples.jsonl`, and counted at the end.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.bad_samples
        self._file = MetricsFile(folder.bad_samples)

    def on_start(self, loop: Loop) -> None:
        """Leave out lines of steps that will be taken again."""
        self._file.cut(loop.step)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        """A line for each."""
        for entry in (*record.bad, *map(_unlabelled, record.unlabelled)):
            instead = f"{entry.replaced_by} takes its place" if entry.replaced_by is not None else "left out"
            warn(f"step {loop.step}: {told(entry)}; {instead}")
            try:
                self._file.write({"step": loop.step, **asdict(entry)})
            except OSError as error:
                warn(f"{self._path} cannot be written, its lines wait for space: {error}")

    def on_end(self, loop: Loop) -> None:
        """How many of each kind there were in the whole run."""
        try:
            lines = read_metrics(self._path) if self._path.is_file() else []
        except (OSError, ArgumentError) as error:
            warn(f"{self._path} cannot be read: {error}")
            return
        kinds = Counter(line["kind"] for line in lines)
        if kinds:
            replaced = sum(line["replaced_by"] is not None for line in lines)
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            names = len({line["name"] for line in lines})
            warn(
                f"bad samples: {len(lines)} ({listed}), {names} different, {len(lines) - replaced} left out, "
                f"{replaced} replaced; see {self._path}"
            )


def _unlabelled(name: str) -> BadSample:
    """A sample of which nothing can be learnt, as one that cannot be used."""
    return BadSample(name=name, kind="unlabelled", reason=f"{name}: no labelled token, perhaps since it was cut")


def told(entry: BadSample) -> str:
    """What is wrong with a sample, and which it is."""
    return entry.reason if entry.reason.startswith(entry.name) else f"{entry.name}: {entry.reason}"


class Checker(Callback):
    """Checks the model on samples every so many steps, and at the end; tells all callbacks the figures.

    Args:
        model: what is trained.
        collator: of its processor.
        samples: to check on.
        config: how often, and how.
        metrics: of samples and answers.
    """

    def __init__(
        self,
        model: MultimodalModel,
        collator: Collator,
        samples: Sequence[Sample],
        config: EvaluationConfig,
        metrics: Mapping[str, AnswerMetric] | None = None,
    ) -> None:
        self._model, self._collator, self._samples = model, collator, samples
        self._config, self._metrics = config, metrics
        self.figures: dict[str, float] = {}

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        """Check, if it is time."""
        due = self._config.every is not None and loop.step % self._config.every == 0
        if due or loop.step == loop.steps:
            found = evaluate(
                self._model, self._collator, self._samples, self._config, self._metrics, autocast=loop.autocast()
            )
            self.figures = found.figures
            loop.tell_evaluation(found.figures)


class Keeper(Callback):
    """Saves checkpoints every so many steps and at the end, and removes old ones. Stands behind all other callbacks.

    Args:
        folder: of the run.
        config: how often, and how many to keep.
        model: what is trained.
        processor: its processor.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, model: MultimodalModel, processor: MultimodalProcessor
    ) -> None:
        self._folder, self._config, self._model, self._processor = folder.checkpoints, config, model, processor
        self._figures: dict[int, dict[str, float]] = {}
        self._saved: int | None = None

    def on_start(self, loop: Loop) -> None:
        """What a run begins with is saved already, or is nothing yet."""
        self._saved = loop.step

    def on_evaluation(self, loop: Loop, figures: Mapping[str, float]) -> None:
        """Figures go into the checkpoint of the same step."""
        self._figures = {loop.step: dict(figures)}

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        """Save, if it is time; training goes on if that fails."""
        every = self._config.checkpoint_every
        if every is not None and loop.step % every == 0 and loop.step != loop.steps:
            try:
                self._save(loop)
            except OSError as error:
                warn(f"no checkpoint at step {loop.step}: {error}. Former ones are whole; training goes on")

    def on_end(self, loop: Loop) -> None:
        """Save the last state."""
        self.save_if_new(loop)
        if self._saved != loop.step:
            raise TrainingError(f"weights are not finite after step {loop.step}; {self._folder} has former ones")

    def save_if_new(self, loop: Loop) -> None:
        """Save the state unless it is saved already, or is worthless.

        Args:
            loop: that is between two steps.

        Raises:
            CheckpointError: if it cannot be written.
        """
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
        # Weights that are not finite would take the place of good ones; the next step says what is wrong.
        if not all(bool(torch.isfinite(p).all()) for p in self._model.parameters() if p.is_floating_point()):
            return
        figures = self._figures.get(loop.step)
        checkpoints.save(self._folder, self._model, self._processor, loop.state_dict(), figures)
        self._saved = loop.step
        checkpoints.keep(self._folder, self._config.keep_last, self._config.best_by)


def warn(message: str) -> None:
    """Say on standard error what went wrong without stopping the run."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
