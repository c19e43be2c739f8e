"""1. What makes a config of a class: typed fields, documented by the text under them, checked when it is made."""

import functools
from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic import dataclasses as checked

from cornstarch.errors import ArgumentError

_T = TypeVar("_T")
NO_SUCH_FIELD = "there is no such field"


class FieldError(ArgumentError):
    """A field whose value cannot be used.

    Args:
        where: the field's keys, from the object that was being made.
        message: what was found, and what was expected.
    """

    def __init__(self, where: tuple[str, ...], message: str) -> None:
        super().__init__(f"{'.'.join(where)}: {message}")
        self.where = where
        self.message = message


def problems(error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """(keys of the field, what is wrong with it) for everything that a check of a config found."""
    found = []
    for entry in error.errors(include_url=False):
        where, message = tuple(str(key) for key in entry["loc"]), str(entry["msg"])
        cause = entry.get("ctx", {}).get("error")
        if isinstance(cause, FieldError):
            where, message = where + cause.where, cause.message
        elif entry["type"] == "missing":
            message = "must be given"
        elif entry["type"] == "unexpected_keyword_argument":
            message = NO_SUCH_FIELD
        else:
            message = f"{message.replace('Input should', 'must')}, found {entry['input']!r:.80}"
        found.append((where, message))
    return found


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def config_class(cls: type[_T]) -> type[_T]:
    """Make a class of typed, documented fields a frozen dataclass that checks them, with `ArgumentError`s."""
    options = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    decorate: Callable[[type[_T]], Any] = checked.dataclass(frozen=True, kw_only=True, config=options)
    made = decorate(cls)
    checked_init = made.__init__

    @functools.wraps(checked_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked_init(self, *args, **kwargs)
        except ValidationError as error:
            listed = "; ".join(f"{'.'.join(where)}: {message}" for where, message in problems(error))
            raise ArgumentError(f"{cls.__name__}: {listed}") from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def require(holds: bool, where: str, message: str) -> None:
    """Refuse a field's value unless a condition holds."""
    if not holds:
        raise FieldError((where,), message)
