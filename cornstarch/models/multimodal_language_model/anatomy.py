"""Where a Hugging Face module keeps what; found by structure or by a row of a table, once, for everybody.

Everything here reads a module or a config; nothing changes it. Files that need to know how one model differs from
another ask here, so that supporting a model that differs in a new way is a row here and nothing elsewhere.
"""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs

from cornstarch.errors import ArgumentError

# --- widths -----------------------------------------------------------------------------------------------------------

# Where an encoder's config states the width of its output rows, if not under one of the generic names.
_FEATURE_WIDTH_BY_MODEL_TYPE = {
    "sam_vision_model": "output_channels",
    "sam_hq_vision_model": "output_channels",
    "sam2_hiera_det_model": "embed_dim_per_stage",
    "mobilevit": "neck_hidden_sizes",
    "mllama_vision_model": "vision_output_dim",
    "qwen2_5_omni_audio_encoder": "output_dim",
    "qwen3_omni_moe_audio_encoder": "output_dim",
}
# Encoders of transformers whose maps have their width last; those of all others have it behind the inputs.
_WIDTH_LAST = {"sam2_vision_model", "sam2_hiera_det_model", "edgetam_vision_model", "mllama_vision_model"}
# Generic names, the most specific first; of a list of widths (hierarchical encoders) the last is the output's.
_FEATURE_WIDTH_NAMES = ("out_hidden_size", "hidden_size", "d_model", "hidden_sizes", "embed_dim")
# Where a language model's config states the width of its embedding table (OPT-350m projects it to another).
_EMBEDDING_WIDTH_NAMES = ("word_embed_proj_dim", "hidden_size", "d_model", "n_embd")


def config_feature_width(config: Any) -> int | None:
    """Width of the rows an encoder with this config (or dict) yields; None if the config does not say."""
    if getattr(config, "add_adapter", False):  # Wav2Vec2 and its kin: a convolutional adapter behind the encoder
        return int(config.output_hidden_size)
    row = _FEATURE_WIDTH_BY_MODEL_TYPE.get(getattr(config, "model_type", ""))
    return _first_width(config, (row,) if row else _FEATURE_WIDTH_NAMES)


def config_embedding_width(config: Any) -> int | None:
    """Width of the input embeddings of a language model with this config (or dict); None if it does not say."""
    if isinstance(config, PreTrainedConfig):
        config = config.get_text_config()
    return _first_width(config, _EMBEDDING_WIDTH_NAMES)


def width_before_head(config: PreTrainedConfig) -> int:
    """Width of what the backbone of a language model with this config hands to the head."""
    return int(config.get_text_config().hidden_size)


def feature_width(encoder: nn.Module) -> int | None:
    """Width of the rows `encoder` yields, by its config's word or its own; None if neither states it."""
    return config_feature_width(getattr(encoder, "config", None)) or _first_width(encoder, _FEATURE_WIDTH_NAMES)


def observed_width(encoder: nn.Module) -> int | None:
    """Width of the rows a Hugging Face encoder yields, seen on the meta device; None where it cannot be run there.

    Configs name many widths, and the last layer's need not be the output's, so what can be seen is believed first.
    """
    fresh = _as_its_config_makes_it(encoder)
    shape = _example_shape(fresh) if fresh is not None else None
    if fresh is None or shape is None:
        return None
    try:
        with torch.no_grad():
            example = torch.empty(shape, dtype=parameter_dtype(fresh), device="meta")
            rows = _found_in(fresh, fresh.eval()(**{main_input_name(fresh): example}))
    except Exception:  # it needs values, other sizes or more arguments
        return None
    if not isinstance(rows, Tensor) or rows.dim() < 2:
        return None
    last = True if rows.dim() <= 3 else _has_width_last(fresh)
    return None if last is None else int(rows.shape[-1 if last else 1])


