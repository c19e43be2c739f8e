"""7a. Models of Hugging Face's own classes with a composition's modules in their places; no weight is copied for it."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, PreTrainedConfig

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import compiling, freezing, kernels
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor


@dataclass(frozen=True, kw_only=True)
class Shell:
    """What is written in a format of Hugging Face's.

    Attributes:
        model: of the class that loads the format, around the modules of a composition.
        processor: of the class that belongs to it.
        notes: what is not as in the composition, each a sentence for the model card.
        inputs: makes the model's arguments of the composition's.
    """

    model: Any
    processor: Any
    notes: tuple[str, ...] = ()
    inputs: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True)
class OriginalProcessor:
    """The files of a model's own processor, as they were read, with a tokenizer that may have grown.

    Attributes:
        tokenizer: written anew.
        files: name to contents of the rest.
    """

    tokenizer: Any
    files: Mapping[str, str]

    @property
    def chat_template(self) -> Any:
        """The tokenizer's."""
        return self.tokenizer.chat_template

    @property
    def hears(self) -> bool:
        """Whether it is for sounds."""
        return any("feature_extractor_type" in contents for contents in self.files.values())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write them."""
        tokenizer = copy.deepcopy(self.tokenizer)
        if _has_template(self.files):  # which is not changed, where ours may have been
            tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        for name, contents in self.files.items():
            (Path(folder) / name).write_text(contents, encoding="utf-8")


def _has_template(files: Mapping[str, str]) -> bool:
    return any("chat_template" in name or "chat_template" in contents for name, contents in files.items())


# A composition's processor, or that of Hugging Face's which came with a model that was imported.
Processor: TypeAlias = MultimodalProcessor | Any
# Gives the shell for a replica of a model and the model's processor, or refuses with the reason (ArgumentError).
Format = Callable[[MultimodalModel, Any], Shell]


def replica(model: MultimodalModel, weights: dict[int, Tensor]) -> MultimodalModel:
    """The same model in evaluation mode, of modules and configs of its own that may be changed.

    Args:
        model: is not changed, nor are its weights.
        weights: what stands for each of its parameters and buffers, by `id`; see `written`.

    Returns:
        The copy.

    Raises:
        ArgumentError: if something in it cannot be copied.
    """
    try:
        made: MultimodalModel = copy.deepcopy(model, dict(weights)).eval()
    except Exception as error:  # objects of the caller's own, with whatever they hold
        raise ArgumentError(f"the model cannot be exported, as something in it cannot be copied: {error}") from error
    compiling.disable(made)
    kernels.disable(made)
    return made


def written(model: MultimodalModel, dtype: torch.dtype | None) -> dict[int, Tensor]:
    """The parameters and buffers of a model as they are to be written, by the `id` of the model's own.

    Args:
        model: whose they are.
        dtype: of all weights; None takes the very tensors.

    Returns:
        Tensors by `id`, those of `model` where there is nothing to change.

    Raises:
        ArgumentError: if there are no values (the meta device).
    """
    made: dict[int, Tensor] = {}
    saved = {id(value) for value in model.state_dict(keep_vars=True).values()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ArgumentError(f"{name} has no values (meta device): load the model before it is exported")
        casts = dtype is not None and tensor.is_floating_point() and id(tensor) in saved
        value = tensor.detach().to(dtype) if casts else tensor
        made[id(tensor)] = nn.Parameter(value, requires_grad=False) if casts and _is_parameter(tensor) else value
    return made


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def make_plain(model: MultimodalModel) -> None:
    """Take off a replica what is wrapped around its parts, and merge adapters into its weights.

    Args:
        model: a replica, changed in place.

    Raises:
        ArgumentError: if an adapter cannot be merged, naming the part.
    """
    for name, (part, *_) in model.parts.items():
        config = getattr(freezing.unwrap(part), "config", None)
        tied = getattr(config, "tie_word_embeddings", None)
        try:
            model.replace_part(name, freezing.merged(part))
        except ArgumentError as error:
            raise ArgumentError(f"{name}: {error}") from error
        if config is not None and tied is not None:  # PEFT writes that merging undoes ties; formats see for themselves
            config.tie_word_embeddings = tied


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of transformers by which anybody loads a model with such a config."""
    classes = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
    return next((cls for cls in classes if type(config) in cls._model_mapping), AutoModelForImageTextToText)


def on_meta(config: PreTrainedConfig) -> Any:
    """The model that plain transformers makes of a config, without weights.

    Args:
        config: of a multimodal language model.

    Returns:
        The model on the meta device.

    Raises:
        ArgumentError: if transformers cannot make it.
    """
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config)
    except Exception as error:  # configs of parts that the class does not know how to put together
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ArgumentError(
            f"transformers cannot make a model of type {config.model_type!r} of these parts: {reason}"
        ) from error


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights by name."""
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def graft(shell: nn.Module, place: str, part: nn.Module, what: str) -> list[str]:
    """Put a module in the place of one of the same class.

    Args:
        shell: on the meta device.
        place: of the module that is replaced.
        part: takes the place. What it was made without (`add_pooling_layer=False`) it is given, with zeros.
        what: the part is called in messages.

    Returns:
        Notes on what it was given.

    Raises:
        ArgumentError: if the shell has a module of another class there.
    """
    expected = shell.get_submodule(place)
    if type(expected) is not type(part):
        raise ArgumentError(
            f"{what} is a {type(part).__name__}; by its config plain transformers makes a {type(expected).__name__}, "
            "and nothing else can stand in a checkpoint that it loads by itself"
        )
    own = {name for name, module in part.named_modules()}
    missing = [name for name, _ in expected.named_modules() if name not in own]
    weight = next(parameter for parameter in part.parameters() if parameter.is_floating_point())
    given = []
    for name in [name for name in missing if name.rpartition(".")[0] not in missing]:
        module = expected.get_submodule(name).to(weight.dtype).to_empty(device=weight.device)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.detach().zero_()
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, module)
        given.append(f"{what} was made without `{name}`, which holds zeros here and has no part in the output.")
    owner, _, leaf = place.rpartition(".")
    setattr(shell.get_submodule(owner), leaf, part)
    return given


def check_weights(shell: nn.Module, expected: dict[str, tuple[int, ...]], kind: str) -> None:
    """Refuse a shell that has other weights than what loads it would look for.

    Args:
        shell: with all modules in place.
        expected: name to shape, of the shell before.
        kind: the format.

    Raises:
        ArgumentError: naming what differs.
    """
    found = weight_shapes(shell)
    differing = [
        *(f"{name} {found[name]}, for which there is no place" for name in _first(found.keys() - expected.keys())),
        *(f"no {name}, which it needs" for name in _first(expected.keys() - found.keys())),
        *(
            f"{name} {found[name]}, where it has {expected[name]}"
            for name in _first(n for n in found.keys() & expected.keys() if found[n] != expected[n])
        ),
    ]
    if differing:
        raise ArgumentError(f"the format {kind!r} has no counterpart for these weights: {'; '.join(differing)}")


def _first(names: Iterable[str]) -> list[str]:
    return sorted(names)[:3]
