"""10a. A config's data, looked at before a run: what cannot be used, and what the rest comes to."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from cornstarch.data import MixtureSource, Source
from cornstarch.data.doctor.findings import Examiner
from cornstarch.data.doctor.kinds import KINDS
from cornstarch.data.doctor.report import bad_samples, leave_out, number_of, summary_of
from cornstarch.data.doctor.scan import Scan, scan
from cornstarch.data.steps import chance_at, order_of
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import MultimodalModel, MultimodalProcessor, anatomy, freezing
from cornstarch.training import building, selection, sourcing
from cornstarch.training.config import TrainConfig
from cornstarch.training.devices import pick_device
from cornstarch.training.forecast import Length, SampleWork, forecast
from cornstarch.training.peaks import measured_speed
from cornstarch.training.work import sample_work


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What a check of data came to.

    Attributes:
        report: `summary`, `forecast` (None but for training data) and `bad`, as report.json has them.
        leave_out: what cannot be used, as the key `leave_out` of a source takes it.
        scan: what was seen of each sample.
        max_length: positions that a sample is cut to; None if it is not.
    """

    report: dict[str, Any]
    leave_out: dict[str, Any]
    scan: Scan
    max_length: int | None = None

    @property
    def is_good(self) -> bool:
        """Whether everything that was looked at can be used."""
        summary = self.report["summary"]
        return not summary["errors"] and not summary["broken_files"]


def check_data(
    config: TrainConfig,
    *,
    split: str = "train",
    workers: int | None = None,
    limit: int | None = None,
    also: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> DataCheck:
    """Look at every sample of a config's data as training would: read, decoded, collated. No weights are loaded.

    Args:
        config: of the training.
        split: train, validation or test.
        workers: processes that look; one for each CPU if left out; 0 looks here, where a decoder that crashes is not
            survived.
        limit: look at so many samples only, evenly spread.
        also: kinds of warnings whose samples are left out, too.
        progress: is told how many samples more are done, of how many.

    Returns:
        What was found. After Ctrl-C, what was found until then; its summary says that it is partial.

    Raises:
        ArgumentError: if there is no such data, nothing of it can be read, or a kind is none.
    """
    chosen = getattr(config.data, split)
    if chosen is None:
        raise ArgumentError(f"data.{split} must be given: there is nothing to check")
    warnings = [kind for kind, known in KINDS.items() if known.severity == "warning"]
    unknown = sorted(set(also) - set(warnings))
    if unknown:
        raise ArgumentError(f"{unknown[0]} is no kind of warning; expected {', '.join(warnings)}")
    source = sourcing.make_source(chosen, salvage=True)
    model, processor = building.build_model(config.model, config.data.template, weights=False)
    examiner = Examiner(
        source,
        sourcing.make_collator(processor, config.data),
        seed=config.training.seed,
        made_for=anatomy.positions_made_for(freezing.unwrap(model.language_model)),
        budget=sourcing.make_budget(config.training) if split == "train" else None,
    )
    total = number_of(source)
    number = min(total, limit) if limit is not None else total
    seen = scan(
        examiner,
        [place * total // number for place in range(number)],
        workers=(os.cpu_count() or 1) if workers is None else workers,
        progress=(lambda more: progress(more, number)) if progress is not None else None,
    )
    bad = bad_samples(source, seen)
    report = {
        "summary": {"split": f"data.{split}", **summary_of(source, seen, bad)},
        "forecast": _forecast(config, source, seen, model, processor) if split == "train" and seen.seen else None,
        "bad": bad,
    }
    left_out = leave_out(source, seen, also)
    return DataCheck(report=report, leave_out=left_out, scan=seen, max_length=config.data.max_length)


def _forecast(
    config: TrainConfig, source: Source, seen: Scan, model: MultimodalModel, processor: MultimodalProcessor
) -> dict[str, Any]:
    lengths = {
        entry.index: Length(
            positions=entry.positions,
            labelled=entry.labelled,
            features=entry.features,
            seconds=entry.seconds,
            media=entry.media,
        )
        if entry.is_usable
        else None
        for entry in seen.seen
    }
    training, device = config.training, pick_device(config.training.device)
    work, why = _work(config, source, seen, model, processor)
    values = forecast(
        lengths,
        order_of(source, training.seed, 0).indices,
        batch_size=training.batch_size,
        budget=sourcing.make_budget(training),
        length_window=training.length_window,
        seed=training.seed,
        steps=training.steps,
        epochs=training.epochs,
        work=work,
        speed=measured_speed(device, training.precision),
        workers=config.data.workers,
    )
    values["compute"]["device"] = str(device)
    mixture = ["of a mixture, the order is that of its first epoch"] if isinstance(source, MixtureSource) else []
    return {**values, "assumptions": [*values["assumptions"], *mixture, *why]}


def _work(
    config: TrainConfig, source: Source, seen: Scan, model: MultimodalModel, processor: MultimodalProcessor
) -> tuple[SampleWork | None, list[str]]:
    """The work of samples as the config trains the model, and what is to be said of it."""
    notes = []
    try:
        selection.choose_for(config, model, processor.llm_tokenizer)
    except Exception as error:  # which training says itself; samples can be looked at all the same
        notes.append(f"what trains could not be chosen, so all work is as if every part did: {error}")
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    usable = [entry for entry in seen.seen if entry.is_usable and entry.labelled]
    keys = {key for entry in usable for key, positions in entry.features.items() if positions}
    told_by = [next(entry for entry in usable if entry.features.get(key)) for key in sorted(keys)] or usable[:1]
    if not told_by:
        return None, notes
    collator = sourcing.make_collator(processor, config.data)
    try:
        samples = [source.sample(entry.index, chance_at(config.training.seed, 0, entry.index)) for entry in told_by]
        return sample_work(model, [collator([sample]) for sample in samples]), notes
    except Exception as error:  # an estimate is not worth a check that fails
        return None, [*notes, f"how much work there is could not be told: {error}"]
