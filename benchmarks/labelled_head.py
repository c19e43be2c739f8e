"""What logits of labelled positions alone save: a step against Hugging Face's on the same language model.

    python -m benchmarks.labelled_head [--repeats 9] [--quick] [--output FILE.json]

A Llama of four layers, 1 sample, over vocabularies, widths and shares of labelled positions. Forward and backward of
everything, A and B in turn in one process. At 1,024 positions, all labelled, and 128,000 words ours takes the logits
in chunks, one after the other: less memory, and their gradients are taken in the forward pass. `bound` is the ratio
of floating-point operations by theory: the head's fall by the share of positions without a label. `of the bound` is
bound / ratio; what the softmax saves is not in the bound, so it may be above 100 %. Losses are compared as well.
"""

import sys
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Column, Goal, Plot, Report
from cornstarch import MultimodalModel

LAYERS = 4
SWEEP = [
    (width, vocabulary, positions, share)
    for width, vocabulary, positions, shares in (
        (256, 8_000, 512, (0.1, 0.25, 1.0)),
        (256, 32_000, 512, (0.1, 0.25, 1.0)),
        (256, 128_000, 512, (0.1, 1.0)),
        (512, 8_000, 512, (0.1, 1.0)),
        (512, 32_000, 512, (0.1, 1.0)),
        (128, 128_000, 1024, (1.0,)),
    )
    for share in shares
]
QUICK = [(256, 8_000, 512, 0.1), (256, 8_000, 512, 1.0)]
SPARSE = 0.25  # labels are sparse up to here
COLUMNS = [
    Column("width", "width"), Column("vocabulary", "vocabulary", ","), Column("positions", "positions", ","),
    Column("labelled", "labelled", ".0%"),
    Column("ratio", "ratio", ".3f"), Column("minima", "minima", ".3f"), Column("bound", "bound", ".3f"),
    Column("share", "of the bound", ".1%"),
]  # fmt: skip
GOALS = [
    Goal(
        text="a language model alone: median ratio to Hugging Face's at most 1.02",
        column="ratio", at_most=1.02, bound="bound", share="share",
    ),
    Goal(
        text="a language model alone with sparse labels (25 % or less): 85 % of the bound or better",
        column="sparse", at_least=0.85, bound="bound", share="share", form=".1%",
    ),
]  # fmt: skip
PLOT = Plot(kind="bound", values=("ratio", "bound"), names=("vocabulary",), line=1.02)


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
            max_position_embeddings=1024,
        )
    ).train()


def batch(vocabulary: int, positions: int, share: float) -> dict[str, Tensor]:
    """One sample, whose last positions are labelled, as answers are."""
    ids = torch.randint(0, vocabulary, (1, positions), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, : positions - round(share * positions)] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(model: Any, given: dict[str, Tensor]) -> float:
    """Forward and backward; the loss."""
    loss = model(**given).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def bound(model: Any, positions: int, share: float) -> float:
    """Operations with the head on labelled positions over those with it on all; attention's products included."""
    head = model.lm_head.weight.numel()
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    attention = LAYERS * 2 * positions * model.config.hidden_size  # multiply-adds a position, of scores and of values
    return (layers + attention + share * head) / (layers + attention + head)


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__))
    report = Report("labelled_head", __doc__, COLUMNS, names=4, goals=GOALS, plot=PLOT)
    for width, vocabulary, positions, share in QUICK if options.quick else SWEEP:
        plain = language_model(width, vocabulary)
        model, given = MultimodalModel({}, plain).train(), batch(vocabulary, positions, share)
        losses = step(model, given), step(plain, given)
        assert abs(losses[0] - losses[1]) <= 1e-5 * losses[1], losses
        ways = {"ours": partial(step, model, given), "Hugging Face": partial(step, plain, given)}
        row = harness.ratios(harness.in_turn(ways, options.repeats), "ours", "Hugging Face")
        best = bound(plain, positions, share)
        reached = best / row["ratio"]
        cell = {"width": width, "vocabulary": vocabulary, "positions": positions, "labelled": share}
        sparse = reached if share <= SPARSE else None
        report.add({**cell, **row, "bound": best, "share": reached, "sparse": sparse})
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
