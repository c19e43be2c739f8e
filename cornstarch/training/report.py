"""9. What a person should see before the first step: the parts, and a sample as the model gets it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cornstarch.data import Collator, Sample, view_as_text, view_sample
from cornstarch.models.multimodal_language_model import MultimodalModel, anatomy, concatenation, freezing, quantized
from cornstarch.training.selection import parameters_of


def part_rows(model: MultimodalModel, groups: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """What there is to know about every part.

    Args:
        model: wrapped by adapters or not.
        groups: of the optimizer, for learning rates.

    Returns:
        Dicts with `part`, `class`, `parameters`, `trainable`, `dtype`, `mode` (`frozen`, `full`, `partial` or `lora`)
        and `learning_rate` (the highest, None where nothing trains).
    """
    numbers: dict[str, list[int]] = {part: [0, 0] for part in model.parts}
    for part, _, parameter in parameters_of(model):
        numbers[part][0] += quantized.number_of_weights(parameter)
        numbers[part][1] += parameter.numel() if parameter.requires_grad else 0
    rows = []
    for part, modules in model.parts.items():
        total, trainable = numbers[part]
        rates = [group["peak"] for group in groups if group["part"] == part]
        dtype = anatomy.parameter_dtype(modules[0])
        rows.append(
            {
                "part": part,
                "class": _class_name(modules[0], part),
                "parameters": total,
                "trainable": trainable,
                "dtype": str(dtype).removeprefix("torch.") if dtype is not None else "none",
                "mode": _mode(modules[0], trainable),
                "learning_rate": max(rates, default=None),
            }
        )
    return rows


def part_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `part_rows` as lines of text, with a last one that adds up."""
    total = {"part": "together", **{key: sum(row[key] for row in rows) for key in ("parameters", "trainable")}}
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in [*rows, total])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    right = {place for place, name in enumerate(columns) if name in ("parameters", "trainable", "learning_rate")}
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def sample_text(collator: Collator, sample: Sample) -> str:
    """A sample as the model gets it: its text with marks, how many positions each takes, and what is labelled."""
    view = view_sample(collator, sample)
    return f"first sample ({view.name}): {view_as_text(view, brief=True)}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _class_name(module: Any, part: str) -> str:
    base: Any = freezing.unwrap(module)
    if part.endswith("_projector") and not getattr(base, "is_custom", True):
        kind = getattr(base.config, "projection_type", type(base.projection).__name__)
        return f"{type(base).__name__} ({kind})"
    return type(base).__name__


def _mode(module: nn.Module, trainable: int) -> str:
    if not trainable:
        return "frozen"
    if any("LORA" in freezing.adapter_kinds(inner) for inner in concatenation.adaptable(module)):
        return "lora"
    base = freezing.unwrap(module)
    left = {name for name, parameter in base.named_parameters() if not parameter.requires_grad}
    return "full" if left <= anatomy.fixed_parameters(base) else "partial"
