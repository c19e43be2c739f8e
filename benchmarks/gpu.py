"""Training on one GPU: is it right, how fast is it, and how does it compare with Hugging Face's LLaVA.

    python benchmarks/gpu.py [--minutes 7.5] [--output gpu.json] [--tiny]

One CUDA device, bfloat16, random weights, no network. First what is right: loss and gradients of a small model against
a CPU in float32, head and loss on labelled rows against all rows, what a frozen encoder saves for the backward (0
bytes), and Liger's kernels if they are installed. Then what is fast: a SigLIP-so400m-sized encoder with language models
of 1B to 4B in three regimes, ours and `LlavaForConditionalGeneration` in a plain loop on the same weights and batches,
and ours with compiled layers and checkpointing. Of each: tokens a second, the share of the device's peak in operations
that the model needs (MFU), and peak memory.

The most telling measurements come first. Each is printed, and written to the file, when it is made; what the minutes do
not suffice for is left out and named. `--tiny` runs everything on whatever there is, in tiny sizes, in seconds.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from cornstarch import (
    ArgumentError,
    ModalEncoderModule,
    MultimodalModel,
    OutputHiddenStates,
    SelectFeatures,
    measure_step,
)
from cornstarch.models.multimodal_language_model import freezing, kernels, labelled_head
from cornstarch.training.peaks import peak_flops

IMAGE = 3  # an id of the vocabulary, as Hugging Face's LLaVA looks all ids up
REGIMES = ("projector", "lora", "full")
COMPILE: dict[str, str] = {}  # options of torch.compile


@dataclasses.dataclass(frozen=True)
class Size:
    """An encoder, a language model, and a batch."""

    vision: dict[str, int]
    text: dict[str, Any]
    samples: int
    words: int
    labelled: int

    @property
    def features(self) -> int:
        """Rows of an image."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2


SO400M = {
    "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip
# Shapes of Llama 3.2 1B, and of Qwen3 1.7B and 4B.
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_2B = {
    "model_type": "qwen3", "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 128,
    "num_key_value_heads": 8, "intermediate_size": 6144, "vocab_size": 151_936, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_4B = {
    **QWEN_2B,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "intermediate_size": 9728,
}
SIZES = {
    "1B": Size(SO400M, LLAMA_1B, 8, 295, 128),
    "2B": Size(SO400M, QWEN_2B, 8, 295, 128),
    "4B": Size(SO400M, QWEN_4B, 8, 295, 128),
}
_TINY_VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
_TINY_TEXT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 256, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "1B": Size(_TINY_VISION, {"model_type": "llama", **_TINY_TEXT}, 2, 12, 4),
    "2B": Size(_TINY_VISION, {"model_type": "qwen3", **_TINY_TEXT}, 2, 12, 4),
}
# Size, regime, what is done to the model; the most telling first. "hf" is Hugging Face's LLaVA.
CELLS = [
    *[("1B", regime, how) for regime in REGIMES for how in ("plain", "hf")],
    *[("1B", regime, "compiled") for regime in ("projector", "full")],
    *[("4B", regime, how) for regime in ("projector", "lora") for how in ("plain", "hf")],
    *[("1B", "full", how) for how in ("checkpointing", "liger", "compiled checkpointing")],
    *[("2B", regime, how) for regime in REGIMES for how in ("plain", "hf")],
    ("4B", "projector", "compiled"),
    ("1B", "lora", "compiled"),
    ("4B", "full", "checkpointing"),
]


# --- models -----------------------------------------------------------------------------------------------------------


def configs(size: Size) -> tuple[Any, Any]:
    """Of the encoder and of the language model."""
    vision = transformers.SiglipVisionConfig(**size.vision, vision_use_head=False)
    text = transformers.AutoConfig.for_model(**size.text, max_position_embeddings=4096)
    return vision, text


def ours(size: Size, device: torch.device, dtype: torch.dtype) -> MultimodalModel:
    """Random weights; the encoder's last rows, a linear layer, an activation and another."""
    vision, text = configs(size)
    torch.manual_seed(0)
    with torch.device(device), _default(dtype):
        tower = transformers.SiglipVisionModel(vision)
        lm = transformers.AutoModelForCausalLM.from_config(text, dtype=dtype)
        encoder = ModalEncoderModule(
            tower,
            preprocess_callback=OutputHiddenStates(),
            postprocess_module_callback=SelectFeatures(layers=[-1]),  # before the last norm, as LLaVA takes them
        )
        model = MultimodalModel({"vision": encoder}, lm, init_projector_type="mlp")
    model.set_modality_token_ids({"vision": IMAGE})
    return model.to(device=device, dtype=dtype)


def as_llava(model: MultimodalModel) -> Any:
    """Hugging Face's LLaVA around the very modules of a model."""
    encoder: Any = model.encoders["vision"]
    vision, text = encoder.module.config, model.language_model.config
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full", projector_hidden_act="gelu",
    )  # fmt: skip
    with torch.device("meta"):
        llava: Any = transformers.LlavaForConditionalGeneration(config)
    first, _, second = encoder.projector.projection
    llava.model.vision_tower = encoder.module
    llava.model.language_model = model.language_model.model
    llava.model.multi_modal_projector.linear_1 = first
    llava.model.multi_modal_projector.linear_2 = second
    llava.lm_head = model.language_model.lm_head
    return llava.train()


