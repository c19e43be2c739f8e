"""What the training application costs: its step against a hand-written loop's, on the digits model.

    python -m benchmarks.loop_overhead [--repeats 9] [--steps 20] [--quick] [--output FILE.json]

Both loops train the same model on the same batches, prepared beforehand, with fused AdamW, clipping and a cosine
schedule; the application's also measures the gradient of every part and writes `metrics.jsonl`. They run in turn,
block by block, in one process. Printed are the ratio of medians and of minima over the blocks (application /
hand-written), and that the losses are the same. No absolute times: machines differ.
"""

import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Column, Goal, Report
from cornstarch import (
    Batches,
    Callback,
    Collator,
    Loop,
    StepRecord,
    build_model,
    make_optimizer,
    make_schedule,
    make_source,
    parameter_groups,
    read_config,
)
from cornstarch.training.metrics import MetricsFile, as_line
from cornstarch.training.progress import Progress
from cornstarch.training.schedules import share_at

CONFIG = Path(__file__).parent.parent / "examples" / "digits.yaml"
COLUMNS = [
    Column("what", "compared", width=28), Column("ratio", "of medians", ".3f"), Column("minima", "of minima", ".3f"),
    Column("pairs", "median of pairs", ".3f"), Column("apart", "losses apart", ".1e"),
]  # fmt: skip
GOALS = [
    Goal(text="the training application: its step at most 1.03 of a hand-written loop's", column="ratio", at_most=1.03)
]


class Prepared:
    """Batches that are made already, so that both loops are measured without making them."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches, self._next = batches, 0

    def __next__(self) -> Any:
        self._next += 1
        return self._batches[(self._next - 1) % len(self._batches)]

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]


class Recorded(Callback):
    """What a run does at every step: a line of metrics, and progress."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._file = MetricsFile(folder / "metrics.jsonl")
        self._progress = Progress(steps, open(folder / "progress.txt", "w"))  # noqa: SIM115 - lives as long as the run
        self._progress.start(0)
        self.losses: list[float] = []

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        self._file.write(as_line([record]))
        self._progress.update(record)
        self.losses.append(record.loss)


def by_hand(model: Any, batches: Prepared, steps: int, total: int, peak: float) -> Any:
    """The loop that people write: no records, no parts, one group with decay and one without."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    decay = make_schedule("cosine", {})
    step, losses = 0, []

    def block() -> None:
        nonlocal step
        for _ in range(steps):
            step += 1
            micro = next(batches).micro_batches[0]
            for group in optimizer.param_groups:
                group["lr"] = peak * share_at(step, total, 0.05, decay)
            optimizer.zero_grad(set_to_none=True)
            loss = model(**micro).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())

    return block, losses


def main() -> int:
    """Measure and print; write JSON if asked; the exit code is 1 if the losses differ."""
    parser = harness.parser(__doc__)
    parser.add_argument("--steps", type=int, help="per block (20)")
    options = harness.parsed(parser)
    options.steps = options.steps or (8 if options.quick else 20)
    report = Report("loop_overhead", __doc__, COLUMNS, names=1, goals=GOALS)
    config = read_config(CONFIG)
    total = options.steps * (options.repeats + 1)

    def fresh() -> tuple[Any, Prepared]:
        torch.manual_seed(0)
        model, processor = build_model(config.model)
        source = make_source(config.data.train)
        batches = Batches(source, Collator(processor), config.training.batch_size)
        return model.train(), Prepared([next(batches) for _ in range(8)])

    model, batches = fresh()
    groups = parameter_groups(model, config.optimizer, warmup=0.05)
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(Path(folder), total)
        optimizer = make_optimizer(groups, config.optimizer)
        schedule = make_schedule("cosine", {})
        loop = Loop(model, optimizer, batches, steps=total, schedule=schedule, callbacks=[recorded])
        other, other_batches = fresh()
        hand, losses = by_hand(other, other_batches, options.steps, total, config.optimizer.learning_rate)

        def application() -> None:
            for _ in range(options.steps):
                record = loop.take_step()
                for callback in loop.callbacks:
                    callback.on_step(loop, record)

        seconds = harness.in_turn({"application": application, "by hand": hand}, options.repeats)
    row = harness.ratios(seconds, "application", "by hand")
    pairs = [a / b for a, b in zip(seconds["application"], seconds["by hand"], strict=True)]
    apart = max(abs(a - b) for a, b in zip(recorded.losses, losses, strict=True))
    report.add({"what": "application / by hand", **row, "pairs": statistics.median(pairs), "apart": apart})
    report.finish(options.output)
    return 0 if math.isclose(apart, 0, abs_tol=1e-3) else 1


if __name__ == "__main__":
    sys.exit(main())
