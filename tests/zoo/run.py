"""Runs the zoo and writes `docs/zoo.md`: `make zoo`, or `python -m tests.zoo.run`."""

import argparse
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from tests.zoo import making, page
from tests.zoo.alone import ALONE
from tests.zoo.checks import CHECKS, compare_forward
from tests.zoo.table import ENCODERS, LANGUAGE_MODELS

BASE_ENCODER, BASE_LANGUAGE_MODEL = "clip", "llama"


class Job(NamedTuple):
    """Rows that run together in one process: an encoder or None for all, a language model, and whether all is run."""

    encoder: str | None
    language_model: str
    everything: bool


def cover() -> list[tuple[str, str]]:
    """Pairs in which every way an encoder's rows may lie meets everything in which language models differ."""
    kinds = {name: {row.layout, "ragged" if len(set(row.features)) > 1 else "even"} for name, row in ENCODERS.items()}
    traits = {name: set(row.traits) or {"none"} for name, row in LANGUAGE_MODELS.items()}
    wanted = {(a, b) for mine in kinds.values() for a in mine for theirs in traits.values() for b in theirs}
    chosen: list[tuple[str, str]] = []
    uses = dict.fromkeys([*(f"e {name}" for name in ENCODERS), *(f"l {name}" for name in LANGUAGE_MODELS)], 0)
    while wanted:
        met = {
            (encoder, text): {(a, b) for a in kinds[encoder] for b in traits[text]} & wanted
            for encoder in ENCODERS
            for text in LANGUAGE_MODELS
        }
        # Of those that are worth most, the rows that ran least.
        best = max(met, key=lambda pair: (len(met[pair]), -uses[f"e {pair[0]}"] - uses[f"l {pair[1]}"]))
        chosen.append(best)
        wanted -= met[best]
        uses[f"e {best[0]}"] += 1
        uses[f"l {best[1]}"] += 1
    return chosen


def all_jobs() -> list[Job]:
    """Every row through everything with one partner, the cover, and every pair through a forward pass."""
    pairs = {(name, BASE_LANGUAGE_MODEL) for name in ENCODERS} | {(BASE_ENCODER, name) for name in LANGUAGE_MODELS}
    full = [Job(encoder, text, True) for encoder, text in sorted(pairs | set(cover()))]
    return full + [Job(None, text, False) for text in LANGUAGE_MODELS]


def run(job: Job) -> list[page.Cell]:
    """The cells of one job."""
    return list(_run(job))


def _run(job: Job) -> Iterator[page.Cell]:
    if job.encoder is not None:
        for check, function in CHECKS.items():
            reason = _reason(lambda: function(job.encoder, job.language_model))  # noqa: B023 - called at once
            yield page.Cell(job.encoder, job.language_model, check, reason, _alone(job, check) if reason else "")
        return
    text = making.language_model(job.language_model)
    for encoder in ENCODERS:
        reason = _reason(lambda: compare_forward(encoder, making.compose(making.cached_encoder(encoder), text)))  # noqa: B023
        yield page.Cell(encoder, job.language_model, "forward", reason, "")


def _alone(job: Job, check: str) -> str:
    """What the two classes of a pair that failed do alone."""
    found = [
        f"{name} alone: {reason}"
        for name, encodes in ((job.encoder, True), (job.language_model, False))
        if (reason := _reason(lambda: ALONE[check](name, encodes)))  # noqa: B023
    ]
    return "; ".join(found)


def _reason(function: object) -> str:
    """What a check fails with, in one line; empty if it passes."""
    try:
        function()  # type: ignore[operator]
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(place.filename).name}:{place.lineno})" if not isinstance(error, AssertionError) else ""
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
    return ""


def _quiet() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()


def main() -> None:
    """Run everything, print what fails, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="rows: run these alone, and write no page")
    options = parser.parse_args()
    jobs = [job for job in all_jobs() if not options.only or {job.encoder, job.language_model} & {*options.only}]
    began, cells = time.monotonic(), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, initializer=_quiet) as pool:
        for done in pool.map(run, jobs):
            cells += done
            for cell in done:
                if cell.reason:
                    print(
                        f"{cell.encoder} + {cell.language_model}, {cell.check}: {cell.reason} [{cell.alone}]",
                        flush=True,
                    )
    failed = sum(1 for cell in cells if cell.reason)
    print(f"{len(cells) - failed} cells passed of {len(cells)}, in {time.monotonic() - began:.0f} s")
    if not options.only:
        page.write(cells)


if __name__ == "__main__":
    main()
