"""7b. The format of LLaVA-1.5 (https://arxiv.org/abs/2310.03744): one vision tower, two linears, a language model.

What the format has: rows of chosen hidden states of the tower, with or without the first; linear, activation, linear; a
backbone with a head that is one product without bias. Ids of images are looked up in the embedding table, and their
rows replaced.
"""

import copy
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaProcessor
from transformers.activations import ACT2CLS, ACT2FN
from transformers.image_processing_base import ImageProcessingMixin

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import (
    anatomy,
    callbacks,
    chat_templates,
    export_checks,
    library,
    shells,
)
from cornstarch.models.multimodal_language_model.callbacks import Chain, OutputHiddenStates, SelectFeatures
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

_LAST = (-1,)
_TIED = "embed_tokens.weight"  # of the backbone; what LLaVA can tie its head to


class _Selection(NamedTuple):
    """Which rows of the tower the projector gets: layers as Hugging Face counts them, and how many are left out."""

    layers: tuple[int, ...]
    skip_first: int


class _Projection(NamedTuple):
    """The two linears, and the name of the activation between them."""

    first: nn.Linear
    second: nn.Linear
    activation: str


def shell(model: MultimodalModel, processor: shells.Processor) -> shells.Shell:
    """A LLaVA of a model's own modules.

    Args:
        model: a replica of plain parts, changed and used up.
        processor: of the model.

    Returns:
        The LLaVA and its processor.

    Raises:
        ArgumentError: if something in the model has no counterpart, with the reason.
    """
    if not isinstance(processor, MultimodalProcessor):
        raise ArgumentError(f"the format 'llava' needs a MultimodalProcessor, found {type(processor).__name__}")
    key, encoder = _only_encoder(model)
    tower, language_model = encoder.module, model.language_model
    _check_processor(key, processor)
    inputs = export_checks.probe_inputs(processor, key)
    pixels = inputs[0]["pixel_values"].to(model.device, anatomy.parameter_dtype(tower))
    selection = _selection(key, encoder, pixels)
    projection = _projection(encoder)
    token_id, notes = model.modality_token_ids[key], []
    head = _head(language_model)
    notes += _settle_ties(language_model, head, language_model.config.tie_word_embeddings)
    words = anatomy.vocabulary_size(language_model)
    notes += _make_room(language_model, head, token_id)
    default = selection.skip_first == 1

    config = _config(tower, language_model, head, token_id)
    config.image_seq_length = int((inputs[0]["input_ids"] == token_id).sum())
    config.vision_feature_layer = selection.layers[0] if selection.layers[1:] == () else list(selection.layers)
    if config.vision_feature_layer == 0:  # to transformers the layer 0 alone means none
        config.vision_feature_layer = [0]
    config.vision_feature_select_strategy = "default" if default else "full"
    config.projector_hidden_act = projection.activation
    config.multimodal_projector_bias = projection.first.bias is not None

    llava = shells.on_meta(config)
    expected = shells.weight_shapes(llava)
    notes += shells.graft(llava, "model.vision_tower", tower, f"the encoder {key!r}")
    notes += shells.graft(llava, "model.language_model", language_model.base_model, "the language model's backbone")
    llava.model.multi_modal_projector.linear_1 = projection.first
    llava.model.multi_modal_projector.linear_2 = projection.second
    llava.lm_head = head
    shells.check_weights(llava, expected, "llava")
    own = getattr(language_model, "generation_config", None) or llava.generation_config
    llava.generation_config = _generation_config(own, processor, range(words, config.text_config.vocab_size))
    if getattr(tower.config, "tie_last_hidden_states", None):
        notes.append(
            "The vision tower's last hidden state is taken behind its final norm (`tie_last_hidden_states`), which old "
            "releases of transformers do not know of."
        )
    taken = anatomy.language_model_arguments(language_model).names
    counterpart = _processor(key, processor, tower.config, config.vision_feature_select_strategy, inputs, taken)
    return shells.Shell(model=llava.eval(), processor=counterpart, notes=tuple(notes))


# --- the encoder ------------------------------------------------------------------------------------------------------


