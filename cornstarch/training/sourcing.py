"""2c. A config -> the sources of its data, and what makes batches of them."""

import dataclasses
from typing import Any

from cornstarch.data import (
    Batches,
    Budget,
    Collator,
    DigitsAndTonesSource,
    DigitsSource,
    MixtureSource,
    RowSource,
    Source,
    StreamBatches,
    StreamSource,
)
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import MediaLimits, MultimodalProcessor
from cornstarch.training.config import (
    DataConfig,
    DigitsAndTonesConfig,
    MixtureConfig,
    RowsConfig,
    SourceConfig,
    TrainConfig,
    TrainingConfig,
)


def make_source(config: SourceConfig, *, salvage: bool = False) -> Source:
    """The samples that a config describes.

    Args:
        config: of a source.
        salvage: of files that are damaged take what can be read.

    Returns:
        The source.

    Raises:
        ArgumentError: if its file cannot be read.
        ImportError: if a package that it needs is not installed.
    """
    if isinstance(config, MixtureConfig):
        return MixtureSource(
            [make_source(entry, salvage=salvage) for entry in config.sources],
            config.weights,
            when_one_ends=config.when_one_ends,
        )
    if isinstance(config, RowsConfig):
        if config.streaming:
            raise ArgumentError(f"{config.path} is to be streamed; here a source is needed whose samples have numbers")
        options = {**_row_options(config), "salvage": salvage, "leave_out": config.leave_out}
        return RowSource(config.path, config.source, **options)
    if isinstance(config, DigitsAndTonesConfig):
        return DigitsAndTonesSource(config.split, config.shift, config.blank_image, config.blank_sound)
    return DigitsSource(config.split, config.shift, config.blank)


def open_source(config: SourceConfig, *, salvage: bool = False) -> Source | StreamSource:
    """The samples that a config describes, or the stream, if it is to be one.

    Args:
        config: of a source.
        salvage: of files that are damaged take what can be read.

    Returns:
        The source or stream.

    Raises:
        ArgumentError: if there is nothing to read.
        ImportError: if a package that it needs is not installed.
    """
    if isinstance(config, RowsConfig) and config.streaming:
        return make_stream(config)
    return make_source(config, salvage=salvage)


def training_source(config: DataConfig) -> Source | StreamSource:
    """What a config trains on; of damaged files what can be read, unless bad samples stop the run.

    Args:
        config: of the data.

    Returns:
        The source or stream.

    Raises:
        ArgumentError: if there is none, or nothing to read.
        ImportError: if a package that it needs is not installed.
    """
    if config.train is None:
        raise ArgumentError("data.train must be given: there is nothing to train on")
    return open_source(config.train, salvage=config.bad_samples != "stop")


def make_stream(config: RowsConfig) -> StreamSource:
    """The stream that a config with `streaming` describes.

    Args:
        config: of a source.

    Returns:
        The stream.

    Raises:
        ArgumentError: if there is nothing to read.
        ImportError: if a package that it needs is not installed.
    """
    return StreamSource(config.path, config.source, window=config.window, **_row_options(config))


def _row_options(config: RowsConfig) -> dict[str, Any]:
    names = ("media", "columns", "prompt", "text_beside_media", "split", "name", "revision", "frames_per_second")
    return {name: getattr(config, name) for name in names}


def make_budget(config: TrainingConfig) -> Budget:
    """What is on the device at once."""
    return Budget(
        samples=config.micro_batch_size, positions=config.micro_batch_positions, media=config.micro_batch_media
    )


def make_collator(processor: MultimodalProcessor, config: DataConfig) -> Collator:
    """What makes batches of a config's samples.

    Args:
        processor: of the model, whose tokenizer has its chat template; is told how large media may be.
        config: of the data.

    Returns:
        The collator.
    """
    processor.media_limits = MediaLimits(**dataclasses.asdict(config.limits))
    return Collator(processor, config.max_length, config.turns)


def make_batches(
    config: TrainConfig, source: Source | StreamSource, collator: Collator, workers: int | None = None
) -> Batches | StreamBatches:
    """The steps that a config takes from a source.

    Args:
        config: of the training.
        source: of samples.
        collator: makes batches of them.
        workers: processes that prepare them; as the config says if not given.

    Returns:
        Steps without end, or as many as a stream has.
    """
    options: dict[str, Any] = {
        "budget": make_budget(config.training),
        "seed": config.training.seed,
        "workers": config.data.workers if workers is None else workers,
        "bad_samples": config.data.bad_samples,
    }
    if isinstance(source, StreamSource):
        return StreamBatches(source, collator, config.training.batch_size, **options)
    return Batches(source, collator, config.training.batch_size, length_window=config.training.length_window, **options)
