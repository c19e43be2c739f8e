"""What `cornstarch data check` costs: samples a second, against a plain loop through the collator.

    python -m benchmarks.scanning [--samples 250] [--repeats 3] [--quick] [--output FILE.json]

Photographs of 640 x 480 as JPEG with a question and an answer each, and conversations of text alone. The plain loop
reads each sample and collates it by itself, which is what preparing costs whoever does it. A check does more: it looks
at texts and media, and tells conversations apart by a hash. Medians over repeats in turn; torch computes with one
thread in every process.
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import harness
from benchmarks.harness import Column, Plot, Report
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
COLUMNS = [
    Column("samples", "samples", width=16), Column("way", "way", width=18),
    Column("per_second", "samples a second", ",.1f"), Column("ratio", "of the plain loop", ".2f"),
]  # fmt: skip
PLOT = Plot(kind="bars", values=("ratio",), names=("samples", "way"), unit="samples a second, plain loop = 1")


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


def main() -> int:
    """Measure and print; write JSON if asked."""
    parser = harness.parser(__doc__, repeats=3)
    parser.add_argument("--samples", type=int)
    options = harness.parsed(parser)
    samples = options.samples or (50 if options.quick else 250)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    collator = Collator(building.build_processor(MODEL, "plain"))
    report = Report("scanning", __doc__, COLUMNS, names=2, plot=PLOT)
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("640 x 480 JPEG", "text"):
            images = kind != "text"
            number = samples if images else 4 * samples
            source = written(Path(temporary), number, images)
            examiner = Examiner(source, collator)
            ways: dict[str, Callable[[], Any]] = {"plain loop": lambda s=source: plain(s, collator)}
            for workers in WORKERS:
                ways[f"check, {workers} worker{'s' * (workers > 1)}"] = lambda e=examiner, n=number, w=workers: scan(
                    e, range(n), workers=w
                )
            plain(source, collator)  # imports, and files in the page cache
            seconds = harness.in_turn(ways, options.repeats, warm_ups=0)
            for way, found in seconds.items():
                speed, ratio = number / statistics.median(found), harness.ratios(seconds, "plain loop", way)["ratio"]
                report.add({"samples": kind, "way": way, "per_second": speed, "ratio": ratio, "seconds": found})
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