def _only_encoder(model: MultimodalModel) -> tuple[str, ModalEncoderModule]:
    encoders = model._modal_encoders
    if len(encoders) != 1:
        raise ArgumentError(
            f"a LLaVA has one encoder, of images; this model has {len(encoders)}: {', '.join(encoders) or 'none'}"
        )
    ((key, encoder),) = encoders.items()
    if model.preprocess_llm_callback is not None:
        raise ArgumentError(
            "preprocess_llm_callback has no counterpart in LLaVA: nothing runs before its language model"
        )
    if encoder.postprocess_projector_callback is not None:
        raise ArgumentError(
            f"modality {key!r}: postprocess_projector_callback has no counterpart in LLaVA: what its projector gives "
            "goes to the language model as it is"
        )
    wanted = anatomy.main_input_name(encoder.module)
    if wanted != "pixel_values":
        raise ArgumentError(f"modality {key!r}: its encoder takes {wanted}, the one of a LLaVA takes pixel_values")
    return key, encoder


def _selection(key: str, encoder: ModalEncoderModule, pixels: Tensor) -> _Selection:
    """Which rows go to the projector, where LLaVA can say so."""
    before, behind = _flat(encoder.preprocess_callback), _flat(encoder.postprocess_module_callback)
    strange = [entry for entry in before if type(entry) is not OutputHiddenStates]
    strange += [entry for entry in behind if type(entry) is not SelectFeatures] + behind[1:]
    if strange:
        own = callbacks.describe(strange[0]) is None
        name = "a callback of the caller's own" if own else type(strange[0]).__name__
        raise ArgumentError(
            f"modality {key!r}: {name} has no counterpart in LLaVA, whose projector gets every row of chosen layers, "
            "but for the first: at most OutputHiddenStates before the encoder and one SelectFeatures behind it"
        )
    chosen = behind[0] if behind else SelectFeatures()
    if chosen.skip_first not in (0, 1):
        raise ArgumentError(
            f"modality {key!r}: SelectFeatures(skip_first={chosen.skip_first}) has no counterpart in LLaVA, which "
            "leaves out the first row or none"
        )
    if chosen.layers is not None:
        return _Selection(chosen.layers, chosen.skip_first)
    _let_the_last_layer_be_the_output(key, encoder.module, pixels)
    return _Selection(_LAST, chosen.skip_first)


def _flat(callback: Any) -> list[Any]:
    """The callbacks that run in the place of one."""
    if isinstance(callback, Chain):
        return [inner for entry in callback.callbacks for inner in _flat(entry)]
    return [] if callback is None else [callback]


def _let_the_last_layer_be_the_output(key: str, tower: Any, pixels: Tensor) -> None:
    """See to it that the last hidden state that a tower lists is its output, as LLaVA takes it from the list."""
    for ties in (False, True):
        if ties:
            tower.config.tie_last_hidden_states = True
        with torch.no_grad():
            output = tower(pixel_values=pixels, output_hidden_states=True)
        if output.last_hidden_state.dim() != 3:
            raise ArgumentError(
                f"modality {key!r}: {type(tower).__name__} yields maps; LLaVA's projector gets rows, one a patch"
            )
        states = getattr(output, "hidden_states", None)
        last, wanted = states[-1] if states else None, output.last_hidden_state
        if last is None or last.shape != wanted.shape:
            difference = "it lists none of that shape"
        elif torch.equal(last, wanted):
            return
        else:
            difference = f"they differ by {(last - wanted).abs().max().item():.3g}"
    raise ArgumentError(
        f"modality {key!r}: the projector gets the output of {type(tower).__name__}, and LLaVA takes one of the hidden "
        f"states it lists, of which the last is not the output ({difference}; a norm behind the last layer does that). "
        "Compose it with OutputHiddenStates() and SelectFeatures(layers=(-1,)) to train a model that can be exported"
    )


# --- the projector ----------------------------------------------------------------------------------------------------


