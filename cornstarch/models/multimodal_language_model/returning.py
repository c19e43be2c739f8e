"""7c. Back into the format that a model came from: its parts in the places that they were taken from."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from cornstarch.errors import ArgumentError, CheckpointError
from cornstarch.models.multimodal_language_model import (
    anatomy,
    callbacks,
    chat_templates,
    importing_processors,
    library,
    shapes,
    shells,
)
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor
from cornstarch.models.multimodal_language_model.shapes import Shape

_CALLBACKS = ("preprocess_callback", "postprocess_module_callback", "postprocess_projector_callback")
# Arguments that mark positions, which originals take from their processors and compositions see by themselves.
_MARKING = ("mm_token_type_ids", "token_type_ids")


def shell(model: MultimodalModel, processor: shells.Processor) -> shells.Shell:
    """The model that a composition was imported from, with the composition's weights, and its own processor.

    Args:
        model: a replica of plain parts, used up.
        processor: that of the import; or the one of Hugging Face's that came with the original.

    Returns:
        The original and its processor.

    Raises:
        ArgumentError: as `original_of`; or if the processor is not the original's.
    """
    made = original_of(model)
    if not isinstance(processor, MultimodalProcessor):
        return shells.Shell(model=made, processor=processor)
    if not processor.origin_files:
        raise ArgumentError(
            "the processor was not made of the original's, whose files the format needs: give the original's own "
            "(AutoProcessor.from_pretrained), or make it with MultimodalProcessor.from_pretrained_multimodal_model"
        )
    names = anatomy.forward_arguments(made).names

    def inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
        (mark,) = model.modality_token_ids.values()
        marks = (batch["input_ids"] == mark).long()
        return {**batch, **{name: marks for name in _MARKING if name in names}}

    files = shells.OriginalProcessor(processor.llm_tokenizer, _files(processor))
    return shells.Shell(model=made, processor=files, inputs=inputs)


def _files(processor: MultimodalProcessor) -> Mapping[str, str]:
    """The original's files, with the chat template that the model was trained with, if that is another one."""
    tokenizer: Any = processor.llm_tokenizer
    template = tokenizer.chat_template
    if not isinstance(template, str) or template == importing_processors.chat_template(processor.origin_files):
        return processor.origin_files
    ((key, (_, types)),) = processor.media_arguments.items()
    mark = processor.tokens[key]
    if chat_templates.form_of(tokenizer, None, dict.fromkeys(types[1:], mark)) is None:
        template = chat_templates.with_typed_content(template, mark, types)
    return importing_processors.with_template(processor.origin_files, template)


def original_of(model: MultimodalModel) -> Any:
    """A model of the class that a composition was imported from, around the composition's own modules.

    Args:
        model: without adapters; its modules are shared, not copied.

    Returns:
        The model, in evaluation mode.

    Raises:
        ArgumentError: if the composition was not imported, or was changed in a way that the format has no place for.
        CheckpointError: if what it knows of its origin is damaged.
    """
    origin = model.origin
    if origin is None:
        raise ArgumentError(
            "the model was not imported, so there is no format that it came from: choose one, such as llava"
        )
    shape = next((shape for shape in shapes.SHAPES if shape.name == origin.get("shape")), None)
    if shape is None:
        raise ArgumentError(
            f"the model was imported by the shape {origin.get('shape')!r}, which this version does not know"
        )
    cls = _class(origin.get("class"), PreTrainedModel)
    config_class = _class(origin.get("config_class"), PreTrainedConfig)
    try:
        config: PreTrainedConfig = config_class.from_dict(dict(origin["config"]))
    except Exception as error:  # a damaged one fails in ways of its own
        raise CheckpointError(f"the config that the model was imported with is damaged: {error!r}") from error
    _describe_parts(config, model, shape)
    with torch.device("meta"):
        made: Any = cls._from_config(config)
    _check(model, made, shape)
    if config.tie_word_embeddings and not made._tied_weights_keys:
        raise ArgumentError(
            f"the head of the language model is tied to its embeddings now, and {cls.__name__} cannot tie them: give "
            "the head weights of its own"
        )
    expected = shells.weight_shapes(made)
    for ours, theirs in shape.modules.items():
        _put(made, theirs, shapes.place_of(model, ours))
    shells.check_weights(made, expected, config.model_type)
    empty = [name for name, weight in (*made.named_parameters(), *made.named_buffers()) if weight.is_meta]
    assert not empty, f"the shape {shape.name} has no place for {empty}"
    made.generation_config = model.generation_config
    return made.eval()


def _class(path: Any, base: type) -> Any:
    found = library.find_class(path, "the model's origin") if isinstance(path, str) else path
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(f"the model's origin names {path!r}, which is no {base.__name__} of transformers")
    return found


def _describe_parts(config: PreTrainedConfig, model: MultimodalModel, shape: Shape) -> None:
    """Say in the original's config what its parts are now: one may have been replaced, or have grown."""
    for place, entry in shape.configs.items():
        found = getattr(shapes.place_of(model, place), "config", None)
        if type(found) is type(getattr(config, entry)):  # of another class is refused, by its place
            setattr(config, entry, copy.deepcopy(found))
    config.get_text_config().vocab_size = anatomy.vocabulary_size(model.language_model)
    language_model: Any = model.language_model
    head, embedding = language_model.get_output_embeddings(), language_model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for described in (config, config.get_text_config()):
        described.tie_word_embeddings = tied


def _put(root: nn.Module, path: str, part: Any) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(shapes.place_of(root, owner) if owner else root, leaf, part)


def _check(model: MultimodalModel, made: PreTrainedModel, shape: Shape) -> None:
    """Refuse a composition that is no longer as the shape makes it."""
    with torch.device("meta"):
        encoder, callback = shape.encoder(made), shape.callback(made)
    if set(model.encoders) != {shape.key}:
        raise ArgumentError(
            f"the model has the encoders {', '.join(model.encoders)}, its original format has {shape.key!r} only"
        )
    mine = model._modal_encoders[shape.key]
    for name in _CALLBACKS:
        _compare(f"{shape.key}_encoder.{name}", getattr(mine, name), getattr(encoder, name))
    _compare("preprocess_llm_callback", model.preprocess_llm_callback, callback)
    for ours in shape.modules:
        found, expected = shapes.place_of(model, ours), shapes.place_of(_AsComposed(encoder, made, shape), ours)
        if type(found) is not type(expected):
            raise ArgumentError(
                f"{ours} is a {type(found).__name__} now; the format that it came from has a {type(expected).__name__}"
            )


def _compare(place: str, found: Any, expected: Any) -> None:
    if found is None and expected is None:
        return
    described = [callbacks.describe(callback) for callback in (found, expected)]
    if described[0] is None or described[0] != described[1]:
        raise ArgumentError(
            f"{place} is {found!r} now, where {expected!r} stood when the model was imported: its format has no place "
            "for another one"
        )


class _AsComposed:
    """The parts of a model that was never composed, under the places that a composition has for them."""

    def __init__(self, encoder: ModalEncoderModule, made: PreTrainedModel, shape: Shape) -> None:
        setattr(self, f"{shape.key}_encoder", encoder)
        self.language_model = self
        self.base_model = shapes.place_of(made, shape.modules["language_model.base_model"])
        self.lm_head = shapes.place_of(made, shape.modules["language_model.lm_head"])
