"""1. What a run is, as data: typed, documented, checked when it is made.

The docstring under a field is what `cornstarch train --help` says about it. Nothing here loads or builds anything.
"""

import fnmatch
import functools
from collections.abc import Callable
from dataclasses import field, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import dataclasses as checked

from cornstarch.errors import ArgumentError

_T = TypeVar("_T")
NO_SUCH_FIELD = "there is no such field"


class FieldError(ArgumentError):
    """A field whose value cannot be used.

    Args:
        where: the field's keys, from the object that was being made.
        message: what was found, and what was expected.
    """

    def __init__(self, where: tuple[str, ...], message: str) -> None:
        super().__init__(f"{'.'.join(where)}: {message}")
        self.where = where
        self.message = message


def problems(error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """(keys of the field, what is wrong with it) for everything that a check of a config found."""
    found = []
    for entry in error.errors(include_url=False):
        where, message = tuple(str(key) for key in entry["loc"]), str(entry["msg"])
        cause = entry.get("ctx", {}).get("error")
        if isinstance(cause, FieldError):
            where, message = where + cause.where, cause.message
        elif entry["type"] == "missing":
            message = "must be given"
        elif entry["type"] == "unexpected_keyword_argument":
            message = NO_SUCH_FIELD
        else:
            message = f"{message.replace('Input should', 'must')}, found {entry['input']!r:.80}"
        found.append((where, message))
    return found


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def _config(cls: type[_T]) -> type[_T]:
    options = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    decorate: Callable[[type[_T]], Any] = checked.dataclass(frozen=True, kw_only=True, config=options)
    made = decorate(cls)
    checked_init = made.__init__

    @functools.wraps(checked_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked_init(self, *args, **kwargs)
        except ValidationError as error:
            listed = "; ".join(f"{'.'.join(where)}: {message}" for where, message in problems(error))
            raise ArgumentError(f"{cls.__name__}: {listed}") from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def _require(holds: bool, where: str, message: str) -> None:
    if not holds:
        raise FieldError((where,), message)


# --- the model --------------------------------------------------------------------------------------------------------


@_config
class PartConfig:
    """An encoder or a language model: pretrained, or small and from scratch."""

    path: str | None = None
    """Local folder, or name on the hub, of a pretrained model."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    config: dict[str, Any] | None = None
    """Instead of `path`: `model_type` and arguments of a Hugging Face config, for random weights."""
    class_name: str | None = None
    """Class of transformers, such as CLIPVisionModel. Found by itself if left out: of a model with several towers the
    one for this modality, of an encoder-decoder model the encoder."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights; `auto` is what the checkpoint was saved in."""
    attn_implementation: str | None = None
    """How attention is computed: eager, sdpa, flash_attention_2, ... Hugging Face's choice if left out."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint."""

    def __post_init__(self) -> None:
        one = (self.path is None) != (self.config is None)
        _require(one, "path", f"give `path` or `config`, one of them; found {self.path!r} and {self.config!r}")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise FieldError(("config",), "must name a `model_type`, such as siglip_vision_model or llama")


@_config
class NamedConfig:
    """A callback of the package, by name."""

    name: str
    """Registered name, such as select_features."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""


@_config
class CallbacksConfig:
    """What is done to an encoder's inputs and outputs, each a list of callbacks that run one after the other."""

    preprocess: list[NamedConfig] = field(default_factory=list)
    """On the encoder's arguments."""
    postprocess_module: list[NamedConfig] = field(default_factory=list)
    """On what the encoder returned."""
    postprocess_projector: list[NamedConfig] = field(default_factory=list)
    """On the projected features."""


@_config
class ProjectorConfig:
    """What leads from an encoder's features to the language model's embeddings."""

    type: Literal["linear", "mlp", "identity", "resampler"] = "linear"
    """`linear` is one linear layer; `mlp` is linear, activation, linear; `identity` is nothing, for an encoder that
    yields the embedding's width already; `resampler` makes a fixed number of features of however many rows."""
    activation: str = "gelu"
    """Of `mlp` and `resampler`, a name in transformers.activations.ACT2CLS."""
    queries: int | None = None
    """Of `resampler`: features of each input; 64 if left out."""
    layers: int | None = None
    """Of `resampler`: how many times its queries attend to the rows; 2 if left out."""
    heads: int | None = None
    """Of `resampler`: heads of that attention, which divide the encoder's width; 8 if left out."""
    path: str | None = None
    """Instead of a new one: folder with a saved model, or folder or name on the hub of a multimodal model of Hugging
    Face's, whose projector for this modality is taken."""
    revision: str | None = None
    """Of `path`: branch, tag or commit on the hub."""

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, f"at least 1, found {value}")
            _require(value is None or self.type == "resampler", name, f"is for `resampler` only, found {self.type}")
        made = self.type != "linear" or self.activation != "gelu"
        _require(self.path is None or not made, "path", "a loaded projector has a `type` and `activation` of its own")
        _require(self.revision is None or self.path is not None, "revision", "is for a `path`")


@_config
class ProcessorConfig:
    """What turns a modality's media into its encoder's input."""

    path: str | None = None
    """Local folder, or name on the hub; the encoder's own if left out."""
    class_name: str | None = None
    """Class of transformers, such as SiglipImageProcessor; with `arguments` and no `path` it is made from scratch."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Settings other than the processor's own."""


@_config
class TowerConfig(PartConfig):
    """An encoder alone: which of its features to take, and what prepares its images or sounds."""

    layers: list[int] | None = None
    """Hidden states to take, counted as Hugging Face does (0 embeddings, -1 last layer), side by side if several. The
    encoder's own output if left out."""
    skip_first: int = 0
    """Leading rows to leave out: 1 for a class token, 5 for a class token and four registers."""
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    """What turns media into the encoder's input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.skip_first >= 0, "skip_first", f"a number of rows, found {self.skip_first}")


@_config
class EncoderConfig(TowerConfig):
    """An encoder, what is done to its inputs and outputs, and its projector."""

    concatenate: dict[str, TowerConfig] = field(default_factory=dict)
    """Instead of `path` or `config`: several encoders of the same images by name, whose features stand side by side."""
    pool: int = 1
    """Average so many rows (of a square map: so many by so many) into one position."""
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    """Further callbacks of the package, by name."""
    additional_args: list[str] = field(default_factory=list)
    """Arguments for the callbacks that the encoder itself does not take."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """What leads to the language model's embeddings."""

    def __post_init__(self) -> None:
        if not self.concatenate:
            super().__post_init__()
        else:
            _require(len(self.concatenate) > 1, "concatenate", "two encoders or more, found one")
            for name in self.concatenate:
                _require(name.isidentifier(), "concatenate", f"a name must be an identifier, found {name!r}")
            for entry in fields(PartConfig):
                same = getattr(self, entry.name) == entry.default
                _require(same, entry.name, "goes with each of the encoders to `concatenate`, not here")
            one = self.processor == ProcessorConfig() or all(
                tower.processor == ProcessorConfig() for tower in self.concatenate.values()
            )
            _require(one, "processor", "give one for all, or one for each of the encoders to `concatenate`, not both")
            for name in ("layers", "skip_first"):
                _require(not getattr(self, name), name, "goes with each of the encoders to `concatenate`, not here")
        _require(self.pool >= 1, "pool", f"at least 1, found {self.pool}")


@_config
class QuantizationConfig:
    """A frozen language model in fewer bits; adapters on it train (QLoRA, https://arxiv.org/abs/2305.14314)."""

    backend: Literal["bitsandbytes", "torchao"] = "bitsandbytes"
    """Library that must be installed."""
    bits: Literal[4, 8] = 4
    """Bits per weight."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of transformers' BitsAndBytesConfig, or of torchao's config for so many bits."""


@_config
class LanguageModelConfig(PartConfig):
    """The language model and its tokenizer."""

    tokenizer: str | None = None
    """Local folder, or name on the hub; the model's own if left out. `bytes` is the package's byte-level tokenizer."""
    added_tokens: list[str] = field(default_factory=list)
    """Tokens to add to the tokenizer; the embedding table gets a row for each. Modality marks need none."""
    quantization: QuantizationConfig | None = None
    """Load the weights in fewer bits; only adapters can train then."""


@_config
class ModelConfig:
    """The model: its parts, or a saved one."""

    path: str | None = None
    """Instead of parts, a model to go on from: a saved one, a run folder, or the folder or name on the hub of a
    multimodal model of Hugging Face's."""
    revision: str | None = None
    """Of `path`: branch, tag or commit on the hub."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    """Of `path`: of all weights; `auto` is what they were saved in."""
    trust_remote_code: bool = False
    """Of `path`: run code that comes with it."""
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    """Modality key (vision, audio, ...) to encoder."""
    language_model: LanguageModelConfig | None = None
    """The language model."""
    preprocess_llm: list[NamedConfig] = field(default_factory=list)
    """Callbacks before the language model, by name, one after the other: rotary_positions, features_see_each_other."""

    def __post_init__(self) -> None:
        one = (self.path is None) != (self.language_model is None)
        _require(one, "path", "give `path`, or `language_model` (and `encoders`): one of them, not both or neither")
        _require(self.path is None or not self.encoders, "encoders", "a saved model (`path`) has encoders of its own")
        _require(
            self.path is None or not self.preprocess_llm,
            "preprocess_llm",
            "a saved model (`path`) has callbacks of its own",
        )
        for name, default in (("revision", None), ("dtype", "auto"), ("trust_remote_code", False)):
            given = getattr(self, name) != default
            _require(self.path is not None or not given, name, "is for a `path`; parts have their own")
        for key in self.encoders:
            if not key.isidentifier():
                raise FieldError(("encoders", key), "a modality key names a submodule, so it must be an identifier")


# --- what trains ------------------------------------------------------------------------------------------------------


@_config
class GroupConfig:
    """Parameters of a part, by name, with settings of their own."""

    parameters: list[str]
    """Names of parameters within the part, with * for anything: `*norm*`, `*.bias`."""
    learning_rate: float | None = None
    """Highest learning rate; the part's if left out."""
    weight_decay: float | None = None
    """Also of vectors then; the part's if left out."""
    warmup: float | None = None
    """Share of all steps; the part's if left out."""

    def matches(self, name: str) -> bool:
        """Whether a parameter of this name belongs here."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.parameters)


@_config
class TrainsConfig:
    """How much of a part trains, and how fast. A string stands for the mode alone."""

    mode: Literal["frozen", "full", "lora", "partial"] = "full"
    """`frozen`: nothing, at no cost. `full`: all weights. `lora`: adapters beside frozen weights. `partial`: what the
    next four fields choose."""
    last_layers: int = 0
    """Of `partial`: so many of the last layers."""
    norms: bool = False
    """Of `partial`: the weights of all normalisation layers."""
    new_rows: bool = False
    """Of `partial`, and of `lora`: the embedding rows of `added_tokens`, and no other rows."""
    parameters: list[str] = field(default_factory=list)
    """Of `partial`: parameters by name, with * for anything."""
    lora: dict[str, Any] = field(default_factory=dict)
    """Of `lora`: arguments of PEFT's LoraConfig, such as r, lora_alpha, target_modules (all-linear if left out)."""
    learning_rate: float | None = None
    """Highest learning rate; optimizer.learning_rate if left out."""
    weight_decay: float | None = None
    """Of matrices; vectors (biases, norms) are not decayed. optimizer.weight_decay if left out."""
    warmup: float | None = None
    """Share of all steps in which the learning rate rises; schedule.warmup if left out."""
    layer_decay: float = 1.0
    """Each layer's learning rate is this times that of the layer behind it."""
    groups: list[GroupConfig] = field(default_factory=list)
    """Parameters with settings of their own; the first group that names a parameter has it."""

    _only_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "last_layers": ("partial",),
        "norms": ("partial",),
        "parameters": ("partial",),
        "new_rows": ("partial", "lora"),
        "lora": ("lora",),
    }

    def __post_init__(self) -> None:
        for name, modes in self._only_with.items():
            if getattr(self, name) and self.mode not in modes:
                raise FieldError((name,), f"is for mode {' or '.join(modes)}, found mode {self.mode!r}")
        if self.mode == "partial" and not any(getattr(self, name) for name in self._only_with):
            raise FieldError(("mode",), "partial needs last_layers, norms, new_rows or parameters: nothing would train")
        _require(self.last_layers >= 0, "last_layers", f"a number of layers, found {self.last_layers}")
        _require(0 < self.layer_decay <= 1, "layer_decay", f"above 0 and at most 1, found {self.layer_decay}")
        _check_rates(self.learning_rate, self.weight_decay, self.warmup)
        for number, group in enumerate(self.groups):
            try:
                _check_rates(group.learning_rate, group.weight_decay, group.warmup)
            except FieldError as error:
                raise FieldError(("groups", str(number), *error.where), error.message) from None


