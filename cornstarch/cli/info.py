"""`cornstarch info MODEL [--format json]`."""

import json
from collections.abc import Sequence

from cornstarch.cli.arguments import parser
from cornstarch.training import building, report


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.
    """
    parsing = parser("info", "What a model is made of: its parts, what trains in each, and the marks for its inputs.")
    parsing.add_argument("model", help="a run folder, a checkpoint in it, or a folder with a saved model")
    parsing.add_argument("--format", choices=("text", "json"), default="text", help="how to print it")
    parsing.add_argument("--trust-remote-code", action="store_true", help="run code that came with a part")
    options = parsing.parse_args(words)
    model, processor = building.load_run(options.model, trust_remote_code=options.trust_remote_code)
    rows = [{key: value for key, value in row.items() if key != "learning_rate"} for row in report.part_rows(model)]
    marks = {key: {"mark": token, "id": processor.token_ids[key]} for key, token in processor.tokens.items()}
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if options.format == "json":
        print(json.dumps({"parts": rows, "marks": marks, "bytes": size}, indent=2))
        return 0
    print(report.part_table(rows))
    for key, mark in marks.items():
        kinds = processor.media_arguments[key][1] if key in processor.media_arguments else (key,)
        print(f"{key}: {mark['mark']} (id {mark['id']}) stands for one of: {', '.join(kinds)}")
    print(f"{size / 2**20:,.1f} MiB of weights")
    return 0
