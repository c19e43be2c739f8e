"""What `cornstarch data check` costs: samples a second, against a plain loop through the collator.

    python benchmarks/scanning.py [--samples 250] [--repeats 3] [--output FILE.json]

Photographs of 640 x 480 as JPEG with a question and an answer each, and conversations of text alone. The plain loop
reads each sample and collates it by itself, which is what preparing costs whoever does it. A check does more: it looks
at texts and media, and tells conversations apart by a hash. Medians over repeats in turn; torch computes with one
thread in every process.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cornstarch import Collator, ModelConfig, RowSource
from cornstarch.data.doctor.findings import Examiner
from cornstarch.data.doctor.scan import scan
from cornstarch.data.steps import chance_at
from cornstarch.training import EncoderConfig, LanguageModelConfig, ProcessorConfig, building

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
MODEL = ModelConfig(
    encoders={
        "vision": EncoderConfig(
            config={"model_type": "clip_vision_model", **SMALL, "image_size": 336, "patch_size": 14},
            processor=ProcessorConfig(class_name="CLIPImageProcessorPil", arguments={"size": 336, "crop_size": 336}),
        )
    },
    language_model=LanguageModelConfig(
        config={"model_type": "llama", **SMALL, "num_key_value_heads": 2, "max_position_embeddings": 8192},
        tokenizer="bytes",
    ),
)
WORKERS = (1, 2)


def written(folder: Path, samples: int, images: bool) -> RowSource:
    """A file of conversations, with a photograph each or without."""
    chance, lines = np.random.default_rng(0), []
    for number in range(samples):
        words = " ".join(f"word{chance.integers(1000)}" for _ in range(60))
        turns = [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": words}]
        row: dict[str, Any] = {"conversations": turns}
        if images:
            coarse = chance.integers(0, 255, (15, 20, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number}.jpg", quality=90)
            turns[0]["value"] = f"<image>\n{turns[0]['value']}"
            row["images"] = [f"{number}.jpg"]
        lines.append(json.dumps(row) + "\n")
    path = folder / f"{'images' if images else 'text'}.jsonl"
    path.write_text("".join(lines))
    return RowSource(path, "sharegpt", media=folder)


def plain(source: RowSource, collator: Collator) -> None:
    """Read and collate every sample."""
    for index in range(len(source)):
        collator([source.sample(index, chance_at(0, 0, index))])


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> int:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    collator = Collator(building.build_processor(MODEL, "plain"))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("640 x 480 JPEG", "text"):
            images = kind != "text"
            number = options.samples if images else 4 * options.samples
            source = written(Path(temporary), number, images)
            examiner = Examiner(source, collator)
            ways: dict[str, Callable[[], Any]] = {"plain loop": lambda s=source: plain(s, collator)}
            for workers in WORKERS:
                ways[f"check, {workers} worker{'s' * (workers > 1)}"] = lambda e=examiner, n=number, w=workers: scan(
                    e, range(n), workers=w
                )
            plain(source, collator)  # imports, and files in the page cache
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.repeats):
                for way, run in ways.items():
                    times[way].append(timed(run))
            for way, found in times.items():
                rows.append({"samples": kind, "way": way, "per_second": number / statistics.median(found)})
    print(f"{'samples':18}{'way':20}{'samples a second':>18}{'of the plain loop':>20}")
    for row in rows:
        [base] = [other for other in rows if other["samples"] == row["samples"] and other["way"] == "plain loop"]
        row["ratio"] = row["per_second"] / base["per_second"]
        print(f"{row['samples']:18}{row['way']:20}{row['per_second']:18.1f}{row['ratio']:20.2f}")
    if options.output is not None:
        result = {
            "rows": rows, "torch": torch.__version__, "machine": platform.platform(), "cpus": os.cpu_count(),
            "load": os.getloadavg()[0], "command": sys.argv,
        }  # fmt: skip
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