def choose(model: MultimodalModel, regime: str) -> MultimodalModel:
    """Let train what a regime says; the encoder is frozen in all but `full`."""
    if regime == "full":
        return model.train({"vision": (True, True)}, llm_mode=True)
    model.train({"vision": (False, True)}, llm_mode=False)
    if regime == "lora":
        options = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
        model.replace_part("language_model", freezing.adapt(model.language_model, "lora", **options))
    return model.train()


def batch(size: Size, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """An image and a question each, as long as each other; the last words are the answer, and labelled."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(IMAGE + 1, size.text["vocab_size"], (size.samples, size.words), generator=generator)
    ids = torch.cat([torch.full((size.samples, size.features), IMAGE), words], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -size.labelled :] = ids[:, -size.labelled :]
    side = size.vision["image_size"]
    pixels = torch.randn(size.samples, 3, side, side, generator=generator).to(dtype)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    return {name: value.to(device) for name, value in given.items()}


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


# --- operations -------------------------------------------------------------------------------------------------------


# Size and regime, as text, to operations of a step.
_OPERATIONS: dict[str, int] = {}


def model_operations(model: MultimodalModel, given: dict[str, Tensor], size: Size, regime: str) -> int:
    """Floating-point operations that a step needs, whoever takes it: no recomputation, and the head on labelled rows.

    They are counted in a step of ours, once for a size and a regime; attention counts as if nothing were masked.
    """
    key = f"{size} {regime}"
    if key not in _OPERATIONS:
        _OPERATIONS[key] = measure_step(model, given).model_flops
    return _OPERATIONS[key]


# --- is it right ------------------------------------------------------------------------------------------------------


def checks(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and what is measured; each says by `right` whether it is as it must be."""
    yield "loss and gradients against a CPU in float32", lambda: against_cpu(device, dtype)
    yield "head on labelled rows against all rows", lambda: labelled_rows(device, dtype)
    yield "bytes that a frozen encoder saves for the backward", lambda: frozen_is_free(device, dtype)
    yield "Liger's kernels against float32", lambda: liger_errors(device, dtype)


def _small() -> Size:
    return TINY["1B"]


def _gradients(model: MultimodalModel, given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Loss and gradients, in float32 on the CPU."""
    model.zero_grad()
    loss = model(**given, **options).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().float().cpu() for name, value in {"loss": loss, **found}.items()}


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the length of each; infinite if other gradients are there.

    Some are 0 but for rounding (biases of keys): none is taken to be shorter than a thousandth of the longest.
    """
    if found.keys() != expected.keys():
        return float("inf")
    least = 1e-3 * max(float(value.norm()) for name, value in expected.items() if name != "loss")
    return max(float((found[name] - value).norm() / value.norm().clamp(min=least)) for name, value in expected.items())


def against_cpu(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """In float32 on the device to 1e-3 (it may sum in another order), in `dtype` at most twice the CPU's own error."""
    size, cpu = _small(), torch.device("cpu")
    exact = choose(ours(size, cpu, torch.float32), "full")
    expected = _gradients(exact, batch(size, cpu, torch.float32))

    def apart(where: torch.device, how: torch.dtype) -> float:
        other = choose(ours(size, cpu, torch.float32), "full").to(device=where, dtype=how)
        return _apart(_gradients(other, batch(size, where, how)), expected)

    single, half, half_on_cpu = apart(device, torch.float32), apart(device, dtype), apart(cpu, dtype)
    right = single <= 1e-3 and half <= 2 * half_on_cpu
    return {"right": right, "float32": single, str(dtype): half, f"{dtype} on the CPU": half_on_cpu}


def labelled_rows(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """In one piece and in chunks, float32, 1e-4 of all rows'."""
    del dtype
    size = _small()
    model = choose(ours(size, device, torch.float32), "full")
    given = batch(size, device, torch.float32)
    expected = _gradients(model, given, output_logits=True)
    whole = _apart(_gradients(model, given), expected)
    former = labelled_head.run.__defaults__
    labelled_head.run.__defaults__ = (size.text["vocab_size"] * 2,)
    try:
        chunks = _apart(_gradients(model, given), expected)
    finally:
        labelled_head.run.__defaults__ = former
    return {"right": max(whole, chunks) <= 1e-4, "in one piece": whole, "in chunks": chunks}


def frozen_is_free(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """As it is, compiled, and with checkpointing and input gradients, which trainers ask for."""
    found = {}
    for how in ("plain", "compiled", "checkpointing"):
        model = choose(ours(_small(), device, dtype), "projector")
        prepare(model, how)
        model.enable_input_require_grads()
        found[how] = _saved_by_encoder(model, batch(_small(), device, dtype))
    return {"right": not any(found.values()), **found}


def _saved_by_encoder(model: MultimodalModel, given: dict[str, Tensor]) -> int:
    encoder: Any = model.encoders["vision"]
    saved: list[int] = []
    running: list[Any] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    def start(*_: Any) -> None:
        running.append(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        running[-1].__enter__()

    def stop(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    handles = [encoder.module.register_forward_pre_hook(start), encoder.module.register_forward_hook(stop)]
    model(**given).loss.backward()
    for handle in handles:
        handle.remove()
    return sum(saved)


def liger_errors(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Errors of each kind of kernel, and what is allowed: twice that of the plain module in the same dtype."""
    found: dict[str, Any] = {}
    for name, size in TINY.items():
        lm = ours(size, device, dtype).language_model
        reason = kernels.why_not(lm)
        if reason is not None:
            return {"right": None, "left out": reason}
        kept = kernels.enable(lm)
        errors = {module_name: kernels.errors(module) for module_name, module in kernels.replaced(lm).items()}
        found[name] = {"errors": errors, "not used": kept}
    right = all(one <= most for size in found.values() for one, most in size["errors"].values())
    return {"right": right and not any(size["not used"] for size in found.values()), **found}


# --- how fast is it ---------------------------------------------------------------------------------------------------


def prepare(model: MultimodalModel, how: str) -> None:
    """What is to be done to a model before it is measured."""
    if "checkpointing" in how:
        model.gradient_checkpointing_enable()
    if "liger" in how:
        kernels.enable(model.language_model)
    if "compiled" in how:
        model.compile(**COMPILE)


def measure(size: Size, regime: str, how: str, device: torch.device, dtype: torch.dtype, seconds: float) -> Any:
    """Steps of forward, backward and optimizer, for some seconds behind the first three; medians."""
    model = choose(ours(size, device, dtype), regime)
    given = batch(size, device, dtype)
    run: Any = model
    if how != "hf":
        prepare(model, how)
    operations = model_operations(model, given, size, regime)
    if how == "hf":
        run = as_llava(model if regime != "lora" else _with_base(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    times: list[float] = []
    until = time.monotonic() + seconds
    started = time.monotonic()
    loss = torch.zeros(())
    while len(times) < 6 or (time.monotonic() < until and len(times) < 60):
        if len(times) == 3 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = time.perf_counter()
        loss = run(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        times.append(time.perf_counter() - before)
        if len(times) == 1:
            first, first_loss = time.monotonic() - started, float(loss.detach())
    step = statistics.median(times[3:])
    tokens = given["input_ids"].numel()
    peak = peak_flops(device, str(dtype).removeprefix("torch."))
    return {
        "tokens_per_second": tokens / step, "step_seconds": step, "first_step_seconds": first,
        "mfu": operations / step / peak, "model_tflops": operations / 1e12,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "first_loss": first_loss, "steps": times,
    }  # fmt: skip


def _with_base(model: MultimodalModel) -> MultimodalModel:
    """The same model, of whose language model the adapters are inside the layers and nothing is around them."""
    model.replace_part("language_model", freezing.unwrap(model.language_model))
    return model


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"


def _forget() -> None:
    """Free what the last measurement held, compiled code included."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- the whole --------------------------------------------------------------------------------------------------------


class Results:
    """What was found so far, on the screen and in a file."""

    def __init__(self, path: Path | None, device: torch.device, dtype: torch.dtype) -> None:
        self._path = path
        self.found: dict[str, Any] = {
            "device": _name(device), "dtype": str(dtype), "torch": torch.__version__,
            "transformers": transformers.__version__, "command": sys.argv, "checks": {}, "cells": {}, "left out": [],
        }  # fmt: skip

    def keep(self, kind: str, name: str, value: dict[str, Any]) -> None:
        """Keep one, and write all."""
        self.found[kind][name] = value
        self.write()

    def write(self) -> None:
        """Write what there is."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.found, indent=2) + "\n")


def attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function measures, or why it could not; the others go on."""
    try:
        return function()
    except Exception as error:  # out of memory, a kernel that does not compile: a result as well
        return {"right": False, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        _forget()


def line(name: str, cell: dict[str, Any], other: dict[str, Any] | None) -> str:
    """A row of the table; `of hf` is how many times as fast as Hugging Face's, on the same weights."""
    if "failed" in cell:
        return f"{name:34}{cell['failed'][:80]}"
    share = f"{cell['mfu']:7.1%}" if cell["mfu"] else "      -"
    memory = f"{cell['peak_gib']:9.1f}" if cell["peak_gib"] is not None else "        -"
    ratio = f"{cell['tokens_per_second'] / other['tokens_per_second']:8.2f}" if other and "mfu" in other else "       -"
    return f"{name:34}{cell['tokens_per_second']:12,.0f}{share}{memory}{ratio}{cell['first_loss']:12.4f}"


def main() -> int:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on whatever there is")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("This benchmark needs a CUDA device, and PyTorch sees none. With --tiny it runs on anything.")
        return 2
    if not torch.cuda.is_available():
        COMPILE["backend"] = "eager"  # kernels for a CPU take minutes to write, and tell nothing
    end = time.monotonic() + 60 * options.minutes
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16
    results = Results(options.output, device, dtype)
    print(f"{_name(device)}, torch {torch.__version__}, transformers {transformers.__version__}, {dtype}")
    for name, check in checks(device, dtype):
        found = attempt(check)
        results.keep("checks", name, found)
        print(f"{ {True: 'right', False: 'WRONG', None: 'left out'}[found['right']]:10}{name}: {found}", flush=True)
    sizes = TINY if options.tiny else SIZES
    print(f"\n{'size, regime, how':34}{'tokens/s':>12}{'MFU':>7}{'peak GiB':>9}{'of hf':>8}{'first loss':>12}")
    cells = results.found["cells"]
    for size, regime, how in [cell for cell in CELLS if cell[0] in sizes]:
        name = f"{size} {regime} {how}"
        # A cell takes as long as making a model and compiling it do, and some seconds of steps.
        if end - time.monotonic() < (2 if options.tiny else 45 if "compiled" in how else 25):
            results.found["left out"].append(name)
            continue
        seconds = 0.0 if options.tiny else 6.0
        cells[name] = attempt(lambda a=sizes[size], b=regime, c=how, d=seconds: measure(a, b, c, device, dtype, d))  # type: ignore[misc]
        results.write()
        print(line(name, cells[name], cells.get(f"{size} {regime} hf")), flush=True)
        plain = cells.get(f"{size} {regime} plain", {})
        if how == "hf" and "mfu" in plain and "mfu" in cells[name]:
            print(line(f"{size} {regime} plain, again", plain, cells[name]), flush=True)
    results.write()
    if results.found["left out"]:
        print(f"left out, for want of time: {', '.join(results.found['left out'])}")
    return 1 if any(found["right"] is False for found in results.found["checks"].values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ArgumentError as error:
        sys.exit(str(error))
