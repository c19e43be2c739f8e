"""1c. Which part takes which keyword argument of a forward pass.

An encoder's argument goes by the name that the encoder's forward gives it. Where the language model, or another
encoder, has an argument of that name, `{key}_{name}` says which is meant: `audio_attention_mask` is the mask of the
encoder `audio`, `attention_mask` always the language model's.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from cornstarch.errors import ArgumentError, UnknownArgumentError
from cornstarch.models.multimodal_language_model import anatomy, freezing
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule


def language_model_names(language_model: nn.Module) -> frozenset[str]:
    """Every keyword that the language model, under its wrappers, takes."""
    base = freezing.unwrap(language_model)
    taken = anatomy.language_model_arguments(base)
    always = {"input_ids", "attention_mask", "labels", "inputs_embeds", *anatomy.cache_aliases(base)}
    return frozenset(taken.names) | always | (anatomy.KNOWN_KEYWORDS if taken.takes_any else frozenset())


def encoder_names(key: str, encoder: ModalEncoderModule, reserved: frozenset[str]) -> dict[str, str]:
    """Keywords that reach one encoder, to the names its forward and its callbacks use.

    Args:
        key: the modality key.
        encoder: its module.
        reserved: the language model's keywords, which reach an encoder only with the key before them, or when
            `additional_args` names them.

    Returns:
        Name in a call to name in the encoder.
    """
    module = freezing.unwrap(encoder.module)
    own = {name: name for name in anatomy.forward_arguments(module).names}
    aliases = anatomy.argument_aliases(module)
    extra = {name: name for name in encoder.additional_args}
    prefixed = {f"{key}_{name}": inner for name, inner in {**own, **aliases, **extra}.items()}
    plain = {name: inner for name, inner in {**own, **aliases}.items() if name not in reserved}
    return {**prefixed, **plain, **extra}


def shared_names(encoders: Mapping[str, ModalEncoderModule], reserved: frozenset[str]) -> set[str]:
    """Plain names under which more than one encoder would take an argument."""
    seen: set[str] = set()
    shared: set[str] = set()
    for key, encoder in encoders.items():
        names = set(encoder_names(key, encoder, reserved))
        shared |= names & seen
        seen |= names
    return shared


def route(
    encoders: Mapping[str, ModalEncoderModule],
    reserved: frozenset[str],
    inputs: Mapping[str, Any],
    ready: Collection[str] = (),
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Hand the keywords of a call to the parts that take them. None stands for an argument that was not given.

    Args:
        encoders: modality key to encoder.
        reserved: the language model's keywords.
        inputs: the call's keyword arguments.
        ready: encoders whose output is given, so that they need no input.

    Returns:
        For each encoder that has its input or is ready, its arguments under its own names; and what no encoder claimed,
        which is for the language model or for nobody.

    Raises:
        ArgumentError: if an encoder is given tensors but not the input without which it cannot run, its input as well
            as its output, or one argument under two names.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    claimed: set[str] = set()
    routed = {}
    for key, encoder in encoders.items():
        names = encoder_names(key, encoder, reserved)
        # Sorted so that a name with the key before it is taken last and wins.
        mine = sorted((name for name in given if name in names), key=lambda name: name.startswith(f"{key}_"))
        claimed |= {name for name in mine if name not in reserved}
        _refuse_twice(key, names, mine)
        arguments = {names[name]: given[name] for name in mine}
        if key in ready:
            _refuse_input_of_ready(key, encoders, reserved, arguments)
            routed[key] = arguments
        elif _has_input(key, encoder, arguments, reserved):
            routed[key] = arguments
    return routed, {name: value for name, value in given.items() if name not in claimed}


def name_cache(language_model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the language model, its cache under the name that its own forward has for it.

    Args:
        language_model: wrapped or not.
        arguments: keyword to value.

    Returns:
        The same with the cache renamed.

    Raises:
        ArgumentError: if the cache is given under two names.
    """
    aliases = anatomy.cache_aliases(freezing.unwrap(language_model))
    given = [name for name in arguments if name in aliases]
    if len(given) > 1:
        raise ArgumentError(f"{given[0]!r} and {given[1]!r} are two names for one argument, the cache; give one")
    return {aliases.get(name, name): value for name, value in arguments.items()}


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that no part takes.

    Args:
        names: the keywords of a call.
        known: the keywords that some part takes.

    Raises:
        UnknownArgumentError: naming the first such keyword, what is close to it, and everything that is taken.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UnknownArgumentError(
                f"no part of this model takes the argument {name!r}.{hint} It takes: {', '.join(known)}"
            )


def _refuse_twice(key: str, names: Mapping[str, str], given: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in given:
        if name.startswith(f"{key}_"):
            continue  # says which encoder is meant, and wins
        other = seen.setdefault(names[name], name)
        if other != name:
            raise ArgumentError(f"modality {key!r}: {other!r} and {name!r} are two names for one argument; give one")


def _refuse_input_of_ready(
    key: str, encoders: Mapping[str, ModalEncoderModule], reserved: frozenset[str], arguments: Mapping[str, Any]
) -> None:
    mains = anatomy.main_input_names(freezing.unwrap(encoders[key].module))
    main = next((name for name in mains if name in arguments), None)
    if main is None:
        return
    others = [other for other in encoders if other != key and main in encoder_names(other, encoders[other], reserved)]
    hint = f"; if it is meant for {others[0]!r}, pass {others[0]}_{main}" if others else ""
    raise ArgumentError(f"modality {key!r}: both its input and its encoder_outputs were given; give one{hint}")


def _has_input(key: str, encoder: ModalEncoderModule, arguments: dict[str, Any], reserved: frozenset[str]) -> bool:
    """Whether an encoder has what it needs to run; an input with no items counts as absent."""
    mains = anatomy.main_input_names(freezing.unwrap(encoder.module))
    # A callback may make the input of its own arguments; where an input is given, that alone counts.
    for starters in (mains, [name for name in encoder.additional_args if name not in reserved]):
        present = [arguments[name] for name in starters if name in arguments]
        if not present:
            continue
        return not all(_is_empty(value) for value in present)
    stray = [name for name, value in arguments.items() if isinstance(value, Tensor) and name not in reserved]
    if stray:
        raise ArgumentError(
            f"modality {key!r}: got {', '.join(stray)} but not {mains[0]!r}, without which it cannot run"
        )
    return False


def _is_empty(value: Any) -> bool:
    return len(value) == 0 if isinstance(value, list | tuple) else isinstance(value, Tensor) and value.shape[:1] == (0,)
