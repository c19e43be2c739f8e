"""What loading costs: memory over the model's bytes, and time against Hugging Face's loading of the same parts.

    python -m benchmarks.loading [--repeats 3] [--gigabytes 1.1] [--quick] [--output FILE.json]

A vision tower and a language model with tied and with untied weights, saved as one file and in files of 200 MB: by
`save_pretrained` of the model, and of its parts alone. Anonymous memory is sampled from outside while a process of its
own loads them, from when all imports are done. Times are ratios of medians over repeats in turn, files in the page
cache. Hugging Face maps the files and leaves reading to the first use, so the time until every weight was read once
stands beside the time of the call, and that of loading into bfloat16, which reads all at once. No absolute times:
machines differ.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import harness
from benchmarks.harness import Column, Goal, Plot, Report
from cornstarch import ModalEncoderModule, MultimodalModel
from cornstarch.models.multimodal_language_model import parts

WIDTH, TOWER = 2048, 1024
COLUMNS = [
    Column("weights", "weights, files", width=18), Column("way", "loaded", width=14),
    Column("peak", "peak, as saved", ".3f"), Column("peak_half", "peak, bfloat16", ".3f"),
    Column("call", "time: call", ".2f"), Column("until_read", "time: until read", ".2f"),
    Column("call_half", "time: bfloat16", ".2f"),
]  # fmt: skip
GOALS = [Goal(text="loading a model's own save: at most 1.1 of its bytes in memory", column="own", at_most=1.1)]
PLOT = Plot(
    kind="bars", values=("peak", "peak_half"), names=("weights", "way"), unit="peak over the model's bytes", line=1.1
)
SHARDS = {"one file": "50GB", "200 MB": "200MB"}


def saved(folder: Path, gigabytes: float, tie: bool) -> None:
    """Save a model, and its parts alone, under the name of each way to cut the weights into files."""
    heads = {"num_hidden_layers": 1 if gigabytes < 0.1 else 2, "num_attention_heads": 16}
    width, tower_width = (64, 64) if gigabytes < 0.1 else (WIDTH, TOWER)
    tower = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(hidden_size=tower_width, intermediate_size=4 * tower_width, **heads)
    )
    rest = 12 * width * width * heads["num_hidden_layers"] + sum(weight.numel() for weight in tower.parameters())
    words = max(64, int((gigabytes * 1e9 / 4 - rest) / width / (1 if tie else 2)))
    language_model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=words, hidden_size=width, intermediate_size=8 * width // 3, tie_word_embeddings=tie, **heads
        )
    )
    model = MultimodalModel({"vision": ModalEncoderModule(tower)}, language_model)
    for name, size in SHARDS.items():
        model.save_pretrained(folder / name / "model", max_shard_size=size)
        tower.save_pretrained(folder / name / "tower", max_shard_size=size)
        language_model.save_pretrained(folder / name / "language_model", max_shard_size=size)


def own(folder: Path, **options: Any) -> list[torch.nn.Module]:
    """A saved model."""
    return [MultimodalModel.from_pretrained(folder / "model", **options)]


def imported(folder: Path, **options: Any) -> list[torch.nn.Module]:
    """A model composed of imported parts."""
    tower = parts.load_encoder("vision", folder / "tower", **options)
    language_model = parts.load_language_model(folder / "language_model", **options)
    return [MultimodalModel({"vision": ModalEncoderModule(tower)}, language_model)]


def hugging_face(folder: Path, **options: Any) -> list[torch.nn.Module]:
    """The parts by themselves, as Hugging Face loads them."""
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "tower", **options)
    return [tower, transformers.LlamaForCausalLM.from_pretrained(folder / "language_model", **options)]


WAYS: dict[str, Callable[..., list[torch.nn.Module]]] = {
    "own save": own, "imported parts": imported, "Hugging Face": hugging_face,
}  # fmt: skip


def anonymous(process: int | str = "self") -> int:
    """Bytes of anonymous memory that a process has now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def load_once(way: str, warm: str, folder: str, dtype: str) -> None:
    """Load in this process, and tell the one that watches when it begins, how large the model is, and the end."""
    options = {} if dtype == "as saved" else {"dtype": dtype}
    WAYS[way](Path(warm))  # imports all it needs
    print(anonymous(), flush=True)
    sys.stdin.readline()
    models = WAYS[way](Path(folder), **options)
    print(sum(weight.nbytes for model in models for weight in model.parameters()), anonymous(), flush=True)
    sys.stdin.readline()


