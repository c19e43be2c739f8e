"""What logits of labelled positions alone save: a step against Hugging Face's on the same language model.

    python benchmarks/labelled_head.py [--repeats 9] [--output FILE.json]

A Llama of four layers, 1 sample of 512 positions, over vocabularies, widths and shares of labelled positions. Forward
and backward of everything, A and B in turn in one process. `bound` is the ratio of floating-point operations by theory:
the head's fall by the share of positions without a label. `of the bound` is bound / ratio; what the softmax saves is not
in the bound, so it may be above 100 %. Losses are compared as well.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from cornstarch import MultimodalModel

POSITIONS, LAYERS = 512, 4
SWEEP = [
    (width, vocabulary, share)
    for width in (256, 512)
    for vocabulary in (8_000, 32_000, 128_000)
    for share in (0.1, 0.25, 1.0)
]


def language_model(width: int, vocabulary: int) -> Any:
    """Random weights."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=LAYERS,
            num_attention_heads=width // 64,
            max_position_embeddings=POSITIONS,
        )
    ).train()


def batch(vocabulary: int, share: float) -> dict[str, Tensor]:
    """One sample, whose last positions are labelled, as answers are."""
    ids = torch.randint(0, vocabulary, (1, POSITIONS), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, : POSITIONS - round(share * POSITIONS)] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(model: Any, given: dict[str, Tensor]) -> float:
    """Forward and backward; the loss."""
    loss = model(**given).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def bound(model: Any, share: float) -> float:
    """Operations with the head on labelled positions over those with it on all; attention's products included."""
    head = model.lm_head.weight.numel()
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    attention = LAYERS * 2 * POSITIONS * model.config.hidden_size  # multiply-adds a position, of scores and of values
    return (layers + attention + share * head) / (layers + attention + head)


def timed(run: Callable[[], float]) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> int:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'width':>6}{'vocabulary':>12}{'labelled':>10}{'medians':>9}{'minima':>8}{'bound':>7}{'of the bound':>14}")
    for width, vocabulary, share in SWEEP:
        plain = language_model(width, vocabulary)
        model, given = MultimodalModel({}, plain).train(), batch(vocabulary, share)
        losses = step(model, given), step(plain, given)
        assert abs(losses[0] - losses[1]) <= 1e-5 * losses[1], losses
        own, theirs = [], []
        for _ in range(options.repeats):
            own.append(timed(lambda model=model, given=given: step(model, given)))  # type: ignore[misc]
            theirs.append(timed(lambda plain=plain, given=given: step(plain, given)))  # type: ignore[misc]
        ratio = statistics.median(own) / statistics.median(theirs)
        row = {
            "width": width, "vocabulary": vocabulary, "labelled": share, "ratio": ratio,
            "minima": min(own) / min(theirs), "bound": bound(plain, share), "own": own, "theirs": theirs,
        }  # fmt: skip
        rows.append(row)
        figures = f"{ratio:9.3f}{row['minima']:8.3f}{row['bound']:7.3f}{row['bound'] / ratio:14.1%}"
        print(f"{width:6}{vocabulary:12,}{share:10.0%}{figures}", flush=True)
    if options.output is not None:
        result = {
            "rows": rows, "torch": torch.__version__, "transformers": transformers.__version__,
            "machine": platform.platform(), "command": sys.argv,
        }  # fmt: skip
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
