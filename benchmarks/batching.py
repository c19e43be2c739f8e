"""What putting samples together by length saves: padding, and the time of a step and of making it.

    python -m benchmarks.batching [--repeats 9] [--quick] [--output FILE.json]

Conversations of a long-tailed length (log-normal, the shape of LLaVA's and of speech transcripts), a tenth of them with
an image, 32 samples a step. Padding is exact: padded positions over all positions of an epoch. Times are ratios of
medians and minima over repeats in turn, with the fixed size as 1: of forward and backward of one step on a small model,
and of preparing its batches. The bound of the time is the ratio of positions; attention gains a little more than that.
"""

import random
import statistics
import sys
from functools import partial
from typing import Any

import torch
from PIL import Image

from benchmarks import harness
from benchmarks.harness import Column, Plot, Report
from cornstarch import Batches, Budget, Collator, ModelConfig, Sample, StepBatch, build_model
from cornstarch.training import EncoderConfig, LanguageModelConfig

SAMPLES, STEP = 256, 32
WAYS: dict[str, dict[str, Any]] = {
    "8 samples": {"budget": Budget(samples=8)},
    "2,048 positions": {"budget": Budget(positions=2048)},
    "8 samples, window 8": {"budget": Budget(samples=8), "length_window": 8},
    "2,048 positions, window 8": {"budget": Budget(positions=2048), "length_window": 8},
}
COLUMNS = [
    Column("way", "micro-batches of", width=26), Column("padding", "padding", ".1%"),
    Column("positions", "positions", ".3f"), Column("most", "most at once", ","), Column("step", "step time", ".3f"),
    Column("minima", "minima", ".3f"), Column("preparing", "preparing", ".3f"),
]  # fmt: skip
PLOT = Plot(kind="bars", values=("positions", "step", "preparing"), names=("way",), unit="8 samples = 1")


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


def take(model: Any, steps: list[StepBatch]) -> None:
    """Forward and backward of some steps."""
    for step in steps:
        for micro in step.micro_batches:
            model(**micro).loss.backward()
        model.zero_grad(set_to_none=True)


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__))
    model, collator = small_model()
    made: dict[str, list[StepBatch]] = {}
    size = STEP // 4 if options.quick else STEP  # of a step; as many steps, since a window takes eight

    def prepare(way: str) -> None:
        batches = Batches(LongTailed(), collator, size, **WAYS[way])
        made[way] = [next(batches) for _ in range(SAMPLES // STEP)]

    report = Report("batching", __doc__, COLUMNS, names=1, plot=PLOT)
    prepared = harness.in_turn({way: partial(prepare, way) for way in WAYS}, 1 if options.quick else 3, warm_ups=0)
    taken = harness.in_turn({way: partial(take, model, made[way]) for way in WAYS}, options.repeats)
    first = next(iter(WAYS))
    whole = {way: padding(made[way]) for way in WAYS}
    for way in WAYS:
        times = harness.ratios(taken, way, first)
        report.add({
            "way": way, "padding": whole[way][1] / whole[way][0], "positions": whole[way][0] / whole[first][0],
            "most": max(micro["input_ids"].numel() for step in made[way] for micro in step.micro_batches),
            "step": times["ratio"], "minima": times["minima"], "seconds": taken[way], "prepared": prepared[way],
            "preparing": statistics.median(prepared[way]) / statistics.median(prepared[first]),
        })  # fmt: skip
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
