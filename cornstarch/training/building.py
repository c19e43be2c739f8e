"""2. A config -> the model and its processor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cornstarch.data import byte_tokenizer, set_template
from cornstarch.errors import ArgumentError, MissingFileError
from cornstarch.models.multimodal_language_model import (
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    anatomy,
    callbacks,
    freezing,
    library,
    parts,
    pretrained,
    projector_loading,
)
from cornstarch.models.multimodal_language_model.callbacks import (
    AveragePool,
    Chain,
    OutputHiddenStates,
    SelectFeatures,
)
from cornstarch.models.multimodal_language_model.concatenated_processing import ConcatenatedProcessor
from cornstarch.models.multimodal_language_model.concatenation import ConcatenatedEncoders
from cornstarch.models.multimodal_language_model.model_card import is_on_the_hub
from cornstarch.training import checkpoints, quantization
from cornstarch.training.config import (
    EncoderConfig,
    LanguageModelConfig,
    ModelConfig,
    NamedConfig,
    PartConfig,
    ProcessorConfig,
    ProjectorConfig,
    TowerConfig,
)

BYTES = "bytes"  # the tokenizer that the package makes


def build_processor(config: ModelConfig, template: str | None = None) -> MultimodalProcessor:
    """The processor of the model that a config describes, for which no weights are read or made.

    Args:
        config: of the model.
        template: chat template for the tokenizer; see `cornstarch.data.set_template`.

    Returns:
        The processor, which counts positions as that of `build_model` does.

    Raises:
        ArgumentError: if parts do not fit, or a name is unknown.
        MissingFileError: if there is no such checkpoint.
    """
    return build_model(config, template, weights=False)[1]


def build_model(
    config: ModelConfig, template: str | None = None, *, weights: bool = True
) -> tuple[MultimodalModel, MultimodalProcessor]:
    """The model that a config describes, and its processor. Random weights come from PyTorch's seed.

    Args:
        config: of the model.
        template: chat template for the tokenizer; see `cornstarch.data.set_template`.
        weights: read or make them; otherwise parameters are on the meta device, and none are quantised.

    Returns:
        The model on the CPU, in training mode, everything trainable unless it was saved frozen; and the processor.

    Raises:
        ArgumentError: if parts do not fit, or a name is unknown.
        MissingFileError: if there is no such checkpoint.
    """
    if config.path is not None:
        dtype = None if config.dtype == "auto" else config.dtype
        model, processor = load_run(
            config.path,
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
            dtype=dtype,
            weights=weights,
        )
    else:
        assert config.language_model is not None, "checked by the config"
        tokenizer = _tokenizer(config.language_model)
        language_model = _language_model(config.language_model, tokenizer, weights)
        encoders = {key: _encoder(key, encoder, language_model, weights) for key, encoder in config.encoders.items()}
        processors = {key: _processor(config.encoders[key], encoder.module) for key, encoder in encoders.items()}
        model = MultimodalModel(encoders, language_model, _one(_built(config.preprocess_llm)))
        processor = MultimodalProcessor(processors, tokenizer, model)
    set_template(processor.llm_tokenizer, template)
    model.train()
    return model, processor


def load_run(
    path: str | Path,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    dtype: str | None = None,
    weights: bool = True,
) -> tuple[MultimodalModel, MultimodalProcessor]:
    """Load a model and its processor: from a run folder, a checkpoint in one, or a folder both were saved into.

    A multimodal model of Hugging Face's is taken apart (`from_pretrained_multimodal_model`).

    Args:
        path: the folder, or a name on the hub. Of a run that has not come to its end, the last checkpoint counts.
        trust_remote_code: run code that came with a part.
        revision: branch, tag or commit on the hub.
        dtype: of all weights; None keeps each as it was saved.
        weights: read them; otherwise parameters are on the meta device.

    Returns:
        The model in evaluation mode, and the processor.

    Raises:
        MissingFileError: if there is no model.
        CheckpointError: if a file is damaged.
        ArgumentError: if it is a model of Hugging Face's that cannot be taken apart.
    """
    folder = Path(path)
    last = checkpoints.last(folder / "checkpoints")
    for candidate in (folder, folder / "model", *([last / "model"] if last is not None else [])):
        if _is_imported(candidate):
            return _imported(candidate, trust_remote_code, revision, dtype, weights)
        if (candidate / "config.json").is_file():
            model = _saved(candidate, trust_remote_code, dtype, weights)
            processor = MultimodalProcessor.from_pretrained(candidate, model, trust_remote_code=trust_remote_code)
            return model, processor
    if is_on_the_hub(str(path)):
        return _imported(path, trust_remote_code, revision, dtype, weights)
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}; expected a run folder, or one with a saved model")
    raise MissingFileError(f"{folder} holds no model: no config.json, no model/config.json, and no checkpoint")


def _is_imported(folder: Path) -> bool:
    """Whether a folder holds a model of Hugging Face's."""
    file = folder / "config.json"
    return file.is_file() and library.read_json(file).get("model_type") not in (None, "cornstarch")


