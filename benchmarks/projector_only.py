"""Training the projector alone: a step against one that trains everything, and both against what theory allows.

    python -m benchmarks.projector_only [--repeats 9] [--quick] [--output FILE.json]

Ours twice, with the same weights: in one only the projector trains, in the other everything. Whole steps in turn in one
process. A frozen encoder needs 2N operations a token (N weights), a frozen language model that passes the gradient on
4N, what trains 6N; attention's backward is twice its forward either way; the head runs on labelled positions alone.
Sizes of language models, and encoders from a small to a large share of the forward pass (`encoder`).

`ratio` is the time of forward and backward, projector only / all, of medians; `minima` of the shortest; `bound` is that
ratio of operations by theory, `share` is bound / ratio. The optimizer's update is no operation of the bound and costs
next to nothing where only the projector trains, so `whole step`, with it, may be below the bound.

`counted` is what `torch.utils.flop_counter.FlopCounterMode` counts with eager attention over what theory says, for
projector only and for all: these are exact and the same on every machine. `off` is the larger difference.
"""

import statistics
import sys
from dataclasses import replace
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness, llava
from benchmarks.harness import Column, Goal, Plot, Report, Row
from benchmarks.llava import Size

PROJECTOR, ALL = "projector only", "all train"
SIZES = {"small": (128, 2), "medium": (256, 4), "large": (512, 4)}
TOWERS = {"small": (0.5, 2), "medium": (0.75, 4), "large": (1.5, 8)}  # width over the language model's; layers
COLUMNS = [
    Column("size", "language model"), Column("encoder", "encoder", ".0%"), Column("ratio", "ratio", ".3f"),
    Column("minima", "minima", ".3f"), Column("bound", "bound", ".3f"), Column("share", "share", ".1%"),
    Column("whole", "whole step", ".3f"), Column("counted_projector", "counted, projector", ".4f"),
    Column("counted_all", "counted, all", ".4f"), Column("off", "off", ".2%"),
]  # fmt: skip
GOALS = [
    Goal(
        text="projector-only training: step / fully trained step at 85 % of the bound or better",
        column="share", at_least=0.85, bound="bound", share="share",
    ),
    Goal(text="projector-only training: operations equal theory within 1 %", column="off", at_most=0.01),
]  # fmt: skip
PLOT = Plot(kind="bound", values=("ratio", "bound"), names=("size",))


def sizes(quick: bool) -> list[Size]:
    """The sweep."""
    made = []
    for name, (width, layers) in SIZES.items():
        for share, tower_layers in TOWERS.values():
            tower = max(64, round(share * width / 64) * 64)
            made.append(Size(name=name, width=width, layers=layers, tower_width=tower, tower_layers=tower_layers))
    return made[::2][:2] if quick else made


def counted(size: Size, regime: str) -> float:
    """Operations of a forward and backward pass as the counter sees them, over those of theory."""
    _, ours = llava.pair(replace(size, attention="eager"))
    given = llava.batch(size)
    llava.choose(ours, regime)
    ours(**given).loss.backward()  # a language model is asked once how it can be run
    with FlopCounterMode(display=False) as counter:
        ours(**given).loss.backward()
    return float(counter.get_total_flops() / llava.flops(size, regime, size.rows).total)


def cell(size: Size, repeats: int) -> Row:
    """A row."""
    given = llava.batch(size)
    steps = {regime: llava.Step(llava.choose(llava.pair(size)[1], regime), given) for regime in (PROJECTOR, ALL)}
    seconds = harness.in_turn(steps, repeats)
    without = {
        regime: [whole - update for whole, update in zip(seconds[regime], step.updates[1:], strict=True)]
        for regime, step in steps.items()
    }
    work = {regime: llava.flops(size, regime, size.rows) for regime in steps}
    bound, row = work[PROJECTOR].total / work[ALL].total, harness.ratios(without, PROJECTOR, ALL)
    found = {regime: counted(size, regime) for regime in steps}
    off = max(abs(ratio - 1) for ratio in found.values())
    forward: Any = replace(work[PROJECTOR], head=work[PROJECTOR].head / 2, layers=work[PROJECTOR].layers / 2)
    return {
        "size": size.name, "encoder": forward.encoder / forward.total, **row, "bound": bound,
        "share": bound / row["ratio"],
        "whole": statistics.median(seconds[PROJECTOR]) / statistics.median(seconds[ALL]), "whole_seconds": seconds,
        "counted_projector": found[PROJECTOR], "counted_all": found[ALL], "off": off,
    }  # fmt: skip


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__))
    report = Report("projector_only", __doc__, COLUMNS, names=2, goals=GOALS, plot=PLOT)
    for size in sizes(options.quick):
        report.add(cell(size, options.repeats))
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