def _example_shape(encoder: nn.Module) -> tuple[int, ...] | None:
    """A shape that the main input of an encoder of images or sounds may have."""
    config = getattr(encoder, "config", None)
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    shapes = {"pixel_values": (1, getattr(config, "num_channels", 3), height, width), "input_values": (1, 16_000)}
    return shapes.get(main_input_name(encoder))


def embedding_width(language_model: nn.Module) -> int:
    """Width of the vectors that `language_model` takes as `inputs_embeds`."""
    embedding = language_model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[-1])


def vocabulary_size(language_model: nn.Module) -> int:
    """How many rows the embedding table of `language_model` has."""
    embedding = language_model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


def config_vocabulary_size(config: Any) -> int:
    """How many rows the embedding table of a language model with this config has."""
    return int(config.get_text_config().vocab_size)


def linear_widths(module: nn.Module) -> tuple[int | None, int | None]:
    """Input and output width of a module that states them, or starts and ends with `nn.Linear`; else None."""
    stated = (_attribute(module, "in_features"), _attribute(module, "out_features"))
    if all(isinstance(width, int) for width in stated):
        return stated
    leaves = [leaf for leaf in module.modules() if not list(leaf.children())]
    shaped = [leaf for leaf in leaves if any(True for _ in leaf.parameters())]
    if not isinstance(module, nn.Linear | nn.Sequential) or not shaped:
        return None, None
    first, last = shaped[0], shaped[-1]
    normalized = getattr(first, "normalized_shape", None)
    return (
        first.in_features if isinstance(first, nn.Linear) else normalized[-1] if normalized else None,
        last.out_features if isinstance(last, nn.Linear) else None,
    )


def _first_width(owner: Any, names: Sequence[str]) -> int | None:
    read = owner.get if isinstance(owner, Mapping) else functools.partial(_attribute, owner)
    for name in names:
        value = read(name)
        if isinstance(value, list | tuple) and value:
            value = value[-1]
        if isinstance(value, int):
            return value
    return None


def _attribute(owner: Any, name: str) -> Any:
    return getattr(owner, name, None)


# --- arguments --------------------------------------------------------------------------------------------------------

# Keywords that every Hugging Face language model takes through `**kwargs`, named by no forward signature.
KNOWN_KEYWORDS = frozenset(TransformersKwargs.__annotations__) | {
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "use_cache",
    "cache_position",
}

# The cache of a language model, under the names that models and releases of transformers have for it.
CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "cache_params", "layer_past")
# What layers call it: RWKV's have another name for it.
LAYER_CACHE_NAMES = (*CACHE_NAMES, "state")

# Names under which callers and processors know the arguments of towers that take patches and their grid.
_GRID_TOWER_ALIASES = {
    "hidden_states": ("pixel_values", "pixel_values_videos"),
    "grid_thw": ("image_grid_thw", "video_grid_thw"),
}


class ForwardArguments(NamedTuple):
    """What a forward method takes: its parameters' names in order, and whether it takes any other keyword."""

    names: tuple[str, ...]
    takes_any: bool


@functools.cache
def _signature(function: Callable[..., Any]) -> ForwardArguments:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return ForwardArguments(tuple(named), any(p.kind is p.VAR_KEYWORD for p in parameters))


def forward_arguments(module: nn.Module) -> ForwardArguments:
    """What the forward method of an unwrapped module takes; one that takes anything is its base class's.

    A module whose arguments depend on what it is made of states them as `argument_names`.
    """
    stated = getattr(module, "argument_names", None)
    return class_arguments(type(module)) if stated is None else ForwardArguments(tuple(stated), False)


def class_arguments(cls: type[nn.Module]) -> ForwardArguments:
    """What the forward method of a class of modules takes; see `forward_arguments`."""
    declared = [_signature(base.__dict__["forward"]) for base in cls.__mro__ if "forward" in base.__dict__]
    return next((found for found in declared if found.names), declared[0])