def _saved(folder: Path, trust_remote_code: bool, dtype: str | None, weights: bool) -> MultimodalModel:
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if weights:
        return MultimodalModel.from_pretrained(folder, **options)
    return pretrained.load(
        MultimodalModel, folder, custom_objects={}, attn_implementation=None, weights=False, **options
    )


def _imported(
    path: str | Path, trust_remote_code: bool, revision: str | None, dtype: str | None, weights: bool
) -> tuple[MultimodalModel, MultimodalProcessor]:
    given = {"revision": revision} if revision is not None else {}
    trusted = {"trust_remote_code": True} if trust_remote_code else {}
    model = MultimodalModel.from_pretrained_multimodal_model(
        path, dtype=dtype or "auto", weights=weights, **given, **trusted
    )
    processor = MultimodalProcessor.from_pretrained_multimodal_model(path, model, **given, **trusted)
    tokenizer: Any = processor.llm_tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, processor


# --- parts ------------------------------------------------------------------------------------------------------------


def _options(config: PartConfig) -> dict[str, Any]:
    """Arguments of the functions that load a part, or make one of random weights."""
    names = ["attn_implementation", *(["revision", "trust_remote_code"] if config.path is not None else [])]
    given = {name: getattr(config, name) for name in names if getattr(config, name)}
    if config.path is not None and config.dtype == "auto":
        return {"dtype": "auto", **given}
    return {"dtype": torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype), **given}


def _origin(config: PartConfig, name: str | Path) -> dict[str, Any]:
    """Arguments for loading what belongs to a part: its revision, if it comes from the same place."""
    revision = {"revision": config.revision} if config.revision is not None and name == config.path else {}
    return {"trust_remote_code": config.trust_remote_code, **revision}


