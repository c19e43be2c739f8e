"""In `transformers.Trainer`: ours against Hugging Face's LLaVA in a user's script, and our own `Loop` against both.

    python -m benchmarks.trainer [--repeats 9] [--quick] [--output FILE.json]

Both models, of the same weights, are given to `Trainer` with the same data set, collator and arguments; `Loop` is
what `cornstarch train` runs, with the optimizer of its default config, on the same samples in the same order. Each
runs a block of steps in turn in one process; every block is a run of its own. Timed is a block from the end of its
first step to the end of its last: loading and collating, forward, backward, clipping, update, logging of every step.
After each block the losses of all its steps are compared, 1e-3 of them.

`ratio` is that of medians over blocks, `minima` of the shortest block. `bound` is the ratio of floating-point
operations of the models by theory (see `same_work`), `share` is bound / ratio. Where both are ours the bound is 1.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks import harness, llava
from benchmarks.harness import Column, Goal, Plot, Report
from benchmarks.llava import Size
from cornstarch import Callback, Loop, StepBatch, StepRecord, make_optimizer, parameter_groups
from cornstarch.training import OptimizerConfig

RATE = 1e-4
SMALL = Size(name="small", width=128, layers=2, tower_width=128, tower_layers=3)
MEDIUM = Size(name="medium", width=256, layers=4, tower_width=192, tower_layers=4, samples=1)
SWEEP = [SMALL, replace(SMALL, labelled=1.0), MEDIUM]
STEPS = 5  # of a block
COLUMNS = [
    Column("regime", "regime", width=14), Column("size", "size"), Column("labelled", "labelled", ".0%"),
    Column("compared", "compared", width=34), Column("ratio", "ratio", ".3f"), Column("minima", "minima", ".3f"),
    Column("bound", "bound", ".3f"), Column("share", "share", ".1%"),
]  # fmt: skip
OWN_LOOP, OWN, THEIRS = "ours in Loop", "ours in Trainer", "LLaVA in Trainer"
GOALS = [
    Goal(
        text="in Trainer: median ratio to Hugging Face's LLaVA at most 1.02",
        column="in_trainer", at_most=1.02, bound="bound", share="share", form=".3f",
    ),
    Goal(
        text="Loop (`cornstarch train`) to Hugging Face's LLaVA in Trainer: median ratio at most 1.02",
        column="in_loop", at_most=1.02, bound="bound", share="share", form=".3f",
    ),
]  # fmt: skip
PLOT = Plot(kind="bound", values=("ratio", "bound"), names=("compared",), line=1.02)


class Timed(TrainerCallback):
    """When steps ended, and what was logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


class TimedLoop(Callback):
    """The same in `Loop`."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        self.ends.append(time.perf_counter())
        self.losses.append(record.loss)


class Collated:
    """Samples in their order, put together when a step asks for them, as `Trainer` does."""

    def __init__(self, samples: Sequence[dict[str, Tensor]], size: int) -> None:
        self._samples, self._size, self._next = samples, size, 0

    def __next__(self) -> StepBatch:
        taken = self._samples[self._next : self._next + self._size]
        self._next += self._size
        return StepBatch(micro_batches=(collate(taken),), samples=len(taken), names=())

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of samples of one length."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def in_trainer(model: Any, samples: Sequence[dict[str, Tensor]], size: Size, steps: int) -> Timed:
    """A block of steps in `Trainer`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=size.samples, learning_rate=RATE,
            lr_scheduler_type="constant", logging_steps=1, train_sampling_strategy="sequential", report_to="none",
            disable_tqdm=True, save_strategy="no", use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        timed = Timed()
        trainer = Trainer(model, arguments, collate, samples, callbacks=[timed])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return timed


def in_loop(model: Any, samples: Sequence[dict[str, Tensor]], size: Size, steps: int) -> TimedLoop:
    """A block of steps in `Loop`."""
    config, timed = OptimizerConfig(learning_rate=RATE, weight_decay=0.0), TimedLoop()
    optimizer = make_optimizer(parameter_groups(model, config), config)
    Loop(model, optimizer, Collated(samples, size.samples), steps=steps, callbacks=[timed]).run()
    return timed


def samples_of(size: Size, steps: int) -> list[dict[str, Tensor]]:
    """Enough for a block."""
    whole = llava.batch(replace(size, samples=size.samples * steps))
    return [{name: values[place] for name, values in whole.items()} for place in range(size.samples * steps)]


def rows(size: Size, regime: str, repeats: int, steps: int) -> list[harness.Row]:
    """Blocks in turn, compared two by two."""
    theirs, ours = llava.pair(size)
    models = {OWN_LOOP: llava.pair(size)[1], OWN: ours, THEIRS: theirs}
    samples = samples_of(size, steps)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-1, repeats):
        losses = {}
        for name in models if turn % 2 == 0 else reversed(models):
            run: Callable[..., Any] = in_loop if name == OWN_LOOP else in_trainer
            timed = run(llava.choose(models[name], regime), samples, size, steps)
            losses[name] = timed.losses
            if turn >= 0:
                seconds[name].append(timed.ends[-1] - timed.ends[0])
        for name, found in losses.items():
            assert len(found) == steps, f"{name}: {len(found)} losses of {steps} steps"
            apart = max(abs(a - b) / b for a, b in zip(found, losses[THEIRS], strict=True))
            assert apart <= 1e-3, f"{name}: losses differ by {apart:.1e}: {found}, {losses[THEIRS]}"
    made = []
    bound = llava.bound(size, regime)
    for own, other, key in ((OWN, THEIRS, "in_trainer"), (OWN_LOOP, THEIRS, "in_loop"), (OWN_LOOP, OWN, "both_ours")):
        row, best = harness.ratios(seconds, own, other), bound if other == THEIRS else 1.0
        cell = {"regime": regime, "size": size.name, "labelled": size.labelled, "compared": f"{own} / {other}"}
        made.append({**cell, **row, "bound": best, "share": best / row["ratio"], key: row["ratio"]})
    return made


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__))
    report = Report("trainer", __doc__, COLUMNS, names=4, goals=GOALS, plot=PLOT)
    for size in SWEEP[:1] if options.quick else SWEEP:
        for regime in llava.REGIMES:
            for row in rows(size, regime, options.repeats, 3 if options.quick else STEPS):
                report.add(row)
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
