"""`cornstarch data view CONFIG.yaml [--sample N] [--format terminal|html|json] [--any.key value ...]`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cornstarch._visible import visible
from cornstarch.cli.arguments import parser
from cornstarch.data import MixtureSource, SampleView, view_as_html, view_as_json, view_as_text
from cornstarch.data.steps import place_at
from cornstarch.data.viewing import view_place
from cornstarch.errors import ArgumentError
from cornstarch.training import building, sourcing
from cornstarch.training.config import MixtureConfig, RowsConfig, SourceConfig, TrainConfig
from cornstarch.training.folder import write_whole
from cornstarch.training.reading import read_config

_SPLITS = ("train", "validation", "test")


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code: 1 if the sample cannot be used.
    """
    parsing = parser(
        "data view",
        "Show a sample exactly as the model gets it: its media, and its tokens by what is learnt. No weights are read. "
        "Every key of the config can be given too, as in `cornstarch train`: --data.max_length 128.",
    )
    parsing.add_argument("config", help="of the training")
    parsing.add_argument("--sample", type=int, default=0, metavar="N", help="which one, in the source's own order")
    parsing.add_argument("--split", choices=_SPLITS, default="train", help="of the config's data")
    parsing.add_argument("--format", choices=("terminal", "html", "json"), default="terminal", help="how to show it")
    parsing.add_argument("--output", metavar="FILE", help="write it there instead of printing it")
    options, overrides = parsing.parse_known_args(words)
    view = view_of(read_config(options.config, overrides), options.split, options.sample)
    if options.output is not None:
        write_whole(Path(options.output), _written(view, options.format))
        print(f"wrote {options.output}")
    else:
        _print(_written(view, options.format, sys.stdout))
    if view.error is not None and (options.format != "terminal" or options.output is not None):
        print(f"error: {visible(view.error, ' ')}", file=sys.stderr)
    return 0 if view.error is None else 1


def view_of(config: TrainConfig, split: str, number: int) -> SampleView:
    """A sample of a config's data, read and collated as its training does.

    Args:
        config: of the training.
        split: train, validation or test.
        number: of the sample in the source's own order, from 0.

    Returns:
        The view.

    Raises:
        ArgumentError: if there is no such sample.
    """
    chosen: SourceConfig | None = getattr(config.data, split)
    if chosen is None:
        raise ArgumentError(f"data.{split} must be given: there is nothing to show")
    source = sourcing.open_source(chosen, salvage=config.data.bad_samples != "stop")
    reading, place = place_at(source, number, config.training.seed)
    if isinstance(source, MixtureSource) and isinstance(chosen, MixtureConfig):
        which, _ = source.place_of(place[1])
        called = f"data.{split}, source {which} of the mixture: {_described(chosen.sources[which])}"
    else:
        called = f"data.{split}: {_described(chosen)}"
    processor = building.build_processor(config.model, config.data.template)
    collator = sourcing.make_collator(processor, config.data)
    budget = sourcing.make_budget(config.training) if split == "train" else None
    return view_place(collator, reading, place, budget, source=called, index=number)


def _described(config: SourceConfig) -> str:
    """A source in a few words."""
    if isinstance(config, MixtureConfig):
        return config.source
    return f"{config.source}, {config.path if isinstance(config, RowsConfig) else config.split}"


def _written(view: SampleView, form: str, stream: Any = None) -> str:
    if form == "html":
        return view_as_html(view)
    if form == "json":
        return _lines(view_as_json(view))
    colours = stream is not None and stream.isatty() and "NO_COLOR" not in os.environ
    blocks = colours and os.environ.get("COLORTERM") in ("truecolor", "24bit")
    return view_as_text(view, colours=colours, blocks=blocks) + "\n"


def _lines(values: dict[str, Any]) -> str:
    """JSON, a position or medium a line; in ASCII, which has escapes for the halves of characters that texts hold."""
    entries = {
        name: "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        if name in ("positions", "media") and value
        else json.dumps(value)
        for name, value in values.items()
    }
    return "{\n " + ",\n ".join(f"{json.dumps(name)}: {text}" for name, text in entries.items()) + "\n}\n"


def _print(text: str) -> None:
    """Print, also to what has no such characters."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
