"""10. A whole run: a config in, a run folder out. The order in which pieces are put together can be read here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cornstarch.data import (
    Batches,
    Collator,
    Sample,
    Source,
    StreamBatches,
    StreamSource,
    first_samples,
    set_template,
)
from cornstarch.data.collation import labelled_batch
from cornstarch.data.steps import broken_files, good_samples, refusal
from cornstarch.errors import ArgumentError, CornstarchError, TrainingError
from cornstarch.models.multimodal_language_model import (
    MultimodalModel,
    MultimodalProcessor,
    compiling,
    kernels,
    pretrained,
)
from cornstarch.training import building, checkpoints, pictures, report, selection, sourcing
from cornstarch.training.config import TrainConfig
from cornstarch.training.devices import check_precision, pick_device
from cornstarch.training.evaluation import AnswerMetric, in_evaluation_mode
from cornstarch.training.folder import RunFolder, flat, refuse_other_config
from cornstarch.training.loop import Callback, Loop, LossTerm, Metric
from cornstarch.training.metrics import Trackers, check_trackers
from cornstarch.training.moments import Checker, Keeper, Recorder, Reporter, told, warn
from cornstarch.training.optimizers import make_optimizer, parameter_groups
from cornstarch.training.peaks import peak_flops
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
    model: MultimodalModel | None = None,
    processor: MultimodalProcessor | None = None,
    source: Source | StreamSource | None = None,
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
        model: instead of the one that `config.model` describes; `config.trains` applies to it all the same.
        processor: of `model`.
        source: training samples, instead of `config.data.train`.
        validation: samples to check on, instead of `config.data.validation`.
        callbacks: called at the moments of the run, before its checkpoints are saved.
        loss_terms: name to a function of model, batch and output, whose value is added to the loss.
        metrics: name to a function of batch and output, logged every step.
        answer_metrics: name to a function of samples and generated answers, logged at every check.
        schedule: a function of its own instead of `config.schedule`'s name.

    Returns:
        The trained model, and where everything lies.

    Raises:
        ArgumentError: for a config that cannot be run.
        TrainingError: if nothing can be learnt, or a number is not finite. Whatever ends a run, a checkpoint of the
            last whole step is left.
    """
    folder = RunFolder(config.run.folder)
    folder.check(overwrite=config.run.overwrite, resume=config.run.resume)
    resumed = checkpoints.last(folder.checkpoints) if config.run.resume else None
    if resumed is not None:
        refuse_other_config(folder.config, config)
    device = _prepare(config)
    salvage = config.data.bad_samples != "stop"
    source = sourcing.training_source(config.data) if source is None else source
    if isinstance(source, StreamSource) and config.training.steps is None:
        raise ArgumentError("training.steps must be given: nobody knows how long a stream is")
    if isinstance(source, StreamSource) and config.training.length_window > 1:
        raise ArgumentError("training.length_window must be 1: steps of a stream cannot share out samples")
    if validation is None and config.data.validation is not None:
        validation = sourcing.make_source(config.data.validation, salvage=salvage)

    model, processor = _model(config, model, processor, resumed)
    model.to(device)
    use_liger(model, config.training.liger)
    speed_up(model, gradient_checkpointing=config.training.gradient_checkpointing, compile=config.training.compile)
    collator = sourcing.make_collator(processor, config.data)
    batches = sourcing.make_batches(config, source, collator)
    groups = parameter_groups(model, config.optimizer, config.trains, config.schedule.warmup)
    rows = report.part_rows(model, groups)
    print(report.part_table(rows), flush=True)
    loop = Loop(
        model,
        make_optimizer(groups, config.optimizer),
        batches,
        steps=_steps(config, batches),
        schedule=schedule or make_schedule(config.schedule.name, config.schedule.arguments),
        max_grad_norm=config.optimizer.max_grad_norm,
        precision=config.training.precision,
        loss_terms=loss_terms,
        metrics=metrics,
    )
    checker = _checker(config, model, collator, validation, answer_metrics)
    samples = usable_samples(config, collator, source, _LOOKED_AT)
    _look_at(collator, samples, "data.train")
    _try(model, collator, next(sample for sample in samples if labelled_batch(collator, [sample])[0]))
    state = checkpoints.load(resumed) if resumed is not None else None

    with folder.held():
        folder.start(to_yaml(config), device, anew=resumed is None)
        keeper = Keeper(folder, config.run, model, processor)
        trackers = Trackers(config.run.trackers, folder.trackers, config.run.project, flat(to_values(config)))
        peak = config.training.peak_flops or peak_flops(device, config.training.precision)
        with StopOnSignal() as signals, Progress(loop.steps, peak=peak) as progress:
            recorder = Recorder(folder, config.run.log_every, progress, trackers, peak)
            checks = [checker] if checker is not None else []
            loop.callbacks = [signals, recorder, Reporter(folder), *checks, *callbacks, keeper]
            if state is not None:
                loop.load_state_dict(state)
            stopped = _run(loop, batches, keeper, trackers, signals)
        model.save_pretrained(folder.model)
        processor.save_pretrained(folder.model)
    model.eval()
    figures = checker.figures if checker is not None else {}
    return Result(
        folder=folder.path, model=model, processor=processor, step=loop.step, stopped=stopped, figures=figures
    )


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
        model.compile()