def _projection(encoder: ModalEncoderModule) -> _Projection:
    projector = encoder.projector
    assert projector is not None, "a model gives every encoder a projector"
    inner = projector.projection
    if type(inner) is nn.Linear:
        return _Projection(inner, _identity(inner), "linear")
    stages: list[Any] = list(inner) if type(inner) is nn.Sequential else []
    if len(stages) != 3 or [type(stage) is nn.Linear for stage in stages] != [True, False, True]:
        raise ArgumentError(
            f"the projector is a {type(inner).__name__}"
            + (f" of {', '.join(type(stage).__name__ for stage in stages)}" if stages else "")
            + "; the one of a LLaVA is linear, activation, linear (or, with an identity behind it, one linear)"
        )
    first, between, second = stages
    for one, other in ((first, second), (second, first)):
        if one.bias is None and other.bias is not None:
            one.bias = nn.Parameter(torch.zeros_like(one.weight[:, 0]), requires_grad=False)
    stated = getattr(projector.config, "activation", None)
    return _Projection(first, second, _activation_name(between, stated))


def _identity(before: nn.Linear) -> nn.Linear:
    """A linear that changes nothing, with a bias if the one before it has one."""
    width, weight = before.out_features, before.weight
    made = nn.Linear(width, width, bias=before.bias is not None, device="meta", dtype=weight.dtype)
    made.weight = nn.Parameter(torch.eye(width, dtype=weight.dtype, device=weight.device), requires_grad=False)
    if before.bias is not None:
        made.bias = nn.Parameter(torch.zeros_like(before.bias), requires_grad=False)
    return made


def _activation_name(activation: nn.Module, stated: str | None) -> str:
    """The name under which transformers has an activation, found by what it computes."""
    points = torch.linspace(-6.0, 6.0, 97)
    if not any(True for _ in activation.parameters()):
        with torch.no_grad():
            wanted = activation(points)
            for name in sorted(ACT2CLS, key=lambda name: (name != stated, name)):
                try:
                    found = ACT2FN[name]
                    if not any(True for _ in found.parameters()) and torch.allclose(found(points), wanted, atol=1e-7):
                        return str(name)
                except Exception:  # activations that need an optional package, or other arguments
                    continue
    raise ArgumentError(f"the projector's activation {type(activation).__name__} is none that transformers has by name")


# --- the language model -----------------------------------------------------------------------------------------------


def _head(language_model: Any) -> nn.Linear:
    head = language_model.get_output_embeddings()
    backbone = language_model.base_model
    if backbone is language_model or not isinstance(head, nn.Linear):
        raise ArgumentError(
            f"{type(language_model).__name__} is no backbone with a linear head behind it, as LLaVA's language model is"
        )
    if head.bias is not None:
        raise ArgumentError(
            f"the head of {type(language_model).__name__} has a bias, the one of a LLaVA has none: logits would differ"
        )
    return head


def _settle_ties(language_model: Any, head: nn.Linear, tied: bool) -> list[str]:
    """Have the head share its weight with the embedding table where it did in the model, and LLaVA can say so."""
    table = language_model.get_input_embeddings()
    if head.weight is not table.weight and tied and torch.equal(head.weight, table.weight):
        head.weight = table.weight  # adapters of both were merged, with the same result
    names = {name for name, weight in language_model.base_model.named_parameters() if weight is table.weight}
    if head.weight is not table.weight or _TIED in names:
        return []
    head.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=False)
    return ["The head, which the model shares with its embedding table, is written beside it: LLaVA cannot tie these."]


def _make_room(language_model: Any, head: nn.Linear, token_id: int) -> list[str]:
    """Rows up to the images' id in the embedding table and the head, which the format looks ids up in."""
    table = language_model.get_input_embeddings()
    rows = int(table.weight.shape[0])
    if token_id < rows:
        return []
    tied = head.weight is table.weight
    if head.weight.shape[0] == rows:
        head.weight = _grown(head.weight, token_id + 1)
        head.out_features = token_id + 1
    table.weight = head.weight if tied else _grown(table.weight, token_id + 1)
    table.num_embeddings = token_id + 1
    new = f"row {token_id} was" if token_id == rows else f"rows {rows} to {token_id} were"
    return [
        f"The vocabulary had no row for the id {token_id} of an image: {new} added to the embedding table and the "
        "head, with zeros, and is never generated (`suppress_tokens` in generation_config.json)."
    ]


def _grown(weight: Tensor, rows: int) -> nn.Parameter:
    new = weight.new_zeros(rows - weight.shape[0], weight.shape[1])
    return nn.Parameter(torch.cat([weight.detach(), new]), requires_grad=False)


