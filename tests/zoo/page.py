"""`docs/zoo.md`, out of the cells of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from tests.zoo.checks import CHECKS
from tests.zoo.formats import Measured
from tests.zoo.table import ENCODERS, LANGUAGE_MODELS

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


class Cell(NamedTuple):
    """One check of one pair, or of a class by itself."""

    encoder: str | None
    language_model: str | None
    check: str
    reason: str  # why it failed; empty if it passed


_HEAD = """# What was run

Every encoder was composed with one language model, and every language model with one encoder, through everything below;
so were pairs in which every way an encoder's rows may lie meets everything in which language models differ; and every
encoder was composed with every language model for loss and logits. All of it is compared with the same composition
written by hand, out of the classes' own `forward`. The models are tiny and random: this shows that they fit together,
not how well they learn. `make zoo` runs it again and writes this page.

Each class first runs by itself, without this package: forward and backward, transformers' own checkpointing, PEFT,
saving, and for a language model padding and its own `generate` from embeddings. What it cannot do alone is no matter of
composing; `alone` in the tables says whether it can.

Run with transformers {transformers} and torch {torch}. **{passed} cells passed of {cells}**: {pairs} pairs, {full} of
them through everything. By themselves, the classes passed {alone_passed} of {alone}.
Asked for less, as they compute parts of it in fp32: {less}.

| check | what must hold |
|---|---|
"""


_FORMATS = """
## Finished models

Tiny originals of each format, made from their own configs, [taken apart](import.md) and compared with the original:
several images in a sample, dense and padded on either side, fp64. Then every weight was changed, the composition saved,
loaded and put back into the original's class, and what transformers loads of that was compared with the composition.
Greedy texts are of a left-padded batch, with and without beams. Inputs are random tensors as the original's processor
shapes them; the tests compare with what processors themselves make where they run without torchvision.

| format | largest difference in | largest difference out | greedy texts |
|---|---|---|---|
"""


def write(cells: Iterable[Cell], measured: Iterable[Measured], path: Path = PAGE) -> None:
    """Write the page.

    Args:
        cells: of a whole run.
        measured: finished models in and out.
        path: where it goes.
    """
    made = text(list(dict.fromkeys(cells))) + _FORMATS + "".join(map(_format, measured))
    path.write_text(made, encoding="utf-8")


def _format(row: Measured) -> str:
    texts = "the same" if row.texts else "**differ**"
    return f"| {row.name} | {row.imported:.1e} | {row.exported:.1e} | {texts} |\n"


def text(cells: list[Cell]) -> str:
    """The page as text."""
    alone = {}
    for cell in cells:
        if not (cell.encoder and cell.language_model):
            alone.setdefault((cell.encoder, cell.language_model), []).append(cell)
    cells = [cell for cell in cells if cell.encoder and cell.language_model]
    pairs = {(cell.encoder, cell.language_model) for cell in cells}
    by_themselves = [cell for mine in alone.values() for cell in mine]
    made = _HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        passed=sum(1 for cell in cells if not cell.reason),
        cells=len(cells),
        pairs=len(pairs),
        full=len({(cell.encoder, cell.language_model) for cell in cells if cell.check != "forward"}),
        alone_passed=sum(1 for cell in by_themselves if not cell.reason),
        alone=len(by_themselves),
        less=", ".join(
            f"{name} ({row.tolerance:.0e})" for name, row in LANGUAGE_MODELS.items() if row.tolerance > 1e-10
        ),
    )
    made += "".join(f"| {name} | {_told(check.__doc__)} |\n" for name, check in CHECKS.items())
    made += "\n## Encoders\n\nWith a Llama. Features are those of two inputs.\n\n"
    made += _table(
        ("encoder", "class", "features"),
        ((name, _class(row.cls), " + ".join(map(str, row.features))) for name, row in ENCODERS.items()),
        {name: [cell for cell in cells if (cell.encoder, cell.language_model) == (name, "llama")] for name in ENCODERS},
        {name: alone[name, None] for name in ENCODERS},
    )
    made += "\n## Language models\n\nWith a CLIP tower.\n\n"
    made += _table(
        ("language model", "class", "differs in"),
        ((name, _class(row.cls), ", ".join(row.traits)) for name, row in LANGUAGE_MODELS.items()),
        {
            name: [cell for cell in cells if (cell.encoder, cell.language_model) == ("clip", name)]
            for name in LANGUAGE_MODELS
        },
        {name: alone[None, name] for name in LANGUAGE_MODELS},
    )
    made += _matrix(cells) + "\n## What fails\n\n" + _failures(cells)
    return made + "\n## What a class does not do by itself\n\n" + _failures(by_themselves)


def _failures(cells: list[Cell]) -> str:
    lines = (
        f"- {' with '.join(filter(None, cell[:2]))}, {cell.check}: `{cell.reason}`\n" for cell in cells if cell.reason
    )
    return "".join(lines) or "Nothing.\n"


def _told(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def _class(name: str) -> str:
    return f"`{name.rpartition('.')[2]}`"


def _table(
    head: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    cells: dict[str, list[Cell]],
    alone: dict[str, list[Cell]],
) -> str:
    made = "| " + " | ".join((*head, "alone", *CHECKS)) + " |\n" + "|---" * (len(head) + 1 + len(CHECKS)) + "|\n"
    for row in rows:
        reasons = {cell.check: cell.reason for cell in cells[row[0]]}
        marks = [_mark(not any(cell.reason for cell in alone[row[0]]))]
        marks += [_mark(reasons.get(check) == "") for check in CHECKS]
        made += "| " + " | ".join((*row, *marks)) + " |\n"
    return made


def _mark(passed: bool) -> str:
    return "yes" if passed else "**no**"


def _matrix(cells: list[Cell]) -> str:
    """One letter a pair."""
    marks: dict[tuple[str, str], str] = {}
    for cell in cells:
        key = (cell.encoder, cell.language_model)
        if cell.reason:
            marks[key] = "-"
        elif cell.check != "forward" and marks.get(key) != "-":
            marks[key] = "#"
        else:
            marks.setdefault(key, "+")
    width = max(map(len, ENCODERS))
    lines = [
        f"{encoder:{width}} {''.join(marks.get((encoder, text), ' ') for text in LANGUAGE_MODELS)}"
        for encoder in ENCODERS
    ]
    return (
        "\n## Pairs\n\n`#` passes everything, `+` loss and logits, which is all that was asked of it, `-` fails "
        "something. The columns are the language models in the order of the table above.\n\n```text\n"
        + "\n".join(lines)
        + "\n```\n"
    )
