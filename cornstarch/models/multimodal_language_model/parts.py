"""6e. Single parts out of Hugging Face checkpoints, or from scratch: the tower a modality needs, found by structure."""

import copy
import difflib
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from cornstarch.errors import ArgumentError, MissingFileError
from cornstarch.models.multimodal_language_model import anatomy, freezing, manifest, weightless
from cornstarch.models.multimodal_language_model.backbone import is_backbone, joined, with_head
from cornstarch.models.multimodal_language_model.projector_loading import load_projector as load_projector

# By the encoder's main input: who reads its processor's settings.
_PROCESSORS = {
    "pixel_values": (AutoImageProcessor, AutoVideoProcessor),
    "pixel_values_videos": (AutoVideoProcessor, AutoImageProcessor),
    "hidden_states": (AutoImageProcessor, AutoVideoProcessor),
    "input_features": (AutoFeatureExtractor,),
    "input_values": (AutoFeatureExtractor,),
}
# Share of a model's weights that a checkpoint may lack (and that are random then, as Hugging Face warns).
_MOST_MISSING = 0.01
# Parts of a composite config that encode nothing.
_NO_TOWERS = ("text", "decoder", "qformer", "talker", "token2wav", "code", "vq", "backbone")
# What loads a multimodal checkpoint with its head.
_WITH_ALL_PARTS = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
_ANY_PROCESSOR = (AutoImageProcessor, AutoFeatureExtractor, AutoVideoProcessor)


def make_config(values: dict[str, Any], **defaults: Any) -> PreTrainedConfig:
    """A Hugging Face config from scratch.

    Args:
        values: `model_type`, and the config's arguments.
        **defaults: arguments that `values` may overrule.

    Returns:
        The config.

    Raises:
        ArgumentError: for an unknown model type, or arguments that it refuses.
    """
    model_type = values["model_type"]
    arguments = {**defaults, **{name: value for name, value in values.items() if name != "model_type"}}
    try:
        _refuse_unknown(model_type, arguments)
        return AutoConfig.for_model(model_type, **arguments)
    except ArgumentError:
        raise
    except Exception as error:  # configs check themselves in ways of their own
        reason = " ".join(str(error).split())
        raise ArgumentError(f"model_type {model_type!r} cannot be configured so: {reason}") from error


def _refuse_unknown(model_type: str, arguments: dict[str, Any]) -> None:
    """Hugging Face's configs keep whatever they are given, so that a misspelt argument does nothing."""
    plain = AutoConfig.for_model(model_type)
    known = {*plain.to_dict(), *plain.attribute_map, *inspect.signature(type(plain).__init__).parameters}
    known |= set(PreTrainedConfig().to_dict())
    for name in arguments:
        if name not in known and not hasattr(plain, name) and name not in _read_by_models_of(plain):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ArgumentError(f"a config of model_type {model_type!r} has no {name!r}{hint}")


def _read_by_models_of(config: PreTrainedConfig) -> set[str]:
    """Words in the source of a config's models, which read some settings that the config does not declare."""
    module = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        return set(re.findall(r"\w+", inspect.getsource(importlib.import_module(module))))
    except (ImportError, OSError, TypeError):
        return set()


def load_encoder(
    key: str, path: str | Path, class_name: str | None = None, *, weights: bool = True, **options: Any
) -> Any:
    """A pretrained encoder: of a checkpoint with several towers, the one for a modality.

    Args:
        key: the modality; tells towers apart (`vision_config` is for a key that begins with `vision`).
        path: a folder, or a name on the hub.
        class_name: a class of transformers; found by itself if not given.
        weights: read them; otherwise parameters are on the meta device.
        **options: for `from_pretrained` (`dtype`, `revision`, `attn_implementation`, `trust_remote_code`).

    Returns:
        The encoder in evaluation mode.

    Raises:
        ArgumentError: if no tower, or more than one, is for this modality.
        MissingFileError: if there is no such checkpoint.
    """
    config = _read_config(path, options)
    encoder = _find_encoder(key, path, config, class_name, options, weights)
    manifest.record(encoder, path, config, options.get("revision"))
    return encoder


def _find_encoder(
    key: str,
    path: str | Path,
    config: PreTrainedConfig,
    class_name: str | None,
    options: dict[str, Any],
    weights: bool,
) -> Any:
    if class_name is not None:
        return _loaded(find_class(class_name, config), path, options, weights)
    if getattr(config, "is_encoder_decoder", False):
        return _loaded(AutoModel, path, options, weights).get_encoder()
    tower = _tower_config(key, config, str(path))
    if tower is None:
        return _loaded(AutoModel, path, options, weights)
    if type(tower) in MODEL_MAPPING:
        cls = MODEL_MAPPING[type(tower)]
        if not weights:
            return _without_weights(cls, tower, options)
        encoder, report = cls.from_pretrained(path, output_loading_info=True, **options)
        if not report["missing_keys"]:
            return encoder
    whole = _loaded(_whole_class(config), path, options, weights)  # its tower has other names there than by itself
    found = (module for module in whole.modules() if isinstance(module, PreTrainedModel))
    return next(module for module in found if type(module.config) is type(tower))


