"""What steps cost by PyTorch's own counters: pairs, ways to train, and references that the product has no part in.

Operations are those that `FlopCounterMode` counts. A part's forward pass is told by the counter's own module names. Of
the backward pass these names tell little (what is given by keyword has no hook there, so a language model seems never
to be left), so the graph is cut where one part ends, and each piece's backward pass is counted by itself.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from cornstarch import MultimodalModel
from tests import tiny
from tests.zoo import checks, making
from tests.zoo.making import KEY

ENCODER, PROJECTOR, TEXT = f"{KEY}_encoder", f"{KEY}_projector", "language_model"

# Encoder and language model; what is special about them.
PAIRS = {
    ("clip", "llama"): "the usual ones",
    ("siglip", "mixtral"): "experts",
    ("qwen2.5-vl", "qwen2.5-vl"): "packed tower, positions on three axes, tied head",
    ("whisper", "mamba"): "audio, state space",
    ("convnext", "gpt2-tied"): "depthwise convolutions, tied head",
    ("wav2vec2", "bloom"): "audio, masks with biases",
    ("swin", "qwen3-next"): "windows, linear attention and experts",
    ("pixtral", "deepseek-v3"): "images of many sizes, latent attention and experts",
}

# --- ways to train ----------------------------------------------------------------------------------------------------


def projector_only(model: MultimodalModel) -> MultimodalModel:
    return model.train({KEY: (False, True)}, llm_mode=False)


def encoder_frozen(model: MultimodalModel) -> MultimodalModel:
    return model.train({KEY: (False, True)}, llm_mode=True)


def all_train(model: MultimodalModel) -> MultimodalModel:
    return model.train({KEY: (True, True)}, llm_mode=True)


def adapters(model: MultimodalModel) -> MultimodalModel:
    model.language_model = checks.wrapped(model.language_model)
    return model.train({KEY: (False, True)})


def checkpointed(model: MultimodalModel) -> MultimodalModel:
    model.gradient_checkpointing_enable()
    return all_train(model)


REGIMES: dict[str, Callable[[MultimodalModel], MultimodalModel]] = {
    "projector only": projector_only,
    "encoder frozen": encoder_frozen,
    "all train": all_train,
    "adapters": adapters,
    "checkpointed": checkpointed,
}


def made(pair: tuple[str, str], regime: str, eager: bool = True, dtype: torch.dtype = torch.float32) -> MultimodalModel:
    """A pair of the zoo, in a way to train; `eager`: attention and experts by plain products."""
    vision, text = making.encoder(pair[0], dtype), tiny.language_model(pair[1], dtype).eval()
    for part in (vision, text) if eager else ():
        if hasattr(part, "set_attn_implementation"):
            part.set_attn_implementation("eager")
        if getattr(part, "_can_set_experts_implementation", lambda: False)():
            part.set_experts_implementation("eager")
    return REGIMES[regime](making.compose(vision, text))


def batch(pair: tuple[str, str], dtype: torch.dtype = torch.float32, side: str = "right") -> dict[str, Tensor]:
    """Two samples with an input each."""
    return making.batch(pair[0], dtype, side)


# --- operations -------------------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """Operations of a step, of all and of each part; `backward` has those in it that are computed again."""

    total: int = 0
    forward: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)


def counted(
    model: MultimodalModel, given: Mapping[str, Any], autocast: AbstractContextManager[Any] | None = None
) -> Counted:
    """What `FlopCounterMode` counts, of a whole step and of its pieces."""
    around = autocast if autocast is not None else nullcontext()
    tiny.ask(model)
    found = Counted()
    with FlopCounterMode(display=False) as counter:
        with around:
            loss = model(**given).loss
        loss.backward()
    found.total = counter.get_total_flops()
    with _Cuts(model) as cuts:
        with FlopCounterMode(display=False) as counter, around:
            loss = model(**given).loss
        places = {ENCODER: f"{KEY}_encoder.module", PROJECTOR: f"{KEY}_encoder.projector", TEXT: TEXT}
        by_module = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        found.forward.update({part: by_module.get(place, 0) for part, place in places.items()})
        cuts.backward(loss, found.backward)
    model.zero_grad(set_to_none=True)
    return found


class _Cuts:
    """Ends the graph where a part ends; what the next one is given is a leaf of its own."""

    def __init__(self, model: MultimodalModel) -> None:
        self._model = model
        self._cut: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __enter__(self) -> "_Cuts":
        encoder = self._model.encoders[KEY]
        self._hook = encoder.projector.register_forward_pre_hook(self._before_projector, with_kwargs=True)
        self._model.preprocess_llm_callback = self._before_text
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()
        self._model.preprocess_llm_callback = None

    def _before_projector(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(self._leaf(PROJECTOR, value) for value in args), kwargs

    def _before_text(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**arguments, "inputs_embeds": self._leaf(TEXT, arguments["inputs_embeds"])}

    def _leaf(self, part: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        self._cut.setdefault(part, []).append((value, leaf))
        return leaf

    def backward(self, loss: Tensor, found: Counter[str]) -> None:
        """Count the backward pass of each piece, the last first; gradients are left on what trains."""
        ends, given = [loss], [torch.ones_like(loss)]
        for part in (TEXT, PROJECTOR, ENCODER):
            pairs = self._cut.get(part, [])
            if not ends:
                return
            with FlopCounterMode(display=False) as counter:
                torch.autograd.backward(ends, given)
            found[part] = counter.get_total_flops()
            ends, given = [value for value, _ in pairs], [leaf.grad for _, leaf in pairs]


# --- memory -----------------------------------------------------------------------------------------------------------


def saved_bytes(
    model: MultimodalModel, given: Mapping[str, Any], autocast: AbstractContextManager[Any] | None = None
) -> int:
    """Bytes of storages that autograd saved in a forward pass and still holds, without weights, buffers and the batch.

    Branches that lead to no loss (a pooler, a router's logits) are saved, too, and let go before the forward ends.
    """
    tiny.ask(model)
    there = [*model.parameters(), *model.buffers(), *given.values()]
    known = {value.untyped_storage()._cdata for value in there if isinstance(value, Tensor)}
    saved: list[tuple[StorageWeakRef, int, int]] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved.append((StorageWeakRef(storage), storage._cdata, storage.nbytes()))
        return tensor.detach()  # an operator that saves its own result would hold itself for ever

    around = autocast if autocast is not None else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), around:
        loss = model(**given).loss
    alive = {key: size for reference, key, size in saved if not reference.expired()}
    del loss
    return sum(alive.values())
