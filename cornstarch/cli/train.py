"""`cornstarch train CONFIG.yaml [--any.key value ...]`."""

import textwrap
from collections.abc import Sequence

from cornstarch.training.config import TrainConfig
from cornstarch.training.reading import describe_fields, read_config
from cornstarch.training.run import train
from cornstarch.training.signals import EXIT_CODES

_USAGE = """usage: cornstarch train CONFIG.yaml [--any.key value ...]

Trains what the config describes. Every key of the file can be given on the command line too, with dots between the
levels; values are written as in the file: --optimizer.learning_rate 1e-3 --trains.vision_encoder frozen

The keys, what they take, what they are if left out, and what they mean:
"""


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.
    """
    if not words or {"--help", "-h"} & set(words):
        print(_USAGE)
        print(field_help())
        return 0 if words else 2
    result = train(read_config(words[0], words[1:]))
    if result.stopped is not None:
        print(f"stopped by {result.stopped} after step {result.step}; go on with --run.resume true")
        return EXIT_CODES.get(result.stopped, 1)
    figures = "".join(f"  {name} {value:.4f}" for name, value in result.figures.items())
    print(f"done: {result.step} steps{figures}; the model is in {result.folder / 'model'}")
    return 0


def field_help() -> str:
    """Every key of a config, with what it takes, its default and its meaning."""
    lines = []
    for keys, field in describe_fields(TrainConfig):
        default = "must be given" if field.default is None else f"default {field.default}"
        lines.append(f"--{'.'.join(keys)}  ({field.kind}; {default})")
        lines.extend(textwrap.wrap(field.text, 110, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)
