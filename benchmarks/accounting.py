"""What a step costs, by `measure_step` and `forecast_step`, against PyTorch's own counter and hooks.

    python -m benchmarks.accounting [--quick] [--output FILE.json]

Small models of random weights, a pair a line, in five ways to train. `counter` is the number of floating-point
operations of a step that `torch.utils.flop_counter.FlopCounterMode` counts with eager attention and eager experts;
`measured` and `forecast` are ours as shares of it, 1 if they agree. `hooks` are the bytes that
`torch.autograd.graph.saved_tensors_hooks` sees and that are held after the forward pass, without weights and inputs;
`saved` is the forecast as a share of them. Checkpoints hold what no hook is told, so there `saved` is against
`measure_step`. All is exact: the same on every machine, and measured once. The counter takes the weights' gradient of a
depthwise convolution (ConvNeXt, Mamba) for that of a full one; so do we.
"""

import gc
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from benchmarks.harness import Column, Goal, Report
from cornstarch import ModalEncoderModule, MultimodalModel, forecast_step, measure_step

IMAGE, VOCABULARY = 300, 256
COLUMNS = [
    Column("pair", "encoder + language model", width=26), Column("way", "what trains", width=16),
    Column("counter", "counter", ",.0f", 12), Column("measured", "measured", ".4f"),
    Column("forecast", "forecast", ".4f"), Column("hooks", "hooks", ",.0f", 10), Column("saved", "saved", ".4f"),
    Column("flops_error", "FLOP error", ".2%"), Column("bytes_error", "byte error", ".2%"),
]  # fmt: skip
GOALS = [
    Goal(text="FLOPs: within 1 % of FlopCounterMode, measured and forecast", column="flops_error", at_most=0.01),
    Goal(text="memory forecast: within 5 % of the bytes seen by hooks", column="bytes_error", at_most=0.05),
]
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16,
    "pad_token_id": 0,
}  # fmt: skip
_VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ENCODERS: dict[str, Callable[[], Any]] = {
    "CLIP": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION)),
    "SigLIP": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_VISION)),
    "DINOv2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_VISION)),
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**_VISION), add_pooling_layer=False),
    "ConvNeXt": lambda: transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1])
    ),
}
LANGUAGE_MODELS: dict[str, Callable[[], Any]] = {
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT)),
    "Qwen3 MoE": lambda: transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**_TEXT, **_EXPERTS)),
    "Mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**_TEXT, **_EXPERTS)),
    "Gemma 2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_TEXT)),
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4)
    ),
    "Mamba 2": lambda: transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16,
            n_groups=2, chunk_size=16,
        )
    ),
}  # fmt: skip
PAIRS = [
    ("CLIP", "Llama"), ("SigLIP", "Qwen3 MoE"), ("DINOv2", "Gemma 2"), ("ViT", "Mixtral"), ("CLIP", "GPT-2"),
    ("SigLIP", "Mamba 2"), ("ConvNeXt", "Llama"),
]  # fmt: skip


def adapters(model: MultimodalModel) -> None:
    """Around the language model, without dropout."""
    scans = isinstance(model.language_model, transformers.Mamba2ForCausalLM)
    config = LoraConfig(r=4, target_modules=["in_proj"] if scans else "all-linear", lora_dropout=0.0)
    model.replace_part("language_model", get_peft_model(model.language_model, config))


WAYS: dict[str, Callable[[MultimodalModel], Any]] = {
    "projector": lambda model: model.train({"vision": (False, True)}, llm_mode=False),
    "encoder frozen": lambda model: model.train({"vision": (False, True)}, llm_mode=True),
    "all": lambda model: model.train(llm_mode=True),
    "adapters": lambda model: [adapters(model), model.train({"vision": (False, True)})],
    "all, recomputed": lambda model: [model.train(llm_mode=True), model.gradient_checkpointing_enable()],
}


def made(pair: tuple[str, str], way: str) -> MultimodalModel:
    """A pair, seeded."""
    torch.manual_seed(0)
    model = MultimodalModel({"vision": ModalEncoderModule(ENCODERS[pair[0]]())}, LANGUAGE_MODELS[pair[1]]())
    model.set_modality_token_ids({"vision": IMAGE})
    WAYS[way](model)
    return model.train()


def batch(model: MultimodalModel) -> dict[str, Tensor]:
    """Three samples of other lengths, padded, an image each, a fifth of the text labelled."""
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.encoders["vision"](pixel_values=pixels).shape[1]
    ids = torch.randint(1, VOCABULARY, (3, features + 40), generator=torch.Generator().manual_seed(2))
    ids[:, :features] = IMAGE
    mask = torch.ones_like(ids)
    mask[0, -9:] = mask[1, -4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : features + 32] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


def counted(model: MultimodalModel, given: dict[str, Tensor]) -> int:
    """Operations by PyTorch's counter, of eager attention and experts."""
    for part in (model.language_model, model.encoders["vision"].module):
        base = part.get_base_model() if hasattr(part, "peft_config") else part
        if base._can_set_attn_implementation():
            base.set_attn_implementation("eager")
        if base._can_set_experts_implementation():
            base.set_experts_implementation("eager")
    model(**given)
    with FlopCounterMode(display=False) as counter:
        model(**given).loss.backward()
    return counter.get_total_flops()


def packed(model: MultimodalModel, given: dict[str, Tensor]) -> int:
    """Bytes that hooks see and that are held after a forward pass, without weights and inputs."""
    there = [*model.parameters(), *model.buffers(), *given.values()]
    known = {tensor.untyped_storage()._cdata for tensor in there}
    found: dict[int, tuple[StorageWeakRef, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return tensor.detach()

    model(**given)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**given).loss
    gc.collect()
    assert loss.requires_grad
    return sum(size for storage, size in found.values() if not storage.expired())


def row(pair: tuple[str, str], way: str) -> harness.Row:
    """A pair in a way to train."""
    model = made(pair, way)
    given = batch(model)
    measured, forecast = measure_step(model, given), forecast_step(model, given)
    saved = sum(part.saved_bytes for part in forecast.parts.values())
    recomputed = way == "all, recomputed"
    hooks = sum(part.saved_bytes for part in measured.parts.values()) if recomputed else packed(model, given)
    counter = counted(model, given)
    ratios = {"measured": measured.flops / counter, "forecast": forecast.flops / counter, "saved": saved / hooks}
    return {
        "pair": " + ".join(pair), "way": way, "counter": counter, "hooks": hooks, **ratios,
        "flops_error": max(abs(ratios[key] - 1) for key in ("measured", "forecast")),
        "bytes_error": abs(ratios["saved"] - 1),
    }  # fmt: skip


def main() -> int:
    """Count and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__, repeats=1))
    report = Report("accounting", __doc__, COLUMNS, names=2, goals=GOALS)
    for pair in PAIRS[:2] if options.quick else PAIRS:
        for way in WAYS:
            report.add(row(pair, way))
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
