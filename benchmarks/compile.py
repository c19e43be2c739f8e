"""What compiled layers save: a step against the same model's as it is, on this device.

    python benchmarks/compile.py [--repeats 9] [--output FILE.json]

A CLIP tower of four layers and a Llama of four, 4 samples of 145 to 224 positions, in three regimes. Forward and
backward, A and B in turn in one process, after the graphs are compiled; how long that takes is given beside. Loss and
gradients are compared first.
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
from peft import LoraConfig, get_peft_model
from torch import Tensor

from cornstarch import ModalEncoderModule, MultimodalModel

IMAGE, ROWS = 3, 17
REGIMES = ("projector", "lora", "full")


def made(regime: str) -> MultimodalModel:
    """Random weights, the same at every call."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=64, patch_size=16))
    lm: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=8000))
    if regime == "lora":
        lm = get_peft_model(lm, LoraConfig(r=8, target_modules="all-linear"))
    model = MultimodalModel({"vision": ModalEncoderModule(tower)}, lm, init_projector_type="mlp")
    model.set_modality_token_ids({"vision": IMAGE})
    if regime == "full":
        return model.train({"vision": (True, True)}, llm_mode=True)
    return model.train({"vision": (False, True)}, llm_mode=None if regime == "lora" else False).train()


def batch(words: int) -> dict[str, Tensor]:
    """Four samples with an image each."""
    generator = torch.Generator().manual_seed(words)
    ids = torch.randint(IMAGE + 1, 8000, (4, words), generator=generator)
    ids = torch.cat([torch.full((4, ROWS), IMAGE), ids], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids,
        "pixel_values": torch.randn(4, 3, 64, 64, generator=generator),
    }


def step(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Forward and backward; loss and gradients."""
    model.zero_grad(set_to_none=True)
    loss = model(**given).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def timed(run: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Loss and every gradient, 1e-5 of the largest entry; a tiny gradient of the step, 1e-5 of it."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * max(1e-2, float(value.abs().max())), name


def main() -> int:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'regime':12}{'medians':>9}{'minima':>8}{'to compile (s)':>16}")
    for regime in REGIMES:
        plain, model = made(regime), made(regime)
        model.compile()
        compiling = timed(lambda model=model: [step(model, batch(words)) for words in (128, 190)])  # type: ignore[misc]
        check(step(model, batch(160)), step(plain, batch(160)))
        own, theirs = [], []
        for repeat in range(options.repeats):
            given = batch(128 + 10 * (repeat % 9))
            own.append(timed(lambda model=model, given=given: step(model, given)))  # type: ignore[misc]
            theirs.append(timed(lambda plain=plain, given=given: step(plain, given)))  # type: ignore[misc]
        ratios = [a / b for a, b in zip(own, theirs, strict=True)]
        row = {
            "regime": regime, "ratio": statistics.median(ratios), "minima": min(own) / min(theirs),
            "compiling": compiling, "own": own, "theirs": theirs,
        }  # fmt: skip
        rows.append(row)
        print(f"{regime:12}{row['ratio']:9.3f}{row['minima']:8.3f}{compiling:16.1f}", flush=True)
    if options.output is not None:
        result = {
            "rows": rows, "torch": torch.__version__, "transformers": transformers.__version__,
            "machine": platform.platform(), "command": sys.argv,
        }  # fmt: skip
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
