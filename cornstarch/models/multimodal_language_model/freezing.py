"""What trains and what does not; the only file that knows adapters (PEFT, optional).

A part is frozen when none of its parameters requires a gradient. That is read off the parameters each time and kept
nowhere else, so whatever changes them (PEFT, a user's loop, a loaded checkpoint) is always seen.
"""

import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy

# Where PEFT keeps a module that it trains a copy of, and the copies; `set_adapter` says which of them train.
_COPIES = (".original_module.", ".modules_to_save.")


def is_frozen(part: nn.Module) -> bool:
    """Whether `part` has parameters and none of them trains."""
    has_parameters = False
    for parameter in part.parameters():
        if parameter.requires_grad:
            return False
        has_parameters = True
    return has_parameters


def freeze(part: nn.Module) -> None:
    """Stop `part` from training: no gradient kept or computed for it, dropout off."""
    for parameter in part.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # a gradient left over would let an optimizer with decay move the weight
    part.eval()


def thaw(part: nn.Module) -> None:
    """Let `part` train: its adapters where it has some, else all its parameters."""
    adapters = list(_tuners(part))
    if not adapters:
        fixed = anatomy.fixed_parameters(part)
        for name, parameter in part.named_parameters():
            if name not in fixed and (parameter.is_floating_point() or parameter.is_complex()):
                parameter.requires_grad_(True)  # quantised weights have no gradient
        return
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    for tuner in adapters:
        _thaw_adapters(tuner)
    if _is_tuner_layer(adapters[0]):
        active = {name for layer in adapters if _is_tuner_layer(layer) for name in layer.active_adapters}
        _thaw_biases(part, getattr(part, "peft_config", {}), active)


def thaw_only(part: nn.Module, names: Collection[str]) -> None:
    """Let some parameters of `part` train beside what trains already.

    Args:
        part: wrapped or not.
        names: names of parameters of the unwrapped part.

    Raises:
        ArgumentError: for a name that is none, or one that never trains (fixed tables, quantised weights).
    """
    base = unwrap(part)
    parameters, fixed = dict(base.named_parameters()), anatomy.fixed_parameters(base)
    for name in names:
        if name not in parameters:
            raise ArgumentError(f"{type(base).__name__} has no parameter {name!r}")
        if name in fixed or not parameters[name].is_floating_point():
            raise ArgumentError(f"{name!r} of {type(base).__name__} never trains: it is fixed, or quantised")
        parameters[name].requires_grad_(True)


def adapt(part: nn.Module, kind: str, **options: Any) -> nn.Module:
    """Wrap `part` with a new adapter of PEFT's; only the adapter trains then.

    Args:
        part: a part without adapters.
        kind: `"lora"` (https://arxiv.org/abs/2106.09685), or `"tokens"` for rows of the embedding table.
        **options: of PEFT's `LoraConfig`, or `TrainableTokensConfig`.

    Returns:
        The wrapped part.

    Raises:
        ArgumentError: if the part has adapters, or PEFT refuses the options.
        ImportError: if the optional package `peft` is not installed.
    """
    from peft import LoraConfig, TrainableTokensConfig, get_peft_model, prepare_model_for_kbit_training

    if adapter_configs(part):
        raise ArgumentError(f"the part has adapters already: {', '.join(adapter_configs(part))}")
    if getattr(part, "is_quantized", False):
        part = prepare_model_for_kbit_training(part, use_gradient_checkpointing=False)
    kinds = {"lora": LoraConfig, "tokens": TrainableTokensConfig}
    try:
        return get_peft_model(part, kinds[kind](**options))  # type: ignore[arg-type, no-any-return]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"PEFT refuses {kind} on {type(part).__name__}: {error}") from error


def set_mode(modules: Sequence[nn.Module], mode: bool) -> None:
    """Switch modules that one flag governs between training and evaluation mode; frozen ones stay in evaluation mode.

    Args:
        modules: the first is the part itself; those without parameters (a callback with dropout) follow it.
        mode: True for training.
    """
    for module in modules:
        decides = module if any(True for _ in module.parameters()) else modules[0]
        module.train(mode and not is_frozen(decides))