def language_model_arguments(language_model: nn.Module) -> ForwardArguments:
    """What an unwrapped causal language model takes: its own parameters and, through `**kwargs`, its backbone's."""
    own = forward_arguments(language_model)
    backbone = getattr(language_model, "base_model", None)
    if not own.takes_any or not isinstance(backbone, nn.Module) or backbone is language_model:
        return own
    inner = forward_arguments(backbone)
    return ForwardArguments(tuple(dict.fromkeys(own.names + inner.names)), own.takes_any)


def cache_aliases(language_model: nn.Module) -> dict[str, str]:
    """Every name of a cache, to the one that `language_model`'s forward has for it; empty if it takes none."""
    names = language_model_arguments(language_model).names
    own = next((name for name in CACHE_NAMES if name in names), None)
    return {} if own is None else dict.fromkeys(CACHE_NAMES, own)


def is_given_cache(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer is called with a cache, to which it writes.

    Args:
        names: of the parameters of its forward.
        args: of the call.
        kwargs: of the call.

    Returns:
        Whether it is.
    """
    named = [value for name, value in zip(names, args, strict=False) if name in LAYER_CACHE_NAMES]
    named += [value for name, value in kwargs.items() if name in LAYER_CACHE_NAMES]
    return any(value is not None for value in named) or any(
        isinstance(value, Cache) for value in (*args, *kwargs.values())
    )


def argument_aliases(encoder: nn.Module) -> dict[str, str]:
    """Names callers use for arguments of `encoder`'s forward, to the names the forward itself uses."""
    names = forward_arguments(encoder).names
    if not set(_GRID_TOWER_ALIASES) <= set(names):
        return {}
    return {alias: name for name, aliases in _GRID_TOWER_ALIASES.items() for alias in aliases}


def main_input_name(encoder: nn.Module) -> str:
    """The argument without which `encoder` cannot run: what Hugging Face states, else the forward's first."""
    names = forward_arguments(encoder).names
    if not names:
        raise ArgumentError(f"{type(encoder).__name__}.forward names no argument, so no input can reach it")
    stated = getattr(encoder, "main_input_name", None)
    return stated if stated in names else names[0]


def main_input_names(encoder: nn.Module) -> tuple[str, ...]:
    """The arguments of which `encoder` needs one at least; a module that can run by several states them."""
    return tuple(getattr(encoder, "main_input_names", None) or (main_input_name(encoder),))


# What encoders call a mask with an entry for each of their rows.
_MASKS_OF_ROWS = ("attention_mask", "pixel_attention_mask")


# --- outputs ----------------------------------------------------------------------------------------------------------

Rows = Tensor | list[Tensor]


@dataclasses.dataclass(frozen=True)
class Features:
    """Rows of an encoder, and what else of it the language model is to get: an output of a callback.

    Attributes:
        rows: hidden states or features, as anywhere else.
        extras: name to value; the callback before the language model is given each as `{key}_{name}`.
    """

    rows: Rows
    extras: Mapping[str, Any]


def rows_of(features: Rows | Features) -> Rows:
    """The rows, whether or not something comes with them."""
    return features.rows if isinstance(features, Features) else features


def hidden_states(encoder: nn.Module, output: Any, width: int | None = None) -> Rows:
    """The hidden states in what an encoder (or a callback after it) returned.

    Args:
        encoder: the unwrapped encoder.
        output: a `ModelOutput`, a tuple whose first item is the hidden states, a tensor, or a list of tensors with
            one (T_i, D) tensor per input.
        width: D, where what comes next says it; None where only the encoder can.

    Returns:
        (N, T, D) with one row block per input, (M, D) where inputs are packed, or the list as it was.

    Raises:
        ArgumentError: if nothing in the output has the shape of hidden states, or it does not show which axis is D.
    """
    output = _found_in(encoder, output)
    if isinstance(output, list) and all(isinstance(item, Tensor) for item in output):
        return [item.flatten(0, -2) for item in output]
    if not isinstance(output, Tensor) or output.dim() < 2:
        found = f"tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ArgumentError(
            f"{type(encoder).__name__} gave {found} where hidden states were expected: a `last_hidden_state`, "
            "a tensor of shape (inputs, positions, width), or a list with one (positions, width) tensor per input"
        )
    return output if output.dim() <= 3 else _row_major(encoder, output, width)