def use_liger(model: MultimodalModel, wanted: bool | None) -> None:
    """Put Liger's kernels into the language model and the encoders that Liger knows, and say what is left out.

    Args:
        model: changed in place, on the device where it is to run.
        wanted: True for an error if the language model cannot have them, None for as far as they can be used on an
            accelerator, False for none.

    Raises:
        ArgumentError: if they are wanted, and the language model cannot have them.
    """
    if wanted is False or (wanted is None and model.device.type == "cpu"):
        return
    for name, (part, *_) in model.parts.items():
        must = wanted is True and name == "language_model"
        if name.endswith("_projector") or (not must and kernels.why_not(part) is not None):
            continue
        try:
            kept = kernels.enable(part)
        except ArgumentError as error:
            if must:
                raise ArgumentError(f"training.liger: {error}") from None
            kept = {"all": str(error)}
        for what, reason in kept.items():
            warn(f"{name}: without Liger's kernels ({what}): {reason}")


# --- before the first step --------------------------------------------------------------------------------------------


def _prepare(config: TrainConfig) -> torch.device:
    """Set up what is the process's own, and fail now rather than after training."""
    device = pick_device(config.training.device)
    check_precision(device, config.training.precision)
    check_trackers(config.run.trackers)
    pictures.require_matplotlib()
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    seed_everything(config.training.seed)
    return device


def _model(
    config: TrainConfig, model: MultimodalModel | None, processor: MultimodalProcessor | None, resumed: Path | None
) -> tuple[MultimodalModel, MultimodalProcessor]:
    """The model with what trains chosen, and with a checkpoint's weights if there is one."""
    if (model is None) != (processor is None):
        raise ArgumentError("give model and processor, or neither")
    if model is None or processor is None:
        model, processor = building.build_model(config.model, config.data.template)
    else:
        set_template(processor.llm_tokenizer, config.data.template)
    selection.choose_for(config, model, processor.llm_tokenizer)
    if resumed is not None:
        pretrained.load_weights(model, resumed / "model")
    model.train()
    for part, _, parameter in selection.parameters_of(model):
        if parameter.requires_grad and parameter.dtype is torch.bfloat16:
            warn(
                f"{part} trains in bfloat16, in which small changes of a weight are lost: dtype float32 with "
                "training.precision bfloat16 computes as fast and keeps them"
            )
            break
    return model, processor


def _steps(config: TrainConfig, batches: Batches | StreamBatches) -> int:
    if config.training.steps is not None:
        return config.training.steps
    assert isinstance(batches, Batches), "checked by the config"
    return max(1, math.ceil((config.training.epochs or 0) * batches.steps_per_epoch - 1e-9))


def _checker(
    config: TrainConfig,
    model: MultimodalModel,
    collator: Collator,
    validation: Source | None,
    metrics: Mapping[str, AnswerMetric] | None,
) -> Checker | None:
    """What checks the model, on samples that are known to be of use."""
    if validation is None:
        if config.evaluation.every is not None:
            raise ArgumentError("evaluation.every is given, but there is no data.validation to check the model on")
        return None
    warn_of_broken(validation)
    number = config.evaluation.samples
    samples = usable_samples(config, collator, validation, max(number, _LOOKED_AT) if number is not None else None)
    _look_at(collator, samples[:_LOOKED_AT], "data.validation", show=False)
    samples = samples[:number]
    return Checker(model, collator, samples, config.evaluation, metrics)


def usable_samples(
    config: TrainConfig, collator: Collator, source: Source | StreamSource, number: int | None
) -> list[Sample]:
    """The first samples of a source.

    Args:
        config: says whether bad ones stop the run, or are left out and named.
        collator: has to take them.
        source: where they are.
        number: how many to look at; all if None.

    Returns:
        The samples.
    """
    if config.data.bad_samples == "stop":
        return first_samples(source, number, config.training.seed)
    samples, bad = good_samples(source, collator, number, config.training.seed)
    for entry in bad:
        warn(f"{told(entry)}; left out")
    return samples


def warn_of_broken(source: Source) -> None:
    """Name the damaged files of a source that is checked on; of training data its first step does."""
    for entry in broken_files(source):
        warn(entry.reason)


def _look_at(collator: Collator, samples: list[Sample], name: str, *, show: bool = True) -> None:
    """Show what the model will get; refuse data in which nothing is to be learnt, or that does not fit."""
    if not samples:
        raise ArgumentError(f"{name}: the source has no samples that can be used")
    try:
        labelled = next((sample for sample in samples if labelled_batch(collator, [sample])[0]), None)
        if show and labelled is not None:
            print(report.sample_text(collator, labelled), flush=True)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, CornstarchError):
            raise
        raise ArgumentError(f"{name}: {refusal(samples[0].name, error)}") from error
    if labelled is None:
        raise TrainingError(
            f"{name}: none of the first {len(samples)} samples has a labelled token, so there is no loss that could "
            "fall: labels are on what the assistant says; is data.max_length so short that answers are cut off?"
        )


def _try(model: MultimodalModel, collator: Collator, sample: Sample) -> None:
    """Run the model on one sample, so that parts that do not fit are said before anything is written."""
    batch = {name: value.to(model.device) for name, value in collator([sample]).items()}
    try:
        with in_evaluation_mode(model), compiling.eagerly():
            model(**batch)
    except RuntimeError as error:
        if isinstance(error, CornstarchError):
            raise
        raise ArgumentError(
            f"the model cannot be run on {sample.name}: {str(error).splitlines()[0]}. Are the sizes that a processor "
            "makes (processor.arguments) those that its encoder takes (config.image_size)?"
        ) from error


# --- the run itself ---------------------------------------------------------------------------------------------------


def _run(
    loop: Loop, batches: Batches | StreamBatches, keeper: Keeper, trackers: Trackers, signals: StopOnSignal
) -> str | None:
    """Take the steps; whatever goes wrong, what was learnt up to the last whole step is saved."""
    try:
        return loop.run()
    except Exception:
        try:
            keeper.save_if_new(loop)
        except CornstarchError as second:
            warn(str(second))
        if signals.received is not None:  # a signal to all processes ends workers, which the loader calls an error
            return signals.received
        raise
    finally:
        trackers.close()
        batches.close()
