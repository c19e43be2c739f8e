"""1f. A YAML file and the command line -> a config; what is wrong is named with its line and the nearest known key."""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cornstarch.errors import ArgumentError
from cornstarch.training.config import NO_SUCH_FIELD, TrainConfig, problems

Keys = tuple[str, ...]

# YAML's own rules read `1e-3` as text and `no` as false. These are JSON's, which people mean.
_SCALARS = {
    "null": r"^(?:null|Null|NULL|~|)$",
    "bool": r"^(?:true|True|false|False)$",
    "int": r"^[-+]?[0-9]+$",
    "float": r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$",
}


# What people call a field in other programs.
_SYNONYMS = {"lr": "learning_rate", "wd": "weight_decay", "output_dir": "folder", "max_steps": "steps"}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # none of YAML's own  # noqa: RUF012 - as in the base class


for _kind, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a run's config.

    Args:
        path: a YAML file.
        overrides: words of a command line: `--optimizer.learning_rate 1e-3`, or with `=`. Values are YAML.

    Returns:
        The config.

    Raises:
        ArgumentError: if the file cannot be read, or a key or value cannot be used. The message has every mistake, each
            with its line in the file (or its place on the command line) and, for unknown keys, the nearest known one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    return parse_config(text, overrides, name=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, name: str = "config") -> TrainConfig:
    """Read a run's config from text; see `read_config`.

    Args:
        text: YAML.
        overrides: as in `read_config`.
        name: what the text is called in messages.

    Returns:
        The config.

    Raises:
        ArgumentError: as in `read_config`.
    """
    values, lines = _load(text, name)
    places = {keys: f"{name}, line {line}" for keys, line in lines.items()}
    for keys, value in _overrides(overrides):
        _set(values, keys, value)
        places[keys] = f"command line, --{'.'.join(keys)}"
    try:
        # As JSON: there a list may stand for a tuple and a mapping for an object, while "3" does not stand for 3.
        return TypeAdapter(TrainConfig).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        found = [_described(keys, message, values, places, name) for keys, message in problems(error)]
        raise ArgumentError("\n".join(found)) from None


def to_yaml(config: Any) -> str:
    """A config as YAML that `parse_config` reads, with every field in it."""
    return str(yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True))