def _tokenizer(config: LanguageModelConfig) -> PreTrainedTokenizerBase:
    name = config.tokenizer or config.path
    if name is None:
        raise ArgumentError(f"model.language_model.tokenizer must be given: a folder, a name on the hub, or {BYTES!r}")
    if name == BYTES:
        tokenizer: Any = byte_tokenizer()
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **_origin(config, name))
        except (OSError, ValueError) as error:
            raise ArgumentError(f"{name} has no tokenizer: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.added_tokens:
        tokenizer.add_tokens(config.added_tokens)
    return tokenizer  # type: ignore[no-any-return]


def _language_model(config: LanguageModelConfig, tokenizer: Any, weights: bool) -> Any:
    options = _options(config)
    if config.config is not None:
        if config.quantization is not None:
            raise ArgumentError("model.language_model.quantization needs `path`: random weights are not quantised")
        return parts.make_language_model(config.config, tokenizer, config.class_name, weights=weights, **options)
    assert config.path is not None, "checked by the config"
    if config.quantization is not None and weights:
        options["quantization_config"] = quantization.make_config(config.quantization, options["dtype"])
    language_model: Any = parts.load_language_model(config.path, config.class_name, weights=weights, **options)
    if config.added_tokens and len(tokenizer) > anatomy.vocabulary_size(language_model):
        language_model.resize_token_embeddings(len(tokenizer))
    return language_model


def _module(key: str, config: TowerConfig, weights: bool) -> Any:
    options = _options(config)
    if config.config is not None:
        return parts.make_encoder(config.config, config.class_name, weights=weights, **options)
    assert config.path is not None, "checked by the config"
    return parts.load_encoder(key, config.path, config.class_name, weights=weights, **options)


def _concatenated(key: str, towers: Mapping[str, TowerConfig], weights: bool) -> ConcatenatedEncoders:
    return ConcatenatedEncoders(
        {name: _module(key, tower, weights) for name, tower in towers.items()},
        skip_first={name: tower.skip_first for name, tower in towers.items()},
        layers={name: tower.layers for name, tower in towers.items() if tower.layers is not None},
    )


def _encoder(key: str, config: EncoderConfig, language_model: Any, weights: bool) -> ModalEncoderModule:
    towers = config.concatenate
    module = _concatenated(key, towers, weights) if towers else _module(key, config, weights)
    before = _built(config.callbacks.preprocess)
    behind = _built(config.callbacks.postprocess_module)
    if config.layers is not None or config.skip_first:
        layers = None if config.layers is None else tuple(config.layers)
        behind.insert(0, SelectFeatures(layers=layers, skip_first=config.skip_first))
        if layers is not None:
            before.append(OutputHiddenStates())
    if config.pool > 1:
        behind.append(AveragePool(size=config.pool, square=anatomy.main_input_name(module) == "pixel_values"))
    encoder = ModalEncoderModule(
        module,
        additional_args=config.additional_args,
        preprocess_callback=_one(before),
        postprocess_module_callback=_one(behind),
        postprocess_projector_callback=_one(_built(config.callbacks.postprocess_projector)),
    )
    width, dtype = anatomy.embedding_width(language_model), anatomy.parameter_dtype(language_model) or torch.float32
    wanted = config.projector
    if wanted.path is not None:
        encoder.projector = _projector(key, wanted, encoder, width, weights)
        projector_loading.as_precise(encoder.projector, anatomy.parameter_dtype(module), dtype)
    sizes = {"queries": wanted.queries, "layers": wanted.layers, "heads": wanted.heads}
    encoder.make_projector(width, dtype, wanted.type, wanted.activation, **sizes)
    return encoder


def _projector(key: str, config: ProjectorConfig, encoder: ModalEncoderModule, width: int, weights: bool) -> Any:
    assert config.path is not None, "checked by whoever asks"
    own = freezing.unwrap(encoder.module)
    rows = anatomy.observed_width(own) or anatomy.feature_width(own)
    if rows is not None:
        rows = callbacks.output_width(encoder.postprocess_module_callback, rows)
    revision = {"revision": config.revision} if config.revision is not None else {}
    projector = parts.load_projector(key, config.path, weights=weights, **revision)
    return projector_loading.fit(projector, key, config.path, (rows, width))


def _built(named: Sequence[NamedConfig]) -> list[Any]:
    return [callbacks.build({"name": entry.name, "arguments": entry.arguments}) for entry in named]


def _one(entries: list[Any]) -> Any:
    """Callbacks as one, in their order."""
    return Chain(callbacks=tuple(entries)) if len(entries) > 1 else next(iter(entries), None)


def _processor(config: TowerConfig, encoder: Any) -> Any:
    wanted = config.processor
    if isinstance(config, EncoderConfig) and config.concatenate and wanted == ProcessorConfig():
        return _one_processor(
            {name: _processor(tower, encoder.encoders[name]) for name, tower in config.concatenate.items()}
        )
    path = wanted.path or config.path
    if wanted.class_name is not None and wanted.path is None:
        return parts.make_processor(wanted.class_name, wanted.arguments)
    if path is None:
        raise ArgumentError(
            f"a {type(encoder).__name__} from scratch needs a processor: give processor.path, or processor.class_name "
            "and processor.arguments"
        )
    return parts.load_processor(encoder, path, **_origin(config, path), **wanted.arguments)


def _one_processor(processors: dict[str, Any]) -> Any:
    """The processor of encoders of the same images: one of theirs, if all prepare them alike."""
    described = [{**processor.to_dict(), "class": type(processor)} for processor in processors.values()]
    if all(other == described[0] for other in described):
        return next(iter(processors.values()))
    return ConcatenatedProcessor(processors)
