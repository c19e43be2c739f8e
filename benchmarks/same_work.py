"""The same work as Hugging Face's LLaVA: a whole step of ours against theirs, on the same weights and inputs.

    python -m benchmarks.same_work [--repeats 9] [--quick] [--output FILE.json]

Hugging Face's `LlavaForConditionalGeneration` with random weights is saved and read by
`MultimodalModel.from_pretrained_multimodal_model`; both then take whole steps in turn in one process: forward,
backward, fused AdamW. Same attention, same dtype, no cache, frozen parts in evaluation mode. Before that, losses and
the lengths of gradients are compared, 1e-4 of them. Three regimes, three sizes, vocabularies, and shares of the
text's tokens that are labelled; `long` has so many labels that ours takes the logits in chunks, which saves memory
and costs time.

`ratio` is ours / Hugging Face's, of medians; `minima` of the shortest steps. `bound` is the ratio of floating-point
operations by theory: ours runs the head on labelled positions alone, everything else is the same. `share` is bound /
ratio; above 100 % the softmax, which falls as well and is not counted, was saved too. The optimizer's update is the
same for both, and no operation of the bound: `with update` is the bound if the update's time stays as it is.
"""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import harness, llava
from benchmarks.harness import Column, Goal, Plot, Report, Row
from benchmarks.llava import Size

SMALL = Size(name="small", width=128, layers=2, tower_width=128, tower_layers=3, samples=2)
MEDIUM = Size(name="medium", width=256, layers=4, tower_width=192, tower_layers=4, samples=1)
LARGE = Size(name="large", width=512, layers=4, tower_width=256, tower_layers=4, samples=1)
LONG = replace(SMALL, name="long", samples=4)
SWEEP = [
    (size, vocabulary, labelled)
    for size, vocabulary, shares in (
        (SMALL, 8_000, (0.1, 0.25, 1.0)),
        (SMALL, 32_000, (0.1, 0.25, 1.0)),
        (SMALL, 128_000, (0.1, 1.0)),
        (MEDIUM, 8_000, (0.1, 0.25, 1.0)),
        (MEDIUM, 32_000, (0.1, 0.25, 1.0)),
        (LARGE, 8_000, (0.1, 1.0)),
        (LARGE, 32_000, (0.1,)),
        (LONG, 128_000, (1.0,)),
    )
    for labelled in shares
]
QUICK = [(SMALL, 8_000, 0.1), (SMALL, 8_000, 1.0), (SMALL, 32_000, 0.1)]
SPARSE = 0.25  # labels are sparse up to here
COLUMNS = [
    Column("regime", "regime", width=14), Column("size", "size"), Column("vocabulary", "vocabulary", ","),
    Column("labelled", "labelled", ".0%"), Column("ratio", "ratio", ".3f"), Column("minima", "minima", ".3f"),
    Column("bound", "bound", ".3f"), Column("share", "share", ".1%"), Column("with_update", "with update", ".3f"),
    Column("share_with_update", "share with update", ".1%"),
]  # fmt: skip
GOALS = [
    Goal(
        text="the same work as Hugging Face's LLaVA: median ratio at most 1.02 in any regime and size",
        column="ratio", at_most=1.02, bound="bound", share="share",
    ),
    Goal(
        text="the same work with sparse labels (25 % or less): 85 % of the bound or better",
        column="sparse", at_least=0.85, bound="bound", share="share", form=".1%",
    ),
]  # fmt: skip
PLOT = Plot(kind="bound", values=("ratio", "bound"), names=("regime",), line=1.02)


def cells(size: Size, repeats: int) -> Iterator[Row]:
    """A row for each regime, on the same two models."""
    theirs, ours = llava.pair(size)
    given = llava.batch(size)
    for regime in [*llava.REGIMES][:1] if size.name == "long" else llava.REGIMES:
        llava.check_equal(llava.choose(theirs, regime), llava.choose(ours, regime), given)
        own, other = llava.Step(ours, given), llava.Step(theirs, given)
        seconds = harness.in_turn({"ours": own, "Hugging Face": other}, repeats)
        bound, row = llava.bound(size, regime), harness.ratios(seconds, "ours", "Hugging Face")
        update = statistics.median(other.updates[1:]) / statistics.median(seconds["Hugging Face"])
        with_update = bound * (1 - update) + update
        share = bound / row["ratio"]
        yield {
            "regime": regime, "size": size.name, "vocabulary": size.vocabulary, "labelled": size.labelled,
            **row, "bound": bound, "share": share, "sparse": share if size.labelled <= SPARSE else None,
            "with_update": with_update, "share_with_update": with_update / row["ratio"],
            "updates": {"ours": own.updates[1:], "Hugging Face": other.updates[1:]},
        }  # fmt: skip


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__))
    report = Report("same_work", __doc__, COLUMNS, names=4, goals=GOALS, plot=PLOT)
    for size, vocabulary, labelled in QUICK if options.quick else SWEEP:
        for row in cells(replace(size, vocabulary=vocabulary, labelled=labelled), options.repeats):
            report.add(row)
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
