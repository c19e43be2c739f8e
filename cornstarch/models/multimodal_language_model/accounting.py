"""5k. What a training step costs, part by part: operations, bytes kept for the backward pass, gradients; measured.

One dispatch mode watches every operator of one forward and backward pass. Which part an operator belongs to is told by
hooks in the forward pass, and in the backward pass by the number of the autograd node that is being evaluated: nodes
are numbered in the order in which the forward pass made them.
"""

import gc
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import compiling, flops, graph, labelled_head, quantized
from cornstarch.models.multimodal_language_model.composition import Composition

_TEXT = "language_model"
_engine: Any = torch._C
_autograd: Any = torch.autograd


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """What a part costs in a step.

    Attributes:
        parameters: how many weights it has.
        trainable: how many of them train.
        weight_bytes: of all weights.
        gradient_bytes: of the gradients of those that train.
        saved_bytes: made in the forward pass and held for the backward pass, weights and the batch itself not counted.
            A tensor that goes from one part to the next counts for the next.
        forward_flops: floating-point operations of the forward pass.
        backward_flops: of the backward pass, without those below.
        recomputed_flops: of the forward pass that the backward pass computed again.
        optimizer_bytes: of what the optimizer keeps for those that train; None where no optimizer is known.
    """

    parameters: int
    trainable: int
    weight_bytes: int
    gradient_bytes: int
    saved_bytes: int
    forward_flops: int
    backward_flops: int
    recomputed_flops: int
    optimizer_bytes: int | None = None

    @property
    def flops(self) -> int:
        """All operations of a step."""
        return self.forward_flops + self.backward_flops + self.recomputed_flops


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step costs.

    Attributes:
        parts: by name, in the order in which they run.
        peak_bytes: the most that was held at once beside weights, batch and optimizer: activations and gradients.
    """

    parts: dict[str, PartCost]
    peak_bytes: int

    @property
    def flops(self) -> int:
        """All operations of a step, those that are computed again included."""
        return sum(part.flops for part in self.parts.values())

    @property
    def model_flops(self) -> int:
        """The operations that the step needs: without those that are computed again. MFU is made of them."""
        return sum(part.forward_flops + part.backward_flops for part in self.parts.values())


def measure_step(
    model: nn.Module,
    batch: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> StepCost:
    """Run one training step's forward and backward pass, and see what it costs.

    Nothing of the model changes: weights, gradients, buffers, modes and random numbers are as before. Layers that
    `torch.compile` was applied to run uncompiled. Attention counts as in eager code, whatever kernel computes it.

    Args:
        model: a `MultimodalModel`, wrapped or not, with what trains chosen.
        batch: of one step, with `labels`; on the model's device.
        optimizer: of the model's, for what it keeps by now; None if there is none.
        autocast: entered around the forward pass.

    Returns:
        What was seen.

    Raises:
        ArgumentError: if the model holds no `MultimodalModel`, or the batch has no labels.
    """
    cost, _ = run(model, batch, autocast)
    return cost if optimizer is None else with_optimizer(cost, model, optimizer.state)


def run(
    model: nn.Module, batch: Mapping[str, Any], autocast: AbstractContextManager[Any] | None = None
) -> tuple[StepCost, list[nn.Parameter]]:
    """What a step costs, without its optimizer, and what got a gradient.

    Args:
        model: as for `measure_step`.
        batch: as there.
        autocast: as there.

    Returns:
        The cost, and the parameters.

    Raises:
        ArgumentError: as there.
    """
    if batch.get("labels") is None:
        raise ArgumentError("a step's cost is that of a loss: the batch needs labels")
    with _as_before(model), torch.enable_grad(), Meter(model, batch) as meter:
        model.train()
        with autocast if autocast is not None else nullcontext():
            loss = model(**batch).loss
        saved = meter.held(loss)
        # As `backward` does, but leaving gradients and what waits for them alone.
        leaves = graph.leaves_of(loss)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
    if meter.failure is not None:
        raise meter.failure
    found = {leaf: given for leaf, given in zip(leaves, gradients, strict=True) if given is not None}
    parts = {
        name: PartCost(
            parameters=sum(map(quantized.number_of_weights, parameters)),
            trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            weight_bytes=bytes_of(parameters),
            gradient_bytes=bytes_of([found.get(parameter) for parameter in parameters]),
            saved_bytes=saved[name],
            forward_flops=meter.forward[name],
            backward_flops=meter.backward[name],
            recomputed_flops=meter.recomputed[name],
        )
        for name, parameters in _parameters(model).items()
    }
    return StepCost(parts=parts, peak_bytes=meter.peak), [leaf for leaf in model.parameters() if leaf in found]


def with_optimizer(cost: StepCost, model: nn.Module, state: Mapping[Any, Any]) -> StepCost:
    """A step's cost with what an optimizer keeps.

    Args:
        cost: of a step.
        model: that was run.
        state: of an optimizer, by the model's parameters.

    Returns:
        The cost, with `optimizer_bytes` of every part.
    """
    kept = {
        name: bytes_of([state[parameter] for parameter in parameters if parameter in state])
        for name, parameters in _parameters(model).items()
    }
    return replace(cost, parts={name: replace(part, optimizer_bytes=kept[name]) for name, part in cost.parts.items()})


def _parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of every part; one that several parts share is the first one's."""
    found: dict[str, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for name, modules in composition_in(model).parts.items():
        own = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
        found[name] = [parameter for parameter in own if parameter not in seen]
        seen |= set(own)
    return found


def composition_in(model: nn.Module) -> Composition:
    """The multimodal model itself, under whatever wraps it.

    Args:
        model: a `MultimodalModel`, or a wrapper of one.

    Returns:
        The `MultimodalModel`.

    Raises:
        ArgumentError: if there is none.
    """
    found = next((module for module in model.modules() if isinstance(module, Composition)), None)
    if found is None:
        raise ArgumentError(f"expected a MultimodalModel, or something that wraps one, found {type(model).__name__}")
    return found


def bytes_of(values: Any) -> int:
    """How many bytes tensors hold, those that share memory once.

    Args:
        values: tensors, or collections that hold some.

    Returns:
        The number.
    """
    return sum({_key(storage): storage.nbytes() for storage in _storages(values)}.values())


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Where the numbers of tensors are; sparse ones keep theirs in two."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    halves = [(each._indices(), each._values()) if each.layout is torch.sparse_coo else (each,) for each in tensors]
    return [half.untyped_storage() for pair in halves for half in pair if half.layout in (torch.strided, torch.jagged)]


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Leave modes, buffers and random numbers as they are."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


class Meter(TorchDispatchMode):
    """Counts operations and follows the memory that operators take, by part, as long as it is entered.

    Attributes:
        forward: part to operations of forward passes.
        backward: part to operations of backward passes, without those below.
        recomputed: part to operations of forward passes that backward passes computed again.
        needed: part to the operations that the backward passes of products take if no gradient is computed that nobody
            asks for.
        spent: part to the operations that they took.
        peak: the most bytes that were held at once, of those that operators took.
        failure: why an operator could not be counted; nothing is counted from there on. None if all could.

    Args:
        model: a `MultimodalModel`, wrapped or not.
        batch: whose memory is not counted.

    Raises:
        ArgumentError: if the model holds no `MultimodalModel`.
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forward, self.backward, self.recomputed = Counter[str](), Counter[str](), Counter[str]()
        self.needed, self.spent = Counter[str](), Counter[str]()
        self.peak = 0
        self.failure: Exception | None = None
        self._composition = composition_in(model)
        self._undone = ExitStack()
        self._part = _TEXT
        self._starts, self._parts = [0], [_TEXT]  # of ranges of autograd nodes, and whose they are
        self._known = set(map(_key, _storages([*model.parameters(), *model.buffers(), dict(batch)])))
        self._held: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._bytes = 0

    def held(self, returned: Tensor) -> Counter[str]:
        """Bytes by part that operators took and that are held now, but for those of what the model returned."""
        gc.collect()  # cycles hold what nobody needs
        found, own = Counter[str](), set(map(_key, _storages(returned)))
        for key, (_, size, part) in self._held.items():
            found[part] += size if key not in own else 0
        return found

    def __enter__(self) -> "Meter":
        model = self._composition
        embedding: Any = model.get_input_embeddings()
        # What is asked once is no work of a step.
        labelled_head.ask_ahead(model.language_model, embedding.weight.shape[-1], model.dtype, model.device)
        for name, modules in model.parts.items():
            half = name.endswith("_encoder")
            behind = name.removesuffix("_encoder") + "_projector" if half else _TEXT
            for module in modules if name != _TEXT else []:
                self._hook(module, name, behind)
        # Compiled code calls no operators that could be seen; and what PyTorch finds in a mode, it never compiles.
        self._undone.enter_context(compiling.eagerly())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._undone.close()

    def _hook(self, module: nn.Module, name: str, behind: str) -> None:
        entered = module.register_forward_pre_hook(lambda *_: self._enter(name), prepend=True)
        left = module.register_forward_hook(lambda _, __, output: self._leave(output, behind))
        self._undone.callback(entered.remove)
        self._undone.callback(left.remove)

    def _enter(self, part: str) -> None:
        if _engine._current_autograd_node() is None:  # else it is computed again
            self._turn_to(part)

    def _leave(self, output: Any, behind: str) -> None:
        """What a part returned belongs to the one behind it, which holds it if anybody does."""
        if _engine._current_autograd_node() is not None:
            return
        self._turn_to(behind)
        for key in map(_key, _storages(list(output.values()) if isinstance(output, dict) else output)):
            if key in self._held:
                storage, size, _ = self._held[key]
                self._held[key] = (storage, size, behind)

    def _turn_to(self, part: str) -> None:
        self._part = part
        self._starts.append(_autograd._get_sequence_nr())
        self._parts.append(part)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.failure is None:
            try:
                self._count(func, args, kwargs, result)
            except Exception as error:  # the step is the caller's, and goes on
                self.failure = error
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        node: Any = _engine._current_autograd_node()
        part = self._part if node is None else self._parts[bisect_right(self._starts, node._sequence_nr()) - 1]
        number = flops.of_operator(func, args, kwargs, result)
        if number and node is None:
            self.forward[part] += number
            if torch.is_grad_enabled():
                self.needed[part] += number * flops.gradients(func, args)
        elif number and torch.is_grad_enabled():  # a backward pass builds no graph; what is computed again does
            self.recomputed[part] += number
        elif number:
            self.backward[part] += number
            self.spent[part] += 0 if type(node).__name__.startswith("Linalg") else number  # those are no products
        for storage in _storages(result):
            self._follow(storage, part)

    def _follow(self, storage: torch.UntypedStorage, part: str) -> None:
        key, size = _key(storage), storage.nbytes()
        if key in self._known or key in self._held:
            return

        def let_go(_: Any) -> None:
            self._bytes -= size
            self._held.pop(key, None)

        self._held[key] = (weakref.ref(storage, let_go), size, part)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
