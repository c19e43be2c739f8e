"""What putting samples together by length saves: padding, and the time of a step and of making it.

    python benchmarks/batching.py [--repeats 9] [--output FILE.json]

Conversations of a long-tailed length (log-normal, the shape of LLaVA's and of speech transcripts), a tenth of them with
an image, 32 samples a step. Padding is exact: padded positions over all positions of an epoch. Times are ratios of
medians and minima over repeats in turn, with the fixed size as 1: of forward and backward of one step on a small model,
and of preparing its batches. The bound of the time is the ratio of positions; attention gains a little more than that.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from cornstarch import Batches, Budget, Collator, ModelConfig, Sample, StepBatch, build_model
from cornstarch.training import EncoderConfig, LanguageModelConfig

SAMPLES, STEP = 256, 32
WAYS: dict[str, dict[str, Any]] = {
    "8 samples": {"budget": Budget(samples=8)},
    "2,048 positions": {"budget": Budget(positions=2048)},
    "8 samples, window 8": {"budget": Budget(samples=8), "length_window": 8},
    "2,048 positions, window 8": {"budget": Budget(positions=2048), "length_window": 8},
}


class LongTailed:
    """Questions and answers whose lengths are log-normal."""

    def __len__(self) -> int:
        return SAMPLES

    def sample(self, index: int, chance: random.Random) -> Sample:
        """One conversation, the same whatever the chance."""
        own = random.Random(index)
        letters = min(1500, max(4, int(own.lognormvariate(4.6, 0.8))))
        image = (
            [{"type": "image", "image": Image.new("RGB", (336, 336), (index % 255, 90, 90))}] if index % 10 == 0 else []
        )
        asked = [*image, {"type": "text", "text": "What is this?"}]
        messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": "a" * letters})
        return Sample(messages=messages, name=f"sample {index}")


def small_model() -> tuple[Any, Collator]:
    """A tower and a language model in which a position costs something."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 6}
    tower = {"model_type": "siglip_vision_model", **sizes, "image_size": 56, "patch_size": 14, "vision_use_head": False}
    processor = {"class_name": "SiglipImageProcessorPil", "arguments": {"size": {"height": 56, "width": 56}}}
    text = LanguageModelConfig(
        config={"model_type": "llama", **sizes, "max_position_embeddings": 2048}, tokenizer="bytes"
    )
    vision = EncoderConfig(config=tower, processor=processor)
    model, processor = build_model(ModelConfig(encoders={"vision": vision}, language_model=text))
    return model, Collator(processor)


def padding(steps: list[StepBatch]) -> tuple[int, int]:
    """Positions, and those of them that are padding."""
    masks = [micro["attention_mask"] for step in steps for micro in step.micro_batches]
    return sum(mask.numel() for mask in masks), sum(int((mask == 0).sum()) for mask in masks)


def take(model: Any, step: StepBatch) -> None:
    """Forward and backward of a step."""
    for micro in step.micro_batches:
        model(**micro).loss.backward()
    model.zero_grad(set_to_none=True)


def main() -> int:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, collator = small_model()
    made: dict[str, list[StepBatch]] = {}
    prepared: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(3):
        for way, arguments in WAYS.items():
            batches = Batches(LongTailed(), collator, STEP, **arguments)
            started = time.perf_counter()
            made[way] = [next(batches) for _ in range(SAMPLES // STEP)]
            prepared[way].append(time.perf_counter() - started)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(options.repeats + 1):
        for way, steps in made.items():
            started = time.perf_counter()
            for step in steps:
                take(model, step)
            if repeat:  # the first warms up
                taken[way].append(time.perf_counter() - started)
    first = next(iter(WAYS))
    whole = {way: padding(steps) for way, steps in made.items()}
    rows = [
        {
            "way": way,
            "padding": whole[way][1] / whole[way][0],
            "positions": whole[way][0] / whole[first][0],
            "most": max(micro["input_ids"].numel() for step in steps for micro in step.micro_batches),
            "step": statistics.median(taken[way]) / statistics.median(taken[first]),
            "step, minima": min(taken[way]) / min(taken[first]),
            "preparing": statistics.median(prepared[way]) / statistics.median(prepared[first]),
        }
        for way, steps in made.items()
    ]
    print(
        f"{'micro-batches of':28}{'padding':>9}{'positions':>11}{'most at once':>14}{'step time':>11}{'preparing':>11}"
    )
    for row in rows:
        print(
            f"{row['way']:28}{row['padding']:9.1%}{row['positions']:11.3f}{row['most']:14,}{row['step']:11.3f}"
            f"{row['preparing']:11.3f}"
        )
    if options.output is not None:
        result = {
            "rows": rows, "steps": taken, "prepared": prepared, "torch": torch.__version__,
            "transformers": transformers.__version__, "machine": platform.platform(), "command": sys.argv,
        }  # fmt: skip
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
