"""What compiled layers save: a step against the same model's as it is, on this device.

    python -m benchmarks.compile [--repeats 9] [--quick] [--output FILE.json]

A CLIP tower of four layers and a Llama of four, 4 samples of 145 to 225 positions, in three regimes. Forward and
backward of nine lengths, in turn in one process, after the graphs are compiled; how long that takes is given beside.
Loss and gradients are compared first. There is no goal: what is gained depends on the device and its compiler.
"""

import sys
import time
from functools import partial
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Column, Report
from cornstarch import ModalEncoderModule, MultimodalModel

COLUMNS = [
    Column("regime", "what trains", width=12), Column("ratio", "medians", ".3f"), Column("minima", "minima", ".3f"),
    Column("compiling", "seconds to compile", ".0f"),
]  # fmt: skip
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


def steps(model: Any) -> None:
    """Of nine lengths."""
    for place in range(9):
        step(model, batch(128 + 10 * place))


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Loss and every gradient, 1e-5 of the largest entry; a tiny gradient of the step, 1e-5 of it."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5 * max(1e-2, float(value.abs().max())), name


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__))
    report = Report("compile", __doc__, COLUMNS, names=1)
    for regime in REGIMES[:1] if options.quick else REGIMES:
        plain, model = made(regime), made(regime)
        model.compile()
        started = time.perf_counter()
        for words in (128, 190):
            step(model, batch(words))
        compiling = time.perf_counter() - started
        check(step(model, batch(160)), step(plain, batch(160)))
        ways = {"compiled": partial(steps, model), "plain": partial(steps, plain)}
        seconds = harness.in_turn(ways, options.repeats)
        report.add({"regime": regime, "compiling": compiling, **harness.ratios(seconds, "compiled", "plain")})
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
