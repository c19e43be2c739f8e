"""`cornstarch info MODEL [--format json]`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cornstarch.cli.arguments import parser
from cornstarch.training import building, report


def _origin(source: Mapping[str, Any]) -> str:
    """Where a part came from, as one line."""
    if source["path"] is None:
        return "made here"
    revision = f" at {source['revision']}" if source["revision"] is not None else ""
    whole = f", part of a {source['part_of'].rpartition('.')[2]}" if source["part_of"] is not None else ""
    return f"from {source['path']}{revision}{whole}"


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.
    """
    parsing = parser("info", "What a model is made of: its parts, what trains in each, and the marks for its inputs.")
    parsing.add_argument(
        "model", help="a run folder, a checkpoint in it, or a folder with a model (also Hugging Face's)"
    )
    parsing.add_argument("--format", choices=("text", "json"), default="text", help="how to print it")
    parsing.add_argument("--trust-remote-code", action="store_true", help="run code that came with a part")
    options = parsing.parse_args(words)
    model, processor = building.load_run(options.model, trust_remote_code=options.trust_remote_code)
    rows = [{key: value for key, value in row.items() if key != "learning_rate"} for row in report.part_rows(model)]
    marks = {key: {"mark": token, "id": processor.token_ids[key]} for key, token in processor.tokens.items()}
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if options.format == "json":
        print(json.dumps({"parts": rows, "marks": marks, "bytes": size, "manifest": model.manifest}, indent=2))
        return 0
    print(report.part_table(rows))
    for key, mark in marks.items():
        kinds = processor.media_arguments[key][1] if key in processor.media_arguments else (key,)
        print(f"{key}: {mark['mark']} (id {mark['id']}) stands for one of: {', '.join(kinds)}")
    print(f"{size / 2**20:,.1f} MiB of weights")
    for name, source in model.manifest.items():
        print(f"{name}: {_origin(source)}")
    return 0
