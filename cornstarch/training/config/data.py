"""1c. What is learnt from: sources, and how their samples are written."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from cornstarch.training.config.checking import config_class, require


@config_class
class DigitsConfig:
    """The embedded data set: questions about handwritten digits."""

    source: Literal["digits"]
    """Which source this is."""
    split: Literal["train", "validation", "test"]
    """A fixed tenth is for validation, two for testing."""
    shift: int = 0
    """Move images by up to so many pixels, differently every epoch."""
    blank: float = 0.0
    """Share of the images that are blanked, others every epoch."""

    def __post_init__(self) -> None:
        require(self.shift >= 0, "shift", f"a number of pixels, found {self.shift}")
        require(0 <= self.blank <= 1, "blank", f"is a share from 0 to 1, found {self.blank}")


@config_class
class DigitsAndTonesConfig:
    """The second embedded data set: questions about a handwritten digit and a telephone key that is heard with it."""

    source: Literal["digits_and_tones"]
    """Which source this is."""
    split: Literal["train", "validation", "test"]
    """As of `digits`; each has sounds of its own."""
    shift: int = 0
    """Move images by up to so many pixels, differently every epoch."""
    blank_image: float = 0.0
    """Share of the images that are blanked, others every epoch."""
    blank_sound: float = 0.0
    """Share of the sounds that are noise alone, others every epoch."""

    def __post_init__(self) -> None:
        require(self.shift >= 0, "shift", f"a number of pixels, found {self.shift}")
        for name in ("blank_image", "blank_sound"):
            share = getattr(self, name)
            require(0 <= share <= 1, name, f"is a share from 0 to 1, found {share}")


@config_class
class RowsConfig:
    """Conversations in files, in folders or on the hub."""

    source: Literal["sharegpt", "messages", "cauldron", "caption", "transcript"]
    """How rows are read: conversations as ShareGPT, OpenAI or The Cauldron write them, images with texts, sounds with
    texts."""
    path: str
    """A file (.json, .jsonl, .parquet, .arrow, .tar), several by a pattern (`a-*.tar`), a folder that a data set was
    saved to, or a name on the hub."""
    media: str | None = None
    """Folder that names of media are relative to, and may not leave; the file's own if left out."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the rows call a field of the format, such as `image: picture`."""
    prompt: str = ""
    """Of caption and transcript: what is asked besides the medium."""
    text_beside_media: bool = True
    """Keep the text of a question that comes with media. Without it such a question is its media alone, as in the first
    stage of LLaVA."""
    split: str = "train"
    """Of a data set with several."""
    name: str | None = None
    """A data set's configuration, on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    frames_per_second: float = 1.0
    """To take of videos."""
    leave_out: str | None = None
    """A list of entries that are not used, which `cornstarch data check` writes."""
    streaming: bool = False
    """Read one after the other what is too large to have. For training alone, and a number of `training.steps`."""
    window: int = 1000
    """Of streaming: rows that are held and shuffled among each other."""

    def __post_init__(self) -> None:
        require(self.frames_per_second > 0, "frames_per_second", f"above 0, found {self.frames_per_second}")
        require(self.window > 0, "window", f"at least one row, found {self.window}")
        pair = self.source in ("caption", "transcript")
        numbered = self.leave_out is None or not self.streaming
        require(numbered, "leave_out", "a stream's samples have no numbers; use bad_samples: skip")
        require(pair or not self.prompt, "prompt", f"is for caption and transcript, found source {self.source!r}")
        both = bool(self.prompt) and not self.text_beside_media
        require(not both, "prompt", "stands beside a medium, and `text_beside_media: false` leaves such text out")


@config_class
class LlavaConfig(RowsConfig):
    """Conversations about images in LLaVA's JSON format."""

    source: Literal["llava"]  # type: ignore[assignment]
    """How rows are read: conversations as LLaVA's files have them."""


OneSourceConfig = Annotated[
    DigitsConfig | DigitsAndTonesConfig | LlavaConfig | RowsConfig, Field(discriminator="source")
]


@config_class
class MixtureConfig:
    """Several sources at once, in stated proportions."""

    source: Literal["mixture"]
    """Which source this is."""
    sources: list[OneSourceConfig]
    """What is mixed."""
    weights: list[float] | None = None
    """How many samples of each there are, relative to the others; by their sizes if left out."""
    when_one_ends: Literal["repeat", "stop", "go_on"] = "repeat"
    """What an epoch is. `repeat`: until each source was shown in whole; shorter ones come again. `stop`: until the
    first source ends; the next epoch goes on where the others are. `go_on`: every sample once, the others go on alone.
    """

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "sources", "at least one, found none")
        weights = self.weights
        streams = [isinstance(source, RowsConfig) and source.streaming for source in self.sources]
        require(not any(streams), "sources", "a stream cannot be mixed; its samples have no numbers")
        same = weights is None or len(weights) == len(self.sources)
        require(same, "weights", f"one for each of {len(self.sources)} sources, found {weights}")
        positive = weights is None or all(0 < weight < float("inf") for weight in weights)
        require(positive, "weights", f"each above 0, found {weights}")


SourceConfig = Annotated[
    DigitsConfig | DigitsAndTonesConfig | LlavaConfig | RowsConfig | MixtureConfig, Field(discriminator="source")
]


@config_class
class LimitsConfig:
    """How large media may be. Larger ones are refused before they are decoded: a few bytes can claim a terabyte."""

    image_pixels: int = 89_478_485
    """Height times width. Pillow has a limit of its own besides, of twice as many."""
    image_ratio: float = 200.0
    """The longer side over the shorter."""
    file_bytes: int = 2**28
    """Of an encoded medium."""
    audio_seconds: float = 3600.0
    """Of a sound."""
    video_frames: int = 1024
    """That are taken of a video."""

    def __post_init__(self) -> None:
        for name in ("image_pixels", "image_ratio", "file_bytes", "audio_seconds", "video_frames"):
            value = getattr(self, name)
            require(value > 0, name, f"must be above 0, found {value}")


@config_class
class DataConfig:
    """What is learnt from, and how it is written."""

    train: SourceConfig | None = None
    """What is trained on."""
    validation: SourceConfig | None = None
    """What the loss and the answers are checked on during training."""
    test: SourceConfig | None = None
    """What `cornstarch eval` asks about; validation if left out."""
    template: str | None = None
    """Chat template: plain, vicuna, vicuna_v1, or a Jinja file. The tokenizer's own if left out, else plain."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are trained on."""
    max_length: int | None = None
    """Positions a sample may take; longer ones are cut, never through an image's positions. No limit if left out."""
    workers: int = 0
    """Processes that prepare batches ahead; 0 prepares them in between."""
    bad_samples: Literal["stop", "skip", "replace"] = "stop"
    """What happens to a sample that cannot be used: the run stops, the step goes on without it, or the next good one of
    its source takes its place. Each is named in bad_samples.jsonl."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """How large media may be."""

    def __post_init__(self) -> None:
        length = self.max_length
        require(length is None or length > 0, "max_length", f"must be above 0, found {length}")
        require(self.workers >= 0, "workers", f"must not be negative, found {self.workers}")
        for name in ("validation", "test"):
            source = getattr(self, name)
            stream = isinstance(source, RowsConfig) and source.streaming
            require(not stream, name, "is checked on in whole, so it cannot be streamed")
        stream = isinstance(self.train, RowsConfig) and self.train.streaming
        require(
            not stream or self.bad_samples != "replace", "bad_samples", "a stream has no other sample; stop or skip"
        )
