"""Runs the zoo and writes `docs/zoo.md`: `make zoo`, or `python -m tests.zoo.run`."""

import argparse
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from tests.models.originals import ORIGINALS
from tests.zoo import formats, making, page
from tests.zoo.alone import ALONE, TEXT_ONLY
from tests.zoo.checks import CHECKS, compare_forward
from tests.zoo.table import ENCODERS, LANGUAGE_MODELS

BASE_ENCODER, BASE_LANGUAGE_MODEL = "clip", "llama"


class Job(NamedTuple):
    """Rows that run together in one process."""

    encoder: str | None  # None for all of them, one forward pass each
    language_model: str | None  # None for an encoder by itself
    by_itself: bool = False


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
    """Every row by itself, every row through everything with one partner, the cover, and every pair through a forward
    pass."""
    alone = [Job(name, None, True) for name in ENCODERS] + [Job(None, name, True) for name in LANGUAGE_MODELS]
    pairs = {(name, BASE_LANGUAGE_MODEL) for name in ENCODERS} | {(BASE_ENCODER, name) for name in LANGUAGE_MODELS}
    full = [Job(encoder, text) for encoder, text in sorted(pairs | set(cover()))]
    return alone + full + [Job(None, text) for text in LANGUAGE_MODELS]


def run(job: Job) -> list[page.Cell]:
    """The cells of one job."""
    return list(_run(job))


def _run(job: Job) -> Iterator[page.Cell]:
    encoder, text = job.encoder, job.language_model
    if job.by_itself:
        name, encodes = (encoder, True) if encoder else (text, False)
        for check, function in ALONE.items():
            if encodes and check in TEXT_ONLY:
                continue
            yield page.Cell(encoder, text, check, _reason(function, name, encodes))
    elif encoder:
        for check, function in CHECKS.items():
            yield page.Cell(encoder, text, check, _reason(function, encoder, text))
    else:
        made = making.language_model(text)
        for encoder in ENCODERS:
            reason = _reason(
                lambda name: compare_forward(name, making.compose(making.cached_encoder(name), made), text), encoder
            )
            yield page.Cell(encoder, text, "forward", reason)


def _reason(function: Callable[..., None], *arguments: Any) -> str:
    """What a check fails with, in one line; empty if it passes."""
    try:
        function(*arguments)
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
                        f"{cell.encoder} + {cell.language_model}, {cell.check}: {cell.reason}",
                        flush=True,
                    )
        measured = [] if options.only else list(pool.map(formats.measure, ORIGINALS))
    failed = sum(1 for cell in cells if cell.reason)
    print(f"{len(cells) - failed} cells passed of {len(cells)}, in {time.monotonic() - began:.0f} s")
    if not options.only:
        page.write(cells, measured)


if __name__ == "__main__":
    main()
