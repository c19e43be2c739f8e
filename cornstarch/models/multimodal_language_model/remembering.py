"""1j. What is asked of a processor at every sample and never changes, such as what its arguments are called."""

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def remembered(ask: Callable[[Any], T]) -> Callable[[Any], T]:
    """Ask once, and know the answer as long as the processor lives.

    Reading a signature takes longer than tokenising a sentence. Processors that cannot be told apart by a hash are
    asked every time.

    Args:
        ask: what to ask of a processor.

    Returns:
        The same question.
    """
    known: weakref.WeakKeyDictionary[Any, T] = weakref.WeakKeyDictionary()

    @functools.wraps(ask)
    def answer(processor: Any) -> T:
        with contextlib.suppress(KeyError, TypeError):
            return known[processor]
        found = ask(processor)
        with contextlib.suppress(TypeError):
            known[processor] = found
        return found

    return answer