def make_encoder(values: dict[str, Any], class_name: str | None = None, *, weights: bool = True, **options: Any) -> Any:
    """An encoder with random weights.

    Args:
        values: `model_type`, and the config's arguments.
        class_name: a class of transformers; found by itself if not given.
        weights: draw them; otherwise parameters are on the meta device.
        **options: `dtype` and `attn_implementation`.

    Returns:
        The encoder.

    Raises:
        ArgumentError: if it cannot be made.
    """
    config = make_config(values)
    cls = AutoModel if class_name is None else find_class(class_name, config)
    encoder = _made(cls, config, options, weights)
    if class_name is not None:
        return encoder
    return encoder.get_encoder() if getattr(config, "is_encoder_decoder", False) else encoder


def load_language_model(
    path: str | Path, class_name: str | None = None, *, weights: bool = True, **options: Any
) -> Any:
    """A pretrained causal language model.

    Args:
        path: a folder, or a name on the hub.
        class_name: a class of transformers; `AutoModelForCausalLM` if not given. Of a text backbone that has no such
            class, and of a multimodal checkpoint, backbone and head are taken (`BackboneWithHead`).
        weights: read them; otherwise parameters are on the meta device.
        **options: for `from_pretrained`.

    Returns:
        The language model in evaluation mode.

    Raises:
        MissingFileError: if there is no such checkpoint.
        ArgumentError: if it is no causal language model.
    """
    config = _read_config(path, options)
    cls = _language_model_class(config) if class_name is None else find_class(class_name, config)
    whole = None
    if class_name is None and cls is AutoModelForCausalLM and type(config) not in cls._model_mapping:
        whole = next((auto for auto in _WITH_ALL_PARTS if type(config) in auto._model_mapping), None)
    loaded = _loaded(whole or cls, path, options, weights)
    if whole is not None:
        loaded = language_model_of(loaded)
    manifest.record(loaded, path, config, options.get("revision"))
    return loaded


def language_model_of(whole: PreTrainedModel) -> Any:
    """The causal language model inside a loaded multimodal model of transformers; its weights are not copied.

    Args:
        whole: has a text backbone and a head; not to be used afterwards.

    Returns:
        The backbone and the head, in a causal language model's class of transformers where it has one.

    Raises:
        ArgumentError: if the model is not built so.
    """
    config, head = whole.config.get_text_config(), whole.get_output_embeddings()
    bodies = (module for module in whole.modules() if module is not whole and isinstance(module, PreTrainedModel))
    body: Any = next((module for module in bodies if type(module.config) is type(config)), None)
    if body is None or head is None:
        raise ArgumentError(f"{type(whole).__name__} has no text backbone with a head of its own")
    return joined(body, head, whole.generation_config)


def make_language_model(
    values: dict[str, Any], tokenizer: Any, class_name: str | None = None, *, weights: bool = True, **options: Any
) -> Any:
    """A causal language model with random weights, for a tokenizer.

    Args:
        values: `model_type`, and the config's arguments; vocabulary and special tokens are the tokenizer's otherwise.
        tokenizer: the tokenizer.
        class_name: a class of transformers; found by itself if not given.
        weights: draw them; otherwise parameters are on the meta device.
        **options: `dtype` and `attn_implementation`.

    Returns:
        The language model.

    Raises:
        ArgumentError: if it cannot be made.
    """
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = make_config(values, vocab_size=len(tokenizer), **special)
    if anatomy.config_vocabulary_size(config) < len(tokenizer):
        raise ArgumentError(
            f"vocab_size is {anatomy.config_vocabulary_size(config)}, but the tokenizer has {len(tokenizer)} tokens: "
            "leave it out, or make it as large"
        )
    cls = _language_model_class(config) if class_name is None else find_class(class_name, config)
    return _made(cls, config, options, weights)