def to_values(config: Any) -> Any:
    """A config as JSON values."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


# --- YAML -------------------------------------------------------------------------------------------------------------


def _load(text: str, name: str) -> tuple[dict[str, Any], dict[Keys, int]]:
    """The values of a YAML text, and the line (from 1) of every key."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines = dict(_lines(node, (), name)) if node is not None else {}
        values = yaml.load(text, Loader=_Loader)
    except ArgumentError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ArgumentError(f"{name} is no YAML that a config can be: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ArgumentError(f"{name} must hold keys and values, found {type(values).__name__}")
    try:
        # Copies: what an alias stands for is one object in all its places.
        return json.loads(json.dumps(values, allow_nan=False)), lines
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{name}: a value is none that a config can have: {error}") from error


def _lines(node: yaml.Node, keys: Keys, name: str) -> Iterator[tuple[Keys, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ArgumentError(f"{name}, line {line}: {'.'.join((*keys, key.value))} stands there a second time")
            seen.add(key.value)
            yield (*keys, key.value), line
            yield from _lines(value, (*keys, key.value), name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*keys, str(index)), value.start_mark.line + 1
            yield from _lines(value, (*keys, str(index)), name)


# --- the command line -------------------------------------------------------------------------------------------------


def _overrides(words: Sequence[str]) -> Iterator[tuple[Keys, Any]]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ArgumentError(f"command line: expected --key value, found {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise ArgumentError(f"command line: --{key} needs a value, such as --{key} true")
            value = rest.pop(0)
        try:
            yield tuple(key.split(".")), yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ArgumentError(f"command line: the value of --{key} is no YAML: {value!r}") from error


def _set(values: Any, keys: Keys, value: Any) -> None:
    """Put a value in its place; a mapping takes the place of whatever cannot hold its last key."""
    for number, key in enumerate(keys[:-1]):
        if isinstance(values, list) and key.isdecimal() and int(key) < len(values):
            values = values[int(key)]
            continue
        if not isinstance(values, dict):
            raise ArgumentError(f"command line: --{'.'.join(keys)}: {'.'.join(keys[:number])} has no fields")
        inner = values.get(key)
        if isinstance(inner, str) and keys[:1] == ("trains",):
            inner = {"mode": inner}  # the short form of a part's mode
        values[key] = inner if isinstance(inner, dict | list) else {}
        values = values[key]
    if isinstance(values, list) and keys[-1].isdecimal() and int(keys[-1]) < len(values):
        values[int(keys[-1])] = value
    elif isinstance(values, dict):
        values[keys[-1]] = value
    else:
        raise ArgumentError(f"command line: --{'.'.join(keys)}: there is no such entry")


# --- messages ---------------------------------------------------------------------------------------------------------


def _described(keys: Keys, message: str, values: Any, places: Mapping[Keys, str], name: str) -> str:
    """A mistake with its place, its field and, for an unknown one, the nearest known."""
    keys = _as_written(keys, values)
    place = next((places[keys[:length]] for length in range(len(keys), 0, -1) if keys[:length] in places), name)
    if message == NO_SUCH_FIELD:
        known = _fields(keys[:-1], values)
        wanted = _SYNONYMS.get(keys[-1], keys[-1])
        close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5) or _elsewhere(wanted)
        message = f"{message}; {f'did you mean {close[0]!r}? ' if close else ''}known: {', '.join(known)}"
    return f"{place}: {'.'.join(keys)}: {message}"


def _as_written(keys: Keys, values: Any) -> Keys:
    """The keys without those that only the checker has: which kind of source it took an entry for."""
    written = []
    for number, key in enumerate(keys):
        if isinstance(values, dict) and key not in values and number + 1 < len(keys) and values.get("source") == key:
            continue
        written.append(key)
        if isinstance(values, dict):
            values = values.get(key)
        elif isinstance(values, list) and key.isdecimal() and int(key) < len(values):
            values = values[int(key)]
        else:
            values = None
    return tuple(written)


def _fields(keys: Keys, values: Any) -> list[str]:
    """Known fields of the object at `keys`; of the alternatives there, of the one that `values` names as its source."""
    kinds: list[Any] = [TrainConfig]
    for key in keys:
        kinds = [inner for kind in kinds for inner in _inside(kind, key)]
        values = values.get(key) if isinstance(values, dict) else None
    source = values.get("source") if isinstance(values, dict) else None
    kinds = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
    meant = [kind for kind in kinds if source in typing.get_args(typing.get_type_hints(kind).get("source"))]
    return list(dict.fromkeys(entry.name for kind in meant or kinds for entry in dataclasses.fields(kind)))


def _elsewhere(key: str) -> list[str]:
    """Where in the config a field of this name would be right, the least deep first."""
    return sorted((".".join(keys) for keys, _ in describe_fields(TrainConfig) if keys[-1] == key), key=len)


def _inside(kind: Any, key: str) -> list[Any]:
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return _objects(hints[key]) if key in hints else []
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    return _objects(arguments[-1]) if origin in (dict, list) and arguments else []


def _objects(kind: Any) -> list[Any]:
    """The alternatives of a type."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [inner for argument in typing.get_args(kind) for inner in _objects(argument)]
    return [kind]


# --- what fields there are --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldHelp:
    """What is to be known about a field.

    Attributes:
        kind: what it takes, in words.
        default: what it is if it is left out, as YAML; None where it must be given.
        text: what it means.
    """

    kind: str
    default: str | None
    text: str


def describe_fields(kind: Any, keys: Keys = ()) -> Iterator[tuple[Keys, FieldHelp]]:
    """Every field of a config, in order, with its keys; `<key>` stands for a key of one's own, `<n>` for a number.

    Args:
        kind: a config class.
        keys: of the object itself.

    Yields:
        The keys, and what is to be known.
    """
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        place = (*keys, entry.name)
        info = kind.__pydantic_fields__[entry.name]
        inner = [found for found in _objects(hints[entry.name]) if found is not type(None)]
        default = None if info.is_required() else _shown(info.get_default(call_default_factory=True, validated_data={}))
        yield place, FieldHelp(kind=_in_words(inner), default=default, text=_text(kind, entry.name))
        for found in inner:
            origin, arguments, kinds = typing.get_origin(found), typing.get_args(found), [found]
            if origin in (dict, list) and arguments:
                place, kinds = (*keys, entry.name, "<key>" if origin is dict else "<n>"), _objects(arguments[-1])
            for kind_of_entry in kinds:
                if dataclasses.is_dataclass(kind_of_entry):
                    yield from describe_fields(kind_of_entry, place)


def _text(kind: Any, name: str) -> str:
    """The docstring under a field, in the class that has it."""
    fields = (vars(cls).get("__pydantic_fields__", {}).get(name) for cls in kind.__mro__)
    return " ".join(next((info.description for info in fields if info and info.description), "").split())


def _in_words(kinds: Sequence[Any]) -> str:
    names = {str: "text", int: "number", float: "number", bool: "true or false"}
    words = []
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin is typing.Literal:
            words.append(", ".join(str(value) for value in typing.get_args(kind)))
        elif origin in (list, dict):
            words.append("list" if origin is list else "mapping")
        else:
            words.append(names.get(kind, "section" if dataclasses.is_dataclass(kind) else "anything"))
    return " or ".join(dict.fromkeys(words))


def _shown(default: Any) -> str:
    if dataclasses.is_dataclass(default):
        return "its fields' defaults"
    return json.dumps(default)
