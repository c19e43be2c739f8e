"""4a. Schedules: the share of the highest learning rate at every step, as functions of how far training is.

Those of the same names in `transformers.get_scheduler` give the same shares, but for the warm-up: there the first step
is taken at a learning rate of 0, here at the first of as many rising rates as there are warm-up steps.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

from cornstarch.errors import ArgumentError

# (steps since the warm-up, from 0; steps after the warm-up; warm-up steps) -> share of the highest learning rate
Decay = Callable[[int, int, int], float]


def constant() -> Decay:
    """The highest rate to the end."""
    return lambda step, steps, warmup: 1.0


def linear(floor: float = 0.0) -> Decay:
    """A straight line down to `floor`, which the step after the last would have."""
    return lambda step, steps, warmup: floor + (1 - floor) * (1 - step / steps)


def cosine(floor: float = 0.0) -> Decay:
    """Half a cosine down to `floor` (https://arxiv.org/abs/1608.03983, without restarts)."""
    return lambda step, steps, warmup: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps))


def inverse_sqrt() -> Decay:
    """One over the square root of the step, scaled to begin at the highest rate (https://arxiv.org/abs/1706.03762)."""
    return lambda step, steps, warmup: 1 / math.sqrt((step + max(warmup, 1)) / max(warmup, 1))


def warmup_stable_decay(decay: float = 0.2, floor: float = 0.0) -> Decay:
    """The highest rate, then a straight line down to `floor` in the last `decay` share of all steps.

    https://arxiv.org/abs/2404.06395
    """

    def share(step: int, steps: int, warmup: int) -> float:
        falling = max(1, round(decay * (steps + warmup)))
        return floor + (1 - floor) * min(1.0, (steps - step) / falling)

    return share


SCHEDULES: dict[str, Callable[..., Decay]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
}


def make_schedule(name: str, arguments: dict[str, Any]) -> Decay:
    """A schedule by name.

    Args:
        name: one of `SCHEDULES`.
        arguments: of the schedule.

    Returns:
        The schedule.

    Raises:
        ArgumentError: for an unknown name or argument; the message lists the known ones.
    """
    if name not in SCHEDULES:
        raise ArgumentError(f"schedule.name: unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    known = list(inspect.signature(SCHEDULES[name]).parameters)
    for argument, value in arguments.items():
        if argument not in known:
            raise ArgumentError(
                f"schedule.arguments: {name} takes no {argument!r}; it takes: {', '.join(known) or 'none'}"
            )
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ArgumentError(f"schedule.arguments.{argument}: must be a share from 0 to 1, found {value!r}")
    return SCHEDULES[name](**arguments)


def share_at(step: int, steps: int, warmup: float, decay: Decay) -> float:
    """The share of the highest learning rate at a step.

    Args:
        step: from 1.
        steps: of the whole run.
        warmup: share of the steps in which the rate rises.
        decay: what happens afterwards.

    Returns:
        The share; 1 at the first step after the warm-up.
    """
    rising = min(round(warmup * steps), steps - 1)
    if step <= rising:
        return step / (rising + 1)
    return decay(step - rising - 1, steps - rising, rising)
