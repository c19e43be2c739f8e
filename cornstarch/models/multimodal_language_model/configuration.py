"""What a projector and a whole model are made of, as data."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2CLS

from cornstarch.errors import ArgumentError, CheckpointError
from cornstarch.models.multimodal_language_model import anatomy, library

PROJECTION_TYPES = ("linear", "mlp", "identity", "resampler")
# What only some types take, and what it is where it is left out.
_OWN_ARGUMENTS = {"resampler": {"queries": 64, "layers": 2, "heads": 8}}


class MultimodalProjectorConfig:
    """How features of an encoder become vectors of the language model's embedding space.

    `linear` is one `nn.Linear`; `mlp` is linear, activation, linear (LLaVA-1.5, https://arxiv.org/abs/2310.03744);
    `identity` is nothing at all, for an encoder that yields vectors of the embedding's width already. `resampler` makes
    a fixed number of features of however many rows an input has (Flamingo, https://arxiv.org/abs/2204.14198).

    Args:
        encoder_config: the encoder's config (or a dict with `hidden_size`), from which the input width is read.
        text_config: the language model's config (or a dict with `hidden_size`), from which the output width is read.
        projection_type: `"linear"`, `"mlp"`, `"identity"` or `"resampler"`.
        activation: a name in `transformers.activations.ACT2CLS`; used by `mlp` and `resampler`.
        bias: whether the linear layers of `linear` and `mlp` have one.
        queries: of `resampler`: features of each input; 64 if left out.
        layers: of `resampler`: how many times its queries attend to the rows; 2 if left out.
        heads: of `resampler`: heads of that attention, which divide the encoder's width; 8 if left out.

    Raises:
        ArgumentError: for an unknown `projection_type` or `activation`; the message lists the known ones. And for an
            argument that the type does not take.
    """

    def __init__(
        self,
        encoder_config: Any = None,
        text_config: Any = None,
        projection_type: str = "linear",
        activation: str = "gelu",
        *,
        bias: bool = True,
        queries: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
    ) -> None:
        if projection_type not in PROJECTION_TYPES:
            raise ArgumentError(
                f"unknown projection_type {projection_type!r}; known types: {', '.join(PROJECTION_TYPES)}"
            )
        if activation not in ACT2CLS:
            raise ArgumentError(f"unknown activation {activation!r}; known activations: {', '.join(sorted(ACT2CLS))}")
        self.encoder_config = encoder_config
        self.text_config = text_config
        self.projection_type = projection_type
        self.activation = activation
        if not bias and projection_type not in ("linear", "mlp"):
            raise ArgumentError(f"a {projection_type} projector has no linear layers whose bias could be left out")
        self.bias = bias
        self.queries, self.layers, self.heads = _own_arguments(
            projection_type, {"queries": queries, "layers": layers, "heads": heads}
        )

    @property
    def in_features(self) -> int:
        """Width of the features the projector takes.

        Raises:
            ArgumentError: if `encoder_config` does not state it.
        """
        return _stated(anatomy.config_feature_width(self.encoder_config), "encoder_config", self.encoder_config)

    @property
    def out_features(self) -> int:
        """Width of the vectors the projector yields.

        Raises:
            ArgumentError: if `text_config` does not state it.
        """
        return _stated(anatomy.config_embedding_width(self.text_config), "text_config", self.text_config)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values; of the parts' configs only the widths count, so only those are kept."""
        return {
            "encoder_config": {"hidden_size": self.in_features},
            "text_config": {"hidden_size": self.out_features},
            "projection_type": self.projection_type,
            "activation": self.activation,
            "bias": self.bias,
            **self.own_arguments,
        }

    @property
    def own_arguments(self) -> dict[str, int]:
        """The arguments that not every type takes, as far as this type takes them."""
        return {name: getattr(self, name) for name in _OWN_ARGUMENTS.get(self.projection_type, ())}


def _own_arguments(projection_type: str, given: Mapping[str, int | None]) -> list[int | None]:
    """The values of arguments that only some types take, in their order; None where the type does not take them."""
    defaults = _OWN_ARGUMENTS.get(projection_type, {})
    for name, value in given.items():
        if value is not None and name not in defaults:
            takers = [known for known, names in _OWN_ARGUMENTS.items() if name in names]
            raise ArgumentError(f"a {projection_type} projector takes no {name}; it is for {', '.join(takers)} only")
    return [defaults.get(name) if value is None else value for name, value in given.items()]


class TransformersProjectorConfig:
    """A projector that is a class of transformers, made from the config of the whole model that it comes from.

    Args:
        class_path: the class, such as `transformers.models.gemma3.modeling_gemma3.Gemma3MultiModalProjector`.
        config_path: the class of the model's config.
        model_config: that config as JSON values.

    Raises:
        CheckpointError: if transformers has no such classes.
    """

    def __init__(self, class_path: str, config_path: str, model_config: Mapping[str, Any]) -> None:
        self.class_path = class_path
        self.config_path = config_path
        self.model_config = dict(model_config)
        self._class = _subclass(class_path, nn.Module)
        self._config = _subclass(config_path, PreTrainedConfig).from_dict(dict(model_config))

    @classmethod
    def of(cls, module: nn.Module, config: PreTrainedConfig) -> "TransformersProjectorConfig":
        """The config of a projector that was made from the config of its model."""
        values = json.loads(config.to_json_string(use_diff=False))
        return cls(library.path_of(type(module)), library.path_of(type(config)), values)

    @property
    def out_features(self) -> int:
        """Width of the vectors the projector yields."""
        return _stated(anatomy.config_embedding_width(self._config), "model_config", self._config)

    def make(self) -> nn.Module:
        """The projector, with weights as its class makes them."""
        return self._class(self._config)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values."""
        return {"class_path": self.class_path, "config_path": self.config_path, "model_config": self.model_config}


def _subclass(path: str, base: type) -> Any:
    found = library.find_class(path, "a projector")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(f"{path} is no {base.__name__} of transformers, as a projector's was expected to be")
    return found


def projector_config(values: Mapping[str, Any]) -> MultimodalProjectorConfig | TransformersProjectorConfig:
    """The config that `to_dict` of either class gave."""
    if "class_path" in values:
        return TransformersProjectorConfig(**values)
    return MultimodalProjectorConfig(**values)


def _stated(width: int | None, name: str, config: Any) -> int:
    if width is None:
        raise ArgumentError(
            f"{name} states no hidden size (found {type(config).__name__}): pass a Hugging Face config, "
            'a dict {"hidden_size": int}, or a projector of your own'
        )
    return width


_TEXT_NAMES = ("pad_token_id", "bos_token_id", "eos_token_id")


class MultimodalConfig(PreTrainedConfig):  # type: ignore[misc]
    """The parts' own configs under one roof, for whoever asks a model for `config`.

    Args:
        encoders: modality key to the encoder's config (None for a plain module that has none).
        text_config: the language model's config, the very object, not a copy.
        modality_token_ids: modality key to the token id that stands for it in `input_ids`.
        **kwargs: those of `PreTrainedConfig`.
    """

    model_type = "cornstarch"

    def __init__(
        self,
        encoders: Mapping[str, Any] | None = None,
        text_config: Any = None,
        modality_token_ids: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoders = dict(encoders or {})
        self.text_config = text_config
        self.modality_token_ids = dict(modality_token_ids or {})
        super().__init__(**kwargs)  # validates, and asks for the text config while it does

    def __getattr__(self, name: str) -> Any:
        """The language model's special tokens, which trainers look for here; nothing else."""
        text_config = vars(self).get("text_config")
        if name in _TEXT_NAMES and text_config is not None:
            return getattr(text_config, name, None)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's config, whatever the arguments (those of `PreTrainedConfig`); itself without one."""
        return self if self.text_config is None else self.text_config

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values; every part's config is a dictionary too."""
        return {
            "model_type": self.model_type,
            "encoders": {key: config_to_dict(config) for key, config in self.encoders.items()},
            "text_config": config_to_dict(self.text_config),
            "modality_token_ids": dict(self.modality_token_ids),
        }


def config_to_dict(config: Any) -> Any:
    """A part's config as JSON values: a Hugging Face config, a mapping, or None."""
    if isinstance(config, PreTrainedConfig):
        return config.to_dict()
    return dict(config) if isinstance(config, Mapping) else None