def peak(way: str, warm: Path, folder: Path, dtype: str) -> float:
    """The most anonymous memory of a process while it loads, above what it had before, over the model's bytes."""
    command = [sys.executable, "-m", "benchmarks.loading", "--load-once", way, str(warm), str(folder), dtype]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    place = Path(__file__).parent.parent
    with subprocess.Popen(command, text=True, cwd=place, **pipes) as process:  # type: ignore[call-overload]
        before, seen = int(process.stdout.readline()), []
        process.stdin.write("go\n")
        process.stdin.flush()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.001):
                seen.append(anonymous(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        size, after = map(int, process.stdout.readline().split())
        done.set()
        watcher.join()
        process.communicate("end\n")
    return (max([*seen, after]) - before) / size


def timed(way: str, folder: Path) -> tuple[float, float, float]:
    """Seconds of the call, until every weight was read once, and of the call into bfloat16."""
    started = time.perf_counter()
    models = WAYS[way](folder)
    called = time.perf_counter()
    for model in models:
        for weight in model.parameters():
            weight.detach().sum()
    read = time.perf_counter()
    del model, models
    again = time.perf_counter()
    WAYS[way](folder, dtype="bfloat16")
    return called - started, read - started, time.perf_counter() - again


def measured(folder: Path, shards: str, tie: bool, repeats: int, quick: bool) -> list[harness.Row]:
    """Rows of one model: each way to load it, times with Hugging Face's as 1."""
    place = folder / "large" / shards
    times: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            times[way].append(timed(way, place))
    medians = {way: [statistics.median(column) for column in zip(*times[way], strict=True)] for way in WAYS}
    rows = []
    for way in WAYS:
        peaks: list[float | None] = [None, None]  # of Hugging Face's parts; of ours alone where it is to be quick
        if way == "own save" or (way != "Hugging Face" and not quick):
            peaks = [peak(way, folder / "warm" / shards, place, dtype) for dtype in ("as saved", "bfloat16")]
        ratios = [mine / theirs for mine, theirs in zip(medians[way], medians["Hugging Face"], strict=True)]
        row = {"weights": f"{'tied' if tie else 'untied'}, {shards}", "way": way, "seconds": times[way]}
        row |= dict(zip(("peak", "peak_half", "call", "until_read", "call_half"), [*peaks, *ratios], strict=True))
        rows.append({**row, "own": max(filter(None, peaks)) if way == "own save" else None})
    return rows


def main() -> int:
    """Measure and print; write JSON if asked."""
    parser = harness.parser(__doc__, repeats=3)
    parser.add_argument("--gigabytes", type=float)
    parser.add_argument("--load-once", nargs=4, help=argparse.SUPPRESS)
    options = harness.parsed(parser)
    if options.load_once is not None:
        load_once(*options.load_once)
        return 0
    gigabytes = options.gigabytes or (0.3 if options.quick else 1.1)
    report = Report("loading", __doc__, COLUMNS, names=2, goals=GOALS, plot=PLOT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saved(folder / "warm", 0.0, tie=False)
        for tie in (True,) if options.quick else (True, False):
            saved(folder / "large", gigabytes, tie)
            for shards in list(SHARDS)[:1] if options.quick else SHARDS:
                for row in measured(folder, shards, tie, options.repeats, options.quick):
                    report.add(row)
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
