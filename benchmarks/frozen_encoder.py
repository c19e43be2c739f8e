"""What a frozen encoder keeps for the backward pass: bytes, ours and Hugging Face's LLaVA, in every way to train.

    python -m benchmarks.frozen_encoder [--quick] [--output FILE.json]

The encoder is frozen, the projector trains, and the language model or its adapters as well. `ours` and `Hugging Face`
are bytes of tensors that autograd saves while the encoder's forward runs, told by
`torch.autograd.graph.saved_tensors_hooks` (weights and inputs count as well), and of tensors made there that are
alive afterwards and were not returned, which is how checkpoints keep theirs; the larger of the two. Beside it, the
same where the encoder trains: a measure that finds nothing anywhere would be no measure. Compiled layers are compiled
one by one (`aot_eager`). Bytes are exact: the same on every machine, and measured once.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks import harness, llava
from benchmarks.harness import Column, Goal, Plot, Report
from benchmarks.llava import Size
from cornstarch import MultimodalModel

SIZE = Size(width=128, layers=2, tower_width=128, tower_layers=4, samples=2, text=32)
COLUMNS = [
    Column("way", "way to train", width=32), Column("ours", "ours", ",.0f"), Column("theirs", "Hugging Face", ",.0f"),
    Column("ours_trained", "ours, trained", ",.0f"), Column("theirs_trained", "Hugging Face, trained", ",.0f"),
]  # fmt: skip
GOALS = [Goal(text="frozen encoder: 0 bytes saved for backward, in every way to train", column="ours", at_most=0)]
PLOT = Plot(kind="bars", values=("ours", "theirs", "ours_trained", "theirs_trained"), names=("way",), unit="bytes")

# --- measuring --------------------------------------------------------------------------------------------------------


class _Made(TorchDispatchMode):
    """Remembers every storage that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result


def _storages(tensors: Any) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor)}


@contextmanager
def kept(module: nn.Module, alive: bool) -> Iterator[list[int]]:
    """Bytes that each forward pass of a module keeps.

    Args:
        module: whose forward is watched.
        alive: look at what is alive afterwards as well, which compiled code does not allow.
    """
    runs: list[int] = []
    running: list[Any] = []
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    def start(*_: Any) -> None:
        nonlocal saved
        saved = 0
        for context in (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), *([_Made()] if alive else []),
        ):  # fmt: skip
            context.__enter__()
            running.append(context)

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        made = [context.storages for context in running if isinstance(context, _Made)]
        while running:
            running.pop().__exit__(None, None, None)
        returned = _storages(list(output.values()) if isinstance(output, dict) else output)
        left = [size for found in made for key, (ref, size) in found.items() if not (ref.expired() or key in returned)]
        runs.append(max(saved, sum(left)))

    hooks = [module.register_forward_pre_hook(start, prepend=True), module.register_forward_hook(stop)]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


# --- ways to train ----------------------------------------------------------------------------------------------------


def tower_of(model: Any) -> nn.Module:
    """The encoder of either model, wrapped by PEFT or not."""
    if isinstance(model, MultimodalModel):
        return model.vision_encoder.module  # type: ignore[no-any-return]
    return next(module for name, module in model.named_modules() if name.endswith("vision_tower"))


def plain(model: Any) -> Any:
    """Nothing but a loop."""
    return model


def checkpointing(model: Any) -> Any:
    """Gradient checkpointing, as `Trainer` asks for it."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def adapters(model: Any) -> Any:
    """LoRA on the language model, and gradient checkpointing with the input gradients that it asks for."""
    if isinstance(model, MultimodalModel):
        model.language_model = get_peft_model(model.language_model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    else:
        tower = [p for p in tower_of(model).parameters() if p.requires_grad]
        model = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)"))
        for parameter in (*tower, *model.base_model.model.model.multi_modal_projector.parameters()):
            parameter.requires_grad_(True)
    model.enable_input_require_grads()
    return checkpointing(model)


def compiled(model: Any) -> Any:
    """Every layer of encoder and language model compiled by itself."""
    for module in model.modules():
        if type(module).__name__.endswith(("EncoderLayer", "DecoderLayer")):
            module.compile(backend="aot_eager")
    return model


def once(model: Any, given: dict[str, Tensor]) -> None:
    """Forward and backward."""
    model(**given).loss.backward()


def in_trainer(model: Any, given: dict[str, Tensor]) -> None:
    """A step of `Trainer` with gradient checkpointing."""
    samples = [{name: value[place] for name, value in given.items()} for place in range(SIZE.samples)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=1, per_device_train_batch_size=SIZE.samples, gradient_checkpointing=True,
            report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=samples)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


WAYS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, dict[str, Tensor]], None]]] = {
    "plain loop": (plain, once),
    "gradient checkpointing": (checkpointing, once),
    "PEFT and gradient checkpointing": (adapters, once),
    "Trainer, gradient checkpointing": (plain, in_trainer),
    "compiled layers": (compiled, once),
}


def measured(way: str, own: bool, regime: str) -> int:
    """Bytes that the encoder of ours or of Hugging Face's keeps in one step."""
    prepare, run = WAYS[way]
    torch.compiler.reset()
    model = prepare(llava.choose(llava.pair(SIZE)[own], regime))
    with kept(tower_of(model), alive=prepare is not compiled) as runs:
        run(model, llava.batch(SIZE))
    [found] = runs
    return found


def main() -> int:
    """Measure and print; write JSON if asked."""
    options = harness.parsed(harness.parser(__doc__, repeats=1))
    report = Report("frozen_encoder", __doc__, COLUMNS, names=1, goals=GOALS, plot=PLOT)
    for way in WAYS:
        row: harness.Row = {"way": way}
        for suffix, regime in (("", "encoder frozen"), ("_trained", "all train")):
            row |= {f"{who}{suffix}": measured(way, who == "ours", regime) for who in ("ours", "theirs")}
        report.add(row)
    report.finish(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
