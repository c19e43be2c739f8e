"""`cornstarch inspect CONFIG.yaml [--forecast] [--format json] [--any.key value ...]`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cornstarch.cli.arguments import parser
from cornstarch.training.inspection import Inspection, inspect_config
from cornstarch.training.reading import read_config

_COLUMNS = {
    "weight_bytes": "weights",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "saved_bytes": "saved",
    "forward_flops": "forward",
    "backward_flops": "backward",
    "recomputed_flops": "recomputed",
}
_EXPLAINED = (
    "saved: kept by the forward pass for the backward pass",
    "forward, backward: floating-point operations of matrix products, attention as if nothing were masked",
    "recomputed: those of the forward pass that the backward pass computes again",
)


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.
    """
    parsing = parser(
        "inspect",
        "What a step costs, part by part: weights, gradients, optimizer, what is saved for the backward pass, "
        "floating-point operations. Measured on the first micro-batch of the config's data, and beside it forecast "
        "from shapes alone. Every key of the config can be given too, as in `cornstarch train`.",
    )
    parsing.add_argument("config", help="of the training")
    parsing.add_argument(
        "--forecast", action="store_true", help="from shapes alone: no weights are read, and nothing is computed"
    )
    parsing.add_argument("--format", choices=("text", "json"), default="text", help="how to print it")
    options, overrides = parsing.parse_known_args(words)
    inspection = inspect_config(read_config(options.config, overrides), measure=not options.forecast)
    print(json.dumps(inspection.as_json(), indent=2) if options.format == "json" else as_text(inspection))
    return 0


def as_text(inspection: Inspection) -> str:
    """An inspection for a terminal.

    Args:
        inspection: of a config.

    Returns:
        Lines of text: a part at a time, what was measured above what was forecast.
    """
    values, shape = inspection.as_json(), inspection.micro_batch
    inputs = "".join(f", {number:,} of {key}" for key, number in shape["inputs"].items())
    lines = [
        f"a micro-batch: {shape['samples']:,} x {shape['positions']:,} positions{inputs}, "
        f"{shape['labelled_tokens']:,} labelled; {shape['micro_batches_per_step']:,} a step "
        f"({shape['samples_per_step']:,} samples)",
        "",
    ]
    cells = [["", "", *_COLUMNS.values()]]
    for name, part in values["parts"].items():
        cells += _rows(f"{name} ({part['mode']}: {part['trainable']:,} of {part['parameters']:,} train)", part)
    cells += _rows("together", values["together"])
    widths = [max(len(row[column]) for row in cells if len(row) > 1) for column in range(len(cells[0]))]
    lines += [row[0] if len(row) == 1 else _aligned(row, widths) for row in cells]
    lines += ["", *_EXPLAINED]
    for how, together in values["together"].items():
        if together is not None:
            peak = together["peak_bytes_with_weights_and_optimizer"]
            lines.append(
                f"at most held at once, {how}: {_bytes(peak)} of weights, optimizer, activations and gradients"
            )
    if inspection.why_no_forecast is not None:
        lines.append(f"no forecast: {inspection.why_no_forecast}")
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    pairs = enumerate(zip(row, widths, strict=True))
    return "  ".join(text.rjust(width) if column > 1 else text.ljust(width) for column, (text, width) in pairs).rstrip()


def _rows(title: str, costs: Mapping[str, Any]) -> list[list[str]]:
    """A line with the title, and one with the figures of each way in which there are some."""
    rows = [[title]]
    for how in ("measured", "forecast"):
        if costs[how] is not None:
            rows.append(["", how, *(_cell(key, costs[how][key]) for key in _COLUMNS)])
    return rows


def _cell(key: str, value: int | None) -> str:
    if value is None:
        return "-"
    return _bytes(value) if key.endswith("_bytes") else _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def _bytes(number: int) -> str:
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(number: float, step: int, units: Sequence[str]) -> str:
    power = 0
    while abs(number) >= step and power < len(units) - 1:
        number /= step
        power += 1
    shown = f"{number:,.0f}" if not power else f"{number:.4g}"
    return f"{shown} {units[power]}".rstrip()