def _config(tower: Any, language_model: Any, head: nn.Linear, token_id: int) -> LlavaConfig:
    table = language_model.get_input_embeddings()
    text, vision = copy.deepcopy(language_model.config), copy.deepcopy(tower.config)
    text.vocab_size = table.weight.shape[0]
    text.tie_word_embeddings = head.weight is table.weight
    for config, part in ((text, language_model), (vision, tower)):
        config.dtype = anatomy.parameter_dtype(part)
    try:
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=token_id,
            tie_word_embeddings=text.tie_word_embeddings,
            dtype=text.dtype,
        )
    except Exception as error:  # configs check themselves in ways of their own
        raise ArgumentError(f"transformers cannot make a LLaVA of these parts: {error}") from error


def _generation_config(own: Any, processor: MultimodalProcessor, added: range) -> Any:
    """The language model's own, which ends answers where the chat template does, and gives no id that was added."""
    made = copy.deepcopy(own)
    made._from_model_config = False  # or loading may make it anew from the config, which knows of no such ids
    known = made.eos_token_id
    ends = set(known if isinstance(known, list) else [] if known is None else [known])
    end = chat_templates.end_of_turn(processor.llm_tokenizer)
    if end is not None and end not in ends:
        made.eos_token_id = sorted({*ends, end}) if ends else end
    if made.pad_token_id is None:
        made.pad_token_id = processor.llm_tokenizer.pad_token_id
    if len(added):
        made.suppress_tokens = sorted({*(made.suppress_tokens or []), *added})
    return made


# --- the processor ----------------------------------------------------------------------------------------------------


def _check_processor(key: str, processor: MultimodalProcessor) -> None:
    found = processor.encoder_processors.get(key)
    if not isinstance(found, ImageProcessingMixin) or not library.is_found(type(found)):
        raise ArgumentError(
            f"modality {key!r}: its processor is {'missing' if found is None else f'a {type(found).__name__}'}; "
            "AutoProcessor loads image processors of transformers"
        )
    if processor.media_arguments[key][0] != "images":
        raise ArgumentError(
            f"modality {key!r}: its processor takes {processor.media_arguments[key][0]}, LLaVA's images"
        )


def _processor(
    key: str,
    processor: MultimodalProcessor,
    vision: Any,
    strategy: str,
    inputs: list[dict[str, Any]],
    taken: Collection[str],
) -> LlavaProcessor:
    """LLaVA's processor, which counts positions by patches: as many as ours, or a refusal."""
    patch = getattr(vision, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) and len(set(patch)) == 1 else patch
    if not isinstance(patch, int):
        raise ArgumentError(
            f"modality {key!r}: LLaVA's processor counts positions by square patches, and the encoder's config states "
            f"patch_size {patch!r}"
        )
    further, counted = set(), []
    for batch in inputs:
        height, width = batch["pixel_values"].shape[-2:]
        positions = int((batch["input_ids"] == processor.token_ids[key]).sum())
        further.add(positions + (strategy == "default") - (height // patch) * (width // patch))
        counted.append(f"{positions} for {height} by {width}")
    if len(further) != 1 or min(further) < 0:
        raise ArgumentError(
            f"modality {key!r}: LLaVA's processor gives an image a position for every patch of {patch} by {patch} "
            f"pixels and some for all; this model has positions {', '.join(counted)} pixels"
        )
    tokenizer, mark = copy.deepcopy(processor.llm_tokenizer), processor.tokens[key]
    types = processor.media_arguments[key][1]
    if chat_templates.form_of(tokenizer, None, dict.fromkeys(types[1:], mark)) is None:
        tokenizer.chat_template = chat_templates.with_typed_content(tokenizer.chat_template, mark, types)
    names = [name for name in tokenizer.model_input_names if name in ("input_ids", "attention_mask", *taken)]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    made = LlavaProcessor(
        copy.deepcopy(processor.encoder_processors[key]),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        chat_template=tokenizer.chat_template,
        image_token=mark,
        num_additional_image_tokens=further.pop(),
    )
    if made.image_token != mark:
        raise ArgumentError(
            f"the tokenizer has an image token of its own, {made.image_token!r}, which LLaVA's processor would take "
            f"for {mark!r}: make the processor with predefined_tokens={{{key!r}: {made.image_token!r}}}"
        )
    return made