@contextmanager
def evaluating(part: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, and behind it the former mode of every module."""
    modes = [(module, module.training) for module in part.modules()]
    part.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def unwrap(part: nn.Module) -> nn.Module:
    """The Hugging Face (or user's own) module inside a part that PEFT or `torch.compile` may have wrapped."""
    while True:
        compiled = part._modules.get("_orig_mod")
        if compiled is not None:
            part = compiled
        elif _is_peft_model(part):
            wrapped: Any = part
            part = wrapped.get_base_model()
        else:
            return part


def run(part: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Call an encoder, past the text model's arguments that PEFT's task classes would add to the call."""
    if _is_peft_model(part):
        plain = sys.modules["peft"].PeftModel.forward
        if type(part).forward is not plain:
            return plain(part, **arguments)
    return part(**arguments)


def adapter_configs(part: nn.Module) -> dict[str, Any]:
    """The adapters of a PEFT-wrapped part, name to `PeftConfig`; empty for any other part."""
    wrapped: Any = part
    return dict(wrapped.peft_config) if _is_peft_model(part) or holds_adapters(part) else {}


def adapter_kinds(part: nn.Module) -> set[str]:
    """The kinds of a part's adapters, as PEFT calls them: `LORA`, ..."""
    return {str(getattr(config.peft_type, "value", config.peft_type)) for config in adapter_configs(part).values()}


def active_adapters(part: nn.Module) -> list[str]:
    """The names of the adapters that take part in a PEFT-wrapped part's forward pass."""
    wrapped: Any = part
    if holds_adapters(part):
        return list(wrapped.active_adapters())
    return list(wrapped.active_adapters) if _is_peft_model(part) else []


def holds_adapters(part: nn.Module) -> bool:
    """Whether adapters were put inside a part by `transformers`' own `add_adapter`."""
    return bool(getattr(part, "_hf_peft_config_loaded", False)) and not _is_peft_model(part)


def is_mixed(part: nn.Module) -> bool:
    """Whether a part is wrapped in PEFT's model of mixed adapters, which has another interface."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(part, peft.PeftMixedModel)


def learns_prompt(part: nn.Module) -> bool:
    """Whether a part's active adapter puts learned vectors before the sequence, with positions of its own."""
    configs = adapter_configs(part)
    return any(configs[name].is_prompt_learning for name in active_adapters(part) if name in configs)


def has_adapters(module: nn.Module) -> bool:
    """Whether PEFT, or `transformers`' own `add_adapter`, put anything into a module or around a part of it."""
    return any(True for _ in _tuners(module))


def merged(part: nn.Module) -> nn.Module:
    """A part without what was wrapped around it or put inside it, its active adapters merged into its weights.

    Args:
        part: a copy, changed in place. Weights it shares with the original stay as they are: those that an adapter
            changes are copied first.

    Returns:
        The unwrapped part.

    Raises:
        ArgumentError: if an adapter cannot be merged.
    """
    if learns_prompt(part):
        raise ArgumentError(
            "its adapter puts learnt vectors before the text, which no weight can hold: it cannot be merged"
        )
    layers: list[Any] = [m for m in part.modules() if _is_tuner_layer(m) and not _is_training_wrapper(m)]
    for layer in layers:
        base = layer.get_base_layer()
        for name, weight in list(base.named_parameters(recurse=False)):
            setattr(base, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of ties, which were dissolved above
            while unwrap(part) is not part:
                compiled, adapted = part._modules.get("_orig_mod"), cast(Any, part)
                part = adapted.merge_and_unload(safe_merge=True) if compiled is None else compiled
            return _merged_inside(part)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        kinds = ", ".join(sorted(adapter_kinds(part))) or "PEFT"
        raise ArgumentError(f"PEFT cannot merge adapters of kind {kinds}: {error}") from error


def _merged_inside(part: nn.Module) -> nn.Module:
    """The part with the layers that PEFT put in others' places, without a model around them, merged and gone."""
    replaced: dict[str, Any] = {}
    for place, module in part.named_modules():
        if _is_tuner_layer(module) and not any(place.startswith(f"{outer}.") for outer in replaced):
            layer: Any = module
            if _is_training_wrapper(layer):
                replaced[place] = layer.unload_and_optionally_merge_module(True, True, None)
            else:
                layer.merge(safe_merge=True)
                replaced[place] = layer.get_base_layer()
    for place, module in replaced.items():
        part.set_submodule(place, module)
    if replaced:
        part._hf_peft_config_loaded = False  # type: ignore[assignment]
    return part


def wrap(part: nn.Module, folders: Mapping[str, Path], active: list[str], inside: bool) -> nn.Module:
    """Wrap `part` with the adapters that saved `adapter_config.json` files describe, without their values.

    Args:
        part: the unwrapped part.
        folders: adapter name to the folder of its config.
        active: the names of the adapters that take part in a forward pass.
        inside: put them inside the part, as `transformers`' own `add_adapter` does.

    Returns:
        The wrapped part.

    Raises:
        ImportError: if the optional package `peft` is not installed.
    """
    from peft import PeftConfig, get_peft_model

    wrapped: Any = part if inside else None
    for name, folder in folders.items():
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        if inside:
            wrapped.add_adapter(config, adapter_name=name)
        elif wrapped is None:
            wrapped = get_peft_model(part, config, adapter_name=name)  # type: ignore[arg-type]
        else:
            wrapped.add_adapter(name, config)
    if len(active) == 1 or inside:
        wrapped.set_adapter(active if inside else active[0])
    elif active:
        wrapped.base_model.set_adapter(active)
    return wrapped  # type: ignore[no-any-return]


def _is_peft_model(part: nn.Module) -> bool:
    peft = sys.modules.get("peft")  # nothing is wrapped by a package that was never imported
    return peft is not None and isinstance(part, peft.PeftModel)


def _is_tuner_layer(module: nn.Module) -> bool:
    """Whether a module is one that PEFT puts in another's place, to adapt it or to train a copy of it."""
    peft = sys.modules.get("peft")
    if peft is None:
        return False
    return isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer | peft.utils.other.AuxiliaryTrainingWrapper)


def _is_training_wrapper(module: nn.Module) -> bool:
    """Whether a module of PEFT's trains a copy of another, or rows of it, and adapts nothing."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.utils.other.AuxiliaryTrainingWrapper)


def _tuners(part: nn.Module) -> Iterator[Any]:
    """The outermost PEFT models at or below `part`, and the layers of PEFT that no such model of the part holds."""
    if _is_peft_model(part) or holds_adapters(part):
        yield part
        return
    if _is_tuner_layer(part):
        yield part
    for child in part.children():
        yield from _tuners(child)


def _thaw_adapters(tuner: Any) -> None:
    """Require gradients for exactly what PEFT itself would train."""
    if _is_tuner_layer(tuner):
        tuner.set_adapter(list(tuner.active_adapters))
        return
    if holds_adapters(tuner):
        tuner.set_adapter(tuner.active_adapters())
        return
    active = list(tuner.active_adapters)
    if any(tuner.peft_config[name].is_prompt_learning for name in active):
        for name in active:
            tuner.prompt_encoder[name].requires_grad_(True)
        return
    tuner.base_model.set_adapter(active)  # the adapters' own weights, modules to save, trainable tokens
    _thaw_biases(tuner.base_model, tuner.peft_config, active)


def _thaw_biases(part: nn.Module, configs: Mapping[str, Any], active: Collection[str]) -> None:
    """Require gradients for the biases of the base that the configs of active adapters say train with them."""
    kinds = {getattr(configs[name], "bias", "none") for name in active if name in configs}
    for name, parameter in part.named_parameters():
        if name.endswith("base_layer.bias"):
            parameter.requires_grad_(kinds - {"none"} != set())
        elif name.endswith(".bias") and "all" in kinds and not any(copy in name for copy in _COPIES):
            parameter.requires_grad_(True)