def _check_rates(learning_rate: float | None, weight_decay: float | None, warmup: float | None) -> None:
    finite = learning_rate is None or 0 < learning_rate < float("inf")
    _require(finite, "learning_rate", f"must be positive, found {learning_rate}")
    _require(weight_decay is None or weight_decay >= 0, "weight_decay", f"must not be negative, found {weight_decay}")
    _require(warmup is None or 0 <= warmup <= 1, "warmup", f"is a share of the steps, from 0 to 1, found {warmup}")


def _from_mode(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


# --- data -------------------------------------------------------------------------------------------------------------


@_config
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
        _require(self.shift >= 0, "shift", f"a number of pixels, found {self.shift}")
        _require(0 <= self.blank <= 1, "blank", f"is a share from 0 to 1, found {self.blank}")


@_config
class RowsConfig:
    """Conversations in files, in folders or on the hub."""

    source: Literal["sharegpt", "messages", "caption", "transcript"]
    """How rows are read: conversations as ShareGPT or OpenAI write them, images with texts, sounds with texts."""
    path: str
    """A file (.json, .jsonl, .parquet, .arrow, .tar), several by a pattern (`a-*.tar`), a folder that a data set was
    saved to, or a name on the hub."""
    media: str | None = None
    """Folder that names of media are relative to, and may not leave; the file's own if left out."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the rows call a field of the format, such as `image: picture`."""
    prompt: str = ""
    """Of caption and transcript: what is asked besides the medium."""
    split: str = "train"
    """Of a data set with several."""
    name: str | None = None
    """A data set's configuration, on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    frames_per_second: float = 1.0
    """To take of videos."""
    streaming: bool = False
    """Read one after the other what is too large to have. For training alone, and a number of `training.steps`."""
    window: int = 1000
    """Of streaming: rows that are held and shuffled among each other."""

    def __post_init__(self) -> None:
        _require(self.frames_per_second > 0, "frames_per_second", f"above 0, found {self.frames_per_second}")
        _require(self.window > 0, "window", f"at least one row, found {self.window}")
        pair = self.source in ("caption", "transcript")
        _require(pair or not self.prompt, "prompt", f"is for caption and transcript, found source {self.source!r}")


@_config
class LlavaConfig(RowsConfig):
    """Conversations about images in LLaVA's JSON format."""

    source: Literal["llava"]  # type: ignore[assignment]
    """How rows are read: conversations as LLaVA's files have them."""


OneSourceConfig = Annotated[DigitsConfig | LlavaConfig | RowsConfig, Field(discriminator="source")]


@_config
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
        _require(len(self.sources) > 0, "sources", "at least one, found none")
        weights = self.weights
        streams = [isinstance(source, RowsConfig) and source.streaming for source in self.sources]
        _require(not any(streams), "sources", "a stream cannot be mixed; its samples have no numbers")
        same = weights is None or len(weights) == len(self.sources)
        _require(same, "weights", f"one for each of {len(self.sources)} sources, found {weights}")
        positive = weights is None or all(0 < weight < float("inf") for weight in weights)
        _require(positive, "weights", f"each above 0, found {weights}")


SourceConfig = Annotated[DigitsConfig | LlavaConfig | RowsConfig | MixtureConfig, Field(discriminator="source")]


@_config
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
            _require(value > 0, name, f"must be above 0, found {value}")


@_config
class DataConfig:
    """What is learnt from, and how it is written."""

    train: SourceConfig | None = None
    """What is trained on."""
    validation: SourceConfig | None = None
    """What the loss and the answers are checked on during training."""
    test: SourceConfig | None = None
    """What `cornstarch eval` asks about; validation if left out."""
    template: str | None = None
    """Chat template: plain, vicuna, or a Jinja file. The tokenizer's own if left out, plain if it has none."""
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
        _require(length is None or length > 0, "max_length", f"must be above 0, found {length}")
        _require(self.workers >= 0, "workers", f"must not be negative, found {self.workers}")
        for name in ("validation", "test"):
            source = getattr(self, name)
            stream = isinstance(source, RowsConfig) and source.streaming
            _require(not stream, name, "is checked on in whole, so it cannot be streamed")
        stream = isinstance(self.train, RowsConfig) and self.train.streaming
        _require(
            not stream or self.bad_samples != "replace", "bad_samples", "a stream has no other sample; stop or skip"
        )


# --- training ---------------------------------------------------------------------------------------------------------


@_config
class OptimizerConfig:
    """How weights are changed."""

    name: str = "AdamW"
    """Class in torch.optim."""
    learning_rate: float = 1e-4
    """Highest learning rate, unless a part or group has its own."""
    weight_decay: float = 0.0
    """Of matrices, unless a part or group has its own."""
    max_grad_norm: float | None = 1.0
    """Longer gradients are shortened to this length; no limit if null."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class, such as betas."""

    def __post_init__(self) -> None:
        _check_rates(self.learning_rate, self.weight_decay, None)
        limit = self.max_grad_norm
        _require(limit is None or limit > 0, "max_grad_norm", f"must be positive, found {limit}")
        for name in ("lr", "weight_decay"):
            field_name = "learning_rate" if name == "lr" else name
            _require(name not in self.arguments, "arguments", f"{name} is optimizer.{field_name}; set it there")


@_config
class ScheduleConfig:
    """How the learning rate changes over the steps."""

    name: str = "cosine"
    """constant, linear, cosine, inverse_sqrt, or warmup_stable_decay."""
    warmup: float = 0.03
    """Share of all steps in which the learning rate rises to its highest."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the schedule: `floor`, the share of the highest rate at the end; `decay`, the share of the steps in which
    warmup_stable_decay falls."""

    def __post_init__(self) -> None:
        _check_rates(None, None, self.warmup)


@_config
class TrainingConfig:
    """How long, on how much at once, and where."""

    steps: int | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = None
    """Passes over the training data; give this or `steps`."""
    batch_size: int = 32
    """Samples per optimizer step."""
    micro_batch_size: int | None = None
    """Samples on the device at once; `batch_size` if left out. Fewer need less memory and change no numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products (autocast); weights keep their own dtype."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    seed: int = 0
    """Of new weights, order, dropout. On a CPU the same seed gives the same numbers."""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, mps."""
    threads: int | None = None
    """CPU threads to compute with; PyTorch's choice if left out."""

    def __post_init__(self) -> None:
        one = (self.steps is None) != (self.epochs is None)
        _require(one, "steps", f"give `steps` or `epochs`, one of them; found {self.steps} and {self.epochs}")
        _require(0 <= self.seed < 2**63, "seed", f"must be from 0 to 2**63 - 1, found {self.seed}")
        for name in ("steps", "epochs", "batch_size", "micro_batch_size", "threads"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, f"must be above 0, found {value}")


@_config
class EvaluationConfig:
    """How a model is checked, during training and by `cornstarch eval`."""

    every: int | None = None
    """Steps between checks; only at the end if left out."""
    batch_size: int = 32
    """Samples at once."""
    generate: bool = True
    """Have the model answer, and count how many answers are exactly right."""
    max_new_tokens: int = 64
    """Longest answer."""
    samples: int | None = None
    """Check on the first so many samples only."""

    def __post_init__(self) -> None:
        for name in ("every", "batch_size", "max_new_tokens", "samples"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, f"must be above 0, found {value}")


@_config
class RunConfig:
    """Where a run leaves what it made."""

    folder: str = "runs/latest"
    """Made if it is not there. A folder that holds a run is refused."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    resume: bool = False
    """Go on from the last checkpoint in the folder. Rates, steps, checks and this section may have changed since."""
    log_every: int = 1
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int | None = 500
    """Steps between checkpoints; null saves one at the end only."""
    keep_last: int = 2
    """Checkpoints that are kept, besides the best."""
    best_by: Literal["eval_loss", "eval_exact_match"] = "eval_loss"
    """What makes a checkpoint the best, of those at whose step the model was checked."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Also log there, through accelerate's trackers."""
    project: str = "cornstarch"
    """The project's name there."""

    def __post_init__(self) -> None:
        _require(not (self.overwrite and self.resume), "resume", "cannot go on from a run that is overwritten")
        for name in ("log_every", "checkpoint_every", "keep_last"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, f"must be above 0, found {value}")


@_config
class TrainConfig:
    """A whole run: `cornstarch train CONFIG.yaml`, or `cornstarch.train(config)`."""

    model: ModelConfig
    """The model: its parts, or a saved one."""
    trains: dict[str, Annotated[TrainsConfig, BeforeValidator(_from_mode)]] = field(default_factory=dict)
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