def load_processor(encoder: nn.Module, path: str | Path, **options: Any) -> Any:
    """The image, video or sound processor that a checkpoint has for an encoder.

    Args:
        encoder: tells by its main input which kind it needs.
        path: a folder, or a name on the hub.
        **options: settings other than the checkpoint's.

    Returns:
        The processor.

    Raises:
        ArgumentError: if the checkpoint has none.
    """
    kinds = _PROCESSORS.get(anatomy.main_input_name(freezing.unwrap(encoder)), _ANY_PROCESSOR)
    reasons = []
    for kind in kinds:
        try:
            return kind.from_pretrained(path, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            found = _on_pil(path, options) if isinstance(error, ImportError) else None
            if found is not None:
                return found
            reasons.append(f"{kind.__name__}: {str(error).strip().splitlines()[0]}")
    raise ArgumentError(f"{path} has no processor for {type(encoder).__name__}; {'; '.join(reasons)}")


def _on_pil(path: str | Path, options: dict[str, Any]) -> Any:
    """An image processor in its form without torchvision, which older releases do not choose by themselves."""
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError):
        return None
    name = str(values.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    cls: Any = getattr(transformers, f"{name}Pil", None)
    return None if cls is None else cls.from_pretrained(path, **options)


def make_processor(class_name: str, arguments: dict[str, Any]) -> Any:
    """A processor from scratch.

    Args:
        class_name: a class of transformers, such as `SiglipImageProcessor`.
        arguments: its settings.

    Returns:
        The processor.

    Raises:
        ArgumentError: for a class that transformers does not have, or arguments that it refuses.
    """
    try:
        return find_class(class_name)(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise ArgumentError(f"{class_name} cannot be made so: {error}") from error


def find_class(name: str, config: PreTrainedConfig | None = None) -> Any:
    """A class of transformers by name: a public one, or one of the module of a config's own models.

    Args:
        name: the class's.
        config: whose models to look among too.

    Returns:
        The class.

    Raises:
        ArgumentError: if there is none.
    """
    found = getattr(transformers, name, None)
    if found is None and config is not None:
        module = type(config).__module__.replace(".configuration_", ".modeling_")
        if module.startswith("transformers."):
            found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type):
        raise ArgumentError(f"transformers {transformers.__version__} has no class {name!r}")
    return found


def _read_config(path: str | Path, options: dict[str, Any], cls: Any = AutoConfig) -> Any:
    trusted = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    try:
        return cls.from_pretrained(path, **trusted)
    except OSError as error:
        raise MissingFileError(
            f"{path} is no folder with a model, and no name on the hub that can be reached"
        ) from error
    except ValueError as error:
        raise ArgumentError(f"{path}: {str(error).splitlines()[0]}") from error


def _made(cls: Any, config: PreTrainedConfig, options: dict[str, Any], weights: bool) -> Any:
    """A model of random weights; whatever a config that makes no sense fails with is said as it is."""
    make = getattr(cls, "from_config", None) or cls._from_config
    try:
        return make(config, **options) if weights else weightless.make(lambda: make(copy.deepcopy(config), **options))
    except Exception as error:
        raise ArgumentError(f"no {cls.__name__} can be made of a config of {config.model_type!r}: {error}") from error


def _without_weights(cls: Any, config: PreTrainedConfig, options: dict[str, Any]) -> Any:
    """What `from_pretrained` makes, its parameters on the meta device."""
    wanted: dict[str, Any] = {
        name: options[name] for name in ("attn_implementation", "dtype", "trust_remote_code") if name in options
    }
    if wanted.get("dtype") == "auto":
        wanted["dtype"] = config.dtype
    if not hasattr(cls, "from_config"):
        wanted.pop("trust_remote_code", None)
    return _made(cls, config, wanted, weights=False).eval()


def _loaded(cls: Any, path: str | Path, options: dict[str, Any], weights: bool) -> Any:
    """A pretrained model, every weight of which the checkpoint has, but for a few beside the hidden states."""
    if not weights:
        own = getattr(cls, "config_class", None)  # of one tower, where the checkpoint's is of the whole
        return _without_weights(cls, _read_config(path, options, own or AutoConfig), options)
    try:
        model, report = cls.from_pretrained(path, output_loading_info=True, **options)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ArgumentError(f"{path} cannot be loaded as {cls.__name__}: {str(error).splitlines()[0]}") from error
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    missing = [name for name in report["missing_keys"] if "pool" not in name and name in sizes]
    if sum(sizes[name] for name in missing) > _MOST_MISSING * sum(sizes.values()):
        raise ArgumentError(
            f"{path} has no weights for {', '.join(sorted(missing)[:4])} ({len(missing)} in all) of a "
            f"{type(model).__name__}: is it a checkpoint of that class?"
        )
    return model


def _language_model_class(config: PreTrainedConfig) -> Any:
    """What makes or loads a causal language model with this config: transformers' own class, else a backbone's."""
    if type(config) not in AutoModelForCausalLM._model_mapping and type(config) in MODEL_MAPPING:
        found = MODEL_MAPPING[type(config)]
        if is_backbone(found):
            return with_head(found)
    return AutoModelForCausalLM


def _whole_class(config: PreTrainedConfig) -> Any:
    """The class that loads a checkpoint with all its towers."""
    classes = (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    return next((cls for cls in classes if type(config) in cls._model_mapping), AutoModel)


def _tower_config(key: str, config: PreTrainedConfig, path: str) -> Any:
    """The config of the tower for a modality in a checkpoint of several; None where the whole is the encoder."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    parts = {name: part for name, part in parts.items() if isinstance(part, PreTrainedConfig)}
    towers = {name: part for name, part in parts.items() if not name.startswith(_NO_TOWERS)}
    if len(parts) < 2 or not towers:
        return None
    mine = [tower for name, tower in towers.items() if name.startswith(key.partition("_")[0])]
    if len(mine) == 1 or len(towers) == 1:
        return mine[0] if mine else next(iter(towers.values()))
    raise ArgumentError(
        f"{path} has several towers ({', '.join(towers)}) and none is for {key!r} by name: begin the modality's key as "
        "one of them begins, or say which with class_name"
    )
