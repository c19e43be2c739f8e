"""1a. The model: its parts, or a saved one."""

from dataclasses import field, fields
from typing import Any, Literal

from cornstarch.training.config.checking import FieldError, config_class, require


@config_class
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
        require(one, "path", f"give `path` or `config`, one of them; found {self.path!r} and {self.config!r}")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise FieldError(("config",), "must name a `model_type`, such as siglip_vision_model or llama")


@config_class
class NamedConfig:
    """A callback of the package, by name."""

    name: str
    """Registered name, such as select_features."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""


@config_class
class CallbacksConfig:
    """What is done to an encoder's inputs and outputs, each a list of callbacks that run one after the other."""

    preprocess: list[NamedConfig] = field(default_factory=list)
    """On the encoder's arguments."""
    postprocess_module: list[NamedConfig] = field(default_factory=list)
    """On what the encoder returned."""
    postprocess_projector: list[NamedConfig] = field(default_factory=list)
    """On the projected features."""


@config_class
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
            require(value is None or value >= 1, name, f"at least 1, found {value}")
            require(value is None or self.type == "resampler", name, f"is for `resampler` only, found {self.type}")
        made = self.type != "linear" or self.activation != "gelu"
        require(self.path is None or not made, "path", "a loaded projector has a `type` and `activation` of its own")
        require(self.revision is None or self.path is not None, "revision", "is for a `path`")


@config_class
class ProcessorConfig:
    """What turns a modality's media into its encoder's input."""

    path: str | None = None
    """Local folder, or name on the hub; the encoder's own if left out."""
    class_name: str | None = None
    """Class of transformers, such as SiglipImageProcessor; with `arguments` and no `path` it is made from scratch."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Settings other than the processor's own."""


@config_class
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
        require(self.skip_first >= 0, "skip_first", f"a number of rows, found {self.skip_first}")


@config_class
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
            require(len(self.concatenate) > 1, "concatenate", "two encoders or more, found one")
            for name in self.concatenate:
                require(name.isidentifier(), "concatenate", f"a name must be an identifier, found {name!r}")
            for entry in fields(PartConfig):
                same = getattr(self, entry.name) == entry.default
                require(same, entry.name, "goes with each of the encoders to `concatenate`, not here")
            one = self.processor == ProcessorConfig() or all(
                tower.processor == ProcessorConfig() for tower in self.concatenate.values()
            )
            require(one, "processor", "give one for all, or one for each of the encoders to `concatenate`, not both")
            for name in ("layers", "skip_first"):
                require(not getattr(self, name), name, "goes with each of the encoders to `concatenate`, not here")
        require(self.pool >= 1, "pool", f"at least 1, found {self.pool}")


@config_class
class QuantizationConfig:
    """A frozen language model in fewer bits; adapters on it train (QLoRA, https://arxiv.org/abs/2305.14314)."""

    backend: Literal["bitsandbytes", "torchao"] = "bitsandbytes"
    """Library that must be installed."""
    bits: Literal[4, 8] = 4
    """Bits per weight."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of transformers' BitsAndBytesConfig, or of torchao's config for so many bits."""


@config_class
class LanguageModelConfig(PartConfig):
    """The language model and its tokenizer."""

    tokenizer: str | None = None
    """Local folder, or name on the hub; the model's own if left out. `bytes` is the package's byte-level tokenizer."""
    added_tokens: list[str] = field(default_factory=list)
    """Tokens to add to the tokenizer; the embedding table gets a row for each. Modality marks need none."""
    quantization: QuantizationConfig | None = None
    """Load the weights in fewer bits; only adapters can train then."""


@config_class
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
        require(one, "path", "give `path`, or `language_model` (and `encoders`): one of them, not both or neither")
        require(self.path is None or not self.encoders, "encoders", "a saved model (`path`) has encoders of its own")
        require(
            self.path is None or not self.preprocess_llm,
            "preprocess_llm",
            "a saved model (`path`) has callbacks of its own",
        )
        for name, default in (("revision", None), ("dtype", "auto"), ("trust_remote_code", False)):
            given = getattr(self, name) != default
            require(self.path is not None or not given, name, "is for a `path`; parts have their own")
        for key in self.encoders:
            if not key.isidentifier():
                raise FieldError(("encoders", key), "a modality key names a submodule, so it must be an identifier")