def _found_in(encoder: nn.Module, output: Any) -> Any:
    """The hidden states as an encoder returned them, of any shape; None if there are none."""
    if isinstance(output, ModelOutput):
        merged = getattr(output, "pooler_output", None) if hasattr(encoder, "merger") else None
        return merged if merged is not None else getattr(output, "last_hidden_state", None)
    if isinstance(output, tuple):
        return output[0] if output else None
    return output


def _row_major(encoder: nn.Module, maps: Tensor, width: int | None) -> Tensor:
    """(N, D, H, W) maps, or (N, ..., D) grids of rows, as (N, T, D) with the last axis of positions fastest."""
    if _is_width_last(encoder, maps, width):
        return maps.flatten(1, -2)
    return maps.flatten(2).transpose(1, 2)


def _is_width_last(encoder: nn.Module, maps: Tensor, width: int | None) -> bool:
    shape = tuple(maps.shape)
    wanted = feature_width(encoder) if width is None else width
    first, last = shape[1] == wanted, shape[-1] == wanted
    if first != last:
        return last
    if width is not None and not first:
        raise ArgumentError(
            f"the projector takes width {width}, the encoder (and its callback) gave maps of shape {shape}, "
            "which have it neither behind the inputs nor last"
        )
    known = _has_width_last(encoder)
    if known is None:
        raise ArgumentError(
            f"{type(encoder).__name__} gave maps of shape {shape}, which do not show whether axis 1 or the last is "
            "the width: return rows of shape (inputs, positions, width)"
        )
    return known


def _has_width_last(encoder: nn.Module) -> bool | None:
    """Whether maps of an encoder have their width last, by its type; None if the type is not of transformers."""
    if not type(encoder).__module__.startswith("transformers."):
        return None
    return getattr(getattr(encoder, "config", None), "model_type", "") in _WIDTH_LAST


