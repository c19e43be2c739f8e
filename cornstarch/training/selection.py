"""3. What trains: a config's choice for every part, put into effect on the model."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import MultimodalModel, anatomy, concatenation, freezing
from cornstarch.training.config import GroupConfig, TrainConfig, TrainsConfig


def choose_for(config: TrainConfig, model: MultimodalModel, tokenizer: Any) -> None:
    """Let train what a config says, the rows of the tokens that it adds among it.

    Args:
        config: of the training.
        model: changed in place.
        tokenizer: of the model, with the added tokens.

    Raises:
        ArgumentError: as `choose`.
    """
    added = config.model.language_model.added_tokens if config.model.language_model is not None else []
    choose(model, config.trains, [tokenizer.convert_tokens_to_ids(token) for token in added])


def choose(model: MultimodalModel, trains: Mapping[str, TrainsConfig], new_rows: list[int] | None = None) -> None:
    """Freeze, thaw and adapt parts as chosen; parts that are not named stay as they are.

    Args:
        model: changed in place; parts that get adapters are wrapped.
        trains: part to choice.
        new_rows: token ids whose embedding rows are new, for `TrainsConfig.new_rows`.

    Raises:
        ArgumentError: for an unknown part, names of parameters that match none, or a choice that is not for the part.
        ImportError: if adapters are wanted and the optional package `peft` is not installed.
    """
    for name in trains:
        if name not in model.parts:
            raise ArgumentError(f"trains: the model has no part {name!r}; its parts: {', '.join(model.parts)}")
    for name, choice in trains.items():
        if choice.new_rows and (name != "language_model" or not new_rows):
            raise ArgumentError(
                f"trains.{name}.new_rows: there are no new rows: name tokens in model.language_model.added_tokens, and "
                "choose new_rows for the language model"
            )
        try:
            _choose(model, name, choice, new_rows or [])
        except ArgumentError as error:
            raise ArgumentError(f"trains.{name}: {error}") from error
    model.train(model.training)


def parameters_of(model: MultimodalModel) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, name within the part, parameter) of every parameter; one that several parts share belongs to the first."""
    seen: set[int] = set()
    for part, modules in model.parts.items():
        for module in modules:
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield part, name, parameter


def _choose(model: MultimodalModel, name: str, choice: TrainsConfig, new_rows: list[int]) -> None:
    modules = model.parts[name]
    adaptable = concatenation.adaptable(modules[0])
    if choice.mode == "full":
        if any(freezing.adapter_configs(inner) for inner in adaptable):
            raise ArgumentError("the part has adapters, so mode full would train those alone; choose lora")
        if getattr(modules[0], "is_quantized", False):
            raise ArgumentError("the part is quantised, so its weights cannot train; choose lora or frozen")
    for module in modules:
        (freezing.thaw if choice.mode == "full" else freezing.freeze)(module)
    if choice.mode == "lora":
        _adapt(model, name, choice, new_rows)
    elif choice.mode == "partial":
        _thaw_some(model, name, choice, new_rows)


def _adapt(model: MultimodalModel, name: str, choice: TrainsConfig, new_rows: list[int]) -> None:
    part = model.parts[name][0]
    if name.endswith("_projector"):
        raise ArgumentError("a projector trains in full, partially or not at all; lora is for pretrained parts")
    inner = concatenation.adaptable(part)
    if any(freezing.adapter_configs(one) for one in inner):
        if choice.lora:
            raise ArgumentError("the part has adapters already, which go on training; leave out `lora`")
        freezing.thaw(part)
        return
    options = {"target_modules": "all-linear", **choice.lora}
    if name == "language_model":
        options.setdefault("task_type", "CAUSAL_LM")
    if choice.new_rows:
        options["trainable_token_indices"] = new_rows
    adapted = [freezing.adapt(one, "lora", **options) for one in inner]
    if inner[0] is part:
        model.replace_part(name, adapted[0])
    else:
        concatenation.replace(part, adapted)


def _thaw_some(model: MultimodalModel, name: str, choice: TrainsConfig, new_rows: list[int]) -> None:
    part = model.parts[name][0]
    if choice.new_rows:
        part = freezing.adapt(part, "tokens", token_indices=new_rows)
        model.replace_part(name, part)
    base = freezing.unwrap(part)
    if choice.last_layers > len(anatomy.layers(base)):
        raise ArgumentError(f"last_layers is {choice.last_layers}, the part has {len(anatomy.layers(base))} layers")
    wanted = set(_of_modules(base, anatomy.layers(base)[-choice.last_layers :])) if choice.last_layers else set()
    if choice.norms:
        wanted |= set(_of_modules(base, [module for module in base.modules() if anatomy.is_norm(module)]))
    if choice.parameters:
        named = GroupConfig(parameters=choice.parameters)
        matching = {parameter for parameter, _ in base.named_parameters() if named.matches(parameter)}
        if not matching:
            some = ", ".join(parameter for parameter, _ in list(base.named_parameters())[:8])
            raise ArgumentError(f"no parameter is called {' or '.join(choice.parameters)}; the first are {some}")
        wanted |= matching
    fixed = anatomy.fixed_parameters(base)
    freezing.thaw_only(part, wanted - fixed)


def _of_modules(base: nn.Module, modules: list[nn.Module]) -> Iterator[str]:
    """Names in `base` of the parameters that lie in some of its modules."""
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    for name, parameter in base.named_parameters():
        if id(parameter) in inside:
            yield name
