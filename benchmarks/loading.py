"""What loading costs: memory over the model's bytes, and time against Hugging Face's loading of the same parts.

    python benchmarks/loading.py [--repeats 3] [--gigabytes 1.1] [--output FILE.json]

A vision tower and a language model with tied and with untied weights, saved as one file and in files of 200 MB: by
`save_pretrained` of the model, and of its parts alone. Anonymous memory is sampled from outside while a process of its
own loads them, from when all imports are done. Times are ratios of medians over repeats in turn, files in the page
cache. Hugging Face maps the files and leaves reading to the first use, so the time until every weight was read once
stands beside the time of the call, and that of loading into bfloat16, which reads all at once. No absolute times:
machines differ.
"""

import argparse
import json
import platform
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

from cornstarch import ModalEncoderModule, MultimodalModel
from cornstarch.models.multimodal_language_model import parts

GOAL = 1.1  # of the peak, over the model's bytes
WIDTH, TOWER = 2048, 1024
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
    command = [sys.executable, __file__, "--load-once", way, str(warm), str(folder), dtype]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
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


def main() -> int:
    """Measure, print tables, write JSON if asked; the exit code is 1 if a model's own save needs too much memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--load-once", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if options.load_once is not None:
        load_once(*options.load_once)
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saved(folder / "warm", 0.0, tie=False)
        for tie in (True, False):
            saved(folder / "large", options.gigabytes, tie)
            for shards in SHARDS:
                place = folder / "large" / shards
                weights = f"{'tied' if tie else 'untied'}, {shards}"
                times: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
                for _ in range(options.repeats):
                    for way in WAYS:
                        times[way].append(timed(way, place))
                medians = {way: [statistics.median(column) for column in zip(*times[way], strict=True)] for way in WAYS}
                for way in WAYS:
                    peaks = [peak(way, folder / "warm" / shards, place, dtype) for dtype in ("as saved", "bfloat16")]
                    ratios = [mine / theirs for mine, theirs in zip(medians[way], medians["Hugging Face"], strict=True)]
                    rows.append({"weights": weights, "way": way, "peak": peaks, "time": ratios})
    print(f"{'':36}{'peak / bytes of the model':>26}{'time / Hugging Face':>36}")
    columns = ("as saved", "bfloat16", "call", "until read", "bfloat16")
    print(f"{'weights, files':20}{'loaded':16}" + "".join(f"{column:>12}" for column in columns))
    for row in rows:
        figures = "".join(f"{figure:12.3f}" for figure in row["peak"])
        print(f"{row['weights']:20}{row['way']:16}{figures}" + "".join(f"{ratio:12.2f}" for ratio in row["time"]))
    worst = max(figure for row in rows for figure in row["peak"] if row["way"] == "own save")
    print(f"highest peak of a model's own save: {worst:.3f}, goal {GOAL}")
    if options.output is not None:
        result = {
            "rows": rows, "goal": GOAL, "gigabytes": options.gigabytes, "torch": torch.__version__,
            "transformers": transformers.__version__, "machine": platform.platform(), "command": sys.argv,
        }  # fmt: skip
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