def packed_feature_counts(encoder: nn.Module, inputs: Mapping[str, Any]) -> list[int] | None:
    """Rows of each input of a tower that packs its inputs into one sequence, told by their grids, sizes or lengths.

    Args:
        encoder: the unwrapped encoder.
        inputs: what it is called with, under its own argument names.

    Returns:
        One count per input; None where nothing tells.
    """
    grid, sizes, lengths = (inputs.get(name) for name in ("grid_thw", "image_sizes", "feature_lens"))
    if isinstance(grid, Tensor):
        merged = int(getattr(encoder, "spatial_merge_size", 1)) ** 2
        return [int(cells) // merged for cells in grid.prod(-1).tolist()]
    patch = getattr(getattr(encoder, "config", None), "patch_size", None)
    if sizes is not None and isinstance(patch, int):
        return [int(count) for count in (torch.as_tensor(sizes) // patch).prod(-1).tolist()]
    if isinstance(lengths, Tensor) and lengths.dim() == 1:
        return _output_lengths(encoder, lengths)
    return None


def padded_feature_counts(encoder: nn.Module, inputs: Mapping[str, Any]) -> list[int] | None:
    """Rows of each input that are no padding, by the mask and the encoder's own map of input to output lengths.

    Args:
        encoder: the unwrapped encoder.
        inputs: what it is called with, under its own argument names.

    Returns:
        One count per input; None without such a map or a mask (inputs, input length).
    """
    mask = inputs.get("attention_mask")
    mask = inputs.get("feature_attention_mask") if mask is None or mask.dim() != 2 else mask
    return _output_lengths(encoder, mask.sum(-1)) if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _output_lengths(encoder: nn.Module, lengths: Tensor) -> list[int] | None:
    """Lengths of inputs (N,) to numbers of rows by the encoder's own map, which convolutional ones have."""
    lengths_of = getattr(encoder, "_get_feat_extract_output_lengths", None)
    if lengths_of is None:
        return None
    found = lengths_of(lengths)
    # Formulas of convolutions go below zero for inputs that are shorter than a kernel.
    return [max(0, int(length)) for length in (found[-1] if isinstance(found, tuple) else found).tolist()]


def mask_of_rows(inputs: Mapping[str, Any], rows: Tensor) -> Tensor | None:
    """Which rows (N, T, D) are no padding, where a mask has one entry for each of them (text, patches of any size).

    Args:
        inputs: what the encoder is called with, under its own argument names.
        rows: its hidden states.

    Returns:
        (N, T) of booleans; None without such a mask.
    """
    masks = (inputs.get(name) for name in _MASKS_OF_ROWS)
    fitting = (mask for mask in masks if isinstance(mask, Tensor) and mask.shape == rows.shape[:2])
    return next((mask.bool() for mask in fitting), None)


# --- language models --------------------------------------------------------------------------------------------------


def first_position(language_model: nn.Module) -> int:
    """The position id of the first token: 0, but behind the padding id in models built like RoBERTa."""
    for module in language_model.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def most_positions(language_model: nn.Module) -> int | None:
    """How many positions a language model has in a table, learned or computed; None where any number will do."""
    sizes = [
        module.num_embeddings - int(getattr(module, "offset", 0))
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Embedding) and _tells_positions(name)
    ]
    sizes += [
        buffer.shape[0]
        for name, buffer in language_model.named_buffers()
        if buffer.dim() == 2 and buffer.is_floating_point() and _tells_positions(name)
    ]
    return min(sizes) - first_position(language_model) if sizes else None


def positions_made_for(language_model: nn.Module) -> int | None:
    """How many positions a language model was made for, by its config's word; None if that says nothing."""
    config = getattr(language_model, "config", None)
    found = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    return found if isinstance(found, int) and found > 0 else None


def _tells_positions(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf == "wpe" or "position" in leaf


def generates_from_embeddings(language_model: nn.Module) -> bool:
    """Whether an unwrapped language model's own `generate` can start from embeddings."""
    prepare = getattr(language_model, "prepare_inputs_for_generation", None)
    can_start = prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters
    return can_start and hasattr(language_model, "generate")


def why_not_by_embeddings(language_model: nn.Module) -> str | None:
    """Why a language model cannot be run on embeddings alone; None if it can."""
    config = getattr(language_model, "config", None)
    text_config = config.get_text_config() if isinstance(config, PreTrainedConfig) else config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, not a causal language model"
    if getattr(text_config, "hidden_size_per_layer_input", 0):
        return "its layers look token ids up in embeddings of their own, which merged embeddings cannot carry"
    if "inputs_embeds" not in language_model_arguments(language_model).names:
        return "its forward takes no inputs_embeds, which merged embeddings are"
    if any(map(_needs_ids, {type(module) for layer in layers(language_model) for module in layer.modules()})):
        return "its layers are routed by token ids, which merged embeddings cannot carry"
    return None


def _needs_ids(cls: type[nn.Module]) -> bool:
    ids = inspect.signature(cls.forward).parameters.get("input_ids")
    return ids is not None and ids.default is ids.empty and not issubclass(cls, nn.Embedding)


# --- inside -----------------------------------------------------------------------------------------------------------


def layers(part: nn.Module) -> list[nn.Module]:
    """The repeated layers of a part in order, as Hugging Face marks them, else the members of its `ModuleList`s."""
    marked = _marked(part)
    if marked:
        nested = {id(inner) for outer in marked for inner in outer.modules() if inner is not outer}
        return [module for module in marked if id(module) not in nested]
    return [layer for stack in stacks(part) for layer in stack]


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: it is called so, and has vectors only."""
    parameters = list(module.parameters())
    return "norm" in type(module).__name__.lower() and bool(parameters) and all(p.dim() <= 1 for p in parameters)


def stacks(part: nn.Module) -> list[nn.ModuleList]:
    """The lists of layers in a part, in the order in which they stand; lists inside layers (experts) are none.

    A layer, of whatever class, is made of modules and multiplies by a matrix. Where no list holds such layers, lists
    of one class count (stages of convolutions, a plain list of `nn.Linear`).
    """
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList) and _members(module)]
    found = [stack for stack in lists if _holds_layers(stack)] or [
        stack for stack in lists if len({type(member) for member in stack}) == 1
    ]
    nested = {id(inner) for stack in found for inner in stack.modules() if inner is not stack}
    return [stack for stack in found if id(stack) not in nested]


def _members(stack: nn.ModuleList) -> list[nn.Module]:
    return [member for member in stack if any(True for _ in member.parameters())]


def _holds_layers(stack: nn.ModuleList) -> bool:
    return all(
        any(True for _ in member.children())
        and any(parameter.dim() == 2 for parameter in member.parameters())
        and (isinstance(member, GradientCheckpointingLayer) or not _marked(member))  # else the layers are further in
        for member in _members(stack)
    )


def _marked(module: nn.Module) -> list[nn.Module]:
    """The modules that Hugging Face marks as layers."""
    return [inner for inner in module.modules() if isinstance(inner, GradientCheckpointingLayer)]


def fixed_parameters(module: nn.Module) -> frozenset[str]:
    """Parameters that Hugging Face classes in a module never train (Whisper's sinusoids), told by their configs."""
    fresh = _as_its_config_makes_it(module)
    if fresh is not None:
        return frozenset(name for name, parameter in fresh.named_parameters() if not parameter.requires_grad)
    inner = {name: child for name, child in module.named_children() if not isinstance(module, PreTrainedModel)}
    return frozenset(f"{name}.{fixed}" for name, child in inner.items() for fixed in fixed_parameters(child))


def left_out_modules(module: nn.Module) -> list[str]:
    """Submodules that a module's config would make and that it was made without (`add_pooling_layer=False`)."""
    fresh = _as_its_config_makes_it(module)
    if fresh is None:
        return []
    own = {name for name, _ in module.named_modules()}
    missing = [name for name, _ in fresh.named_modules() if name not in own]
    return [name for name in missing if name.rpartition(".")[0] not in missing]


def elements_by_config(cls: type[PreTrainedModel], config: PreTrainedConfig, left_out: Sequence[str]) -> int | None:
    """How many numbers the weights of a Hugging Face model hold, tied ones under each name.

    Args:
        cls: its class.
        config: its config.
        left_out: submodules that it was made without.

    Returns:
        The number; None where the class needs more than its config.
    """
    made = _on_meta(cls, config)
    if made is None:
        return None
    counts: dict[str, int] = {name: weight.numel() for name, weight in made.state_dict().items()}
    return sum(count for name, count in counts.items() if not any(name.startswith(f"{gone}.") for gone in left_out))


def _as_its_config_makes_it(module: nn.Module) -> nn.Module | None:
    """A Hugging Face module made again from its config, without weights; None where that cannot be done."""
    return _on_meta(type(module), module.config) if isinstance(module, PreTrainedModel) else None


def _on_meta(cls: type[PreTrainedModel], config: PreTrainedConfig) -> nn.Module | None:
    """A Hugging Face module without weights; None where a class needs more than its config."""
    try:
        with torch.device("meta"):
            return cls._from_config(copy.deepcopy(config))  # type: ignore[no-any-return]
    except Exception:
        return None


def input_dtype(encoder: nn.Module) -> torch.dtype | None:
    """The dtype of the numbers an encoder takes: its weights'; None for a module that states that it takes any."""
    return getattr(encoder, "input_dtype", parameter_dtype(encoder))  # type: ignore[no-any-return]


def parameter_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of a module's first floating-point parameter; None if it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
