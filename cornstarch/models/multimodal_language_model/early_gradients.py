"""5g1. Gradients taken in the forward pass: of losses, one after the other, with respect to what they were computed of.

A loss whose gradients are there already needs nothing of what it was computed with, so that may be let go before the
next loss is computed. The backward pass multiplies the gradients with the one that comes in.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cornstarch.models.multimodal_language_model import graph

_engine: Any = torch._C._autograd
_autograd: Any = torch.autograd


class ReachedBelowError(Exception):
    """A loss depends on something below that no stand-in was made of, so its gradients cannot be taken alone."""


class Early:
    """Takes gradients of losses with respect to what was returned below and to the leaves used above.

    Args:
        given: tensors from which everything is computed.
    """

    def __init__(self, given: Iterable[Any]) -> None:
        self._given = {value.grad_fn for value in given if isinstance(value, Tensor) and value.grad_fn is not None}
        self._originals: dict[Tensor, Tensor] = {}  # by stand-in
        self._below: list[range] = []  # numbers of autograd nodes
        self._sums = _Sums()

    def below(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a call returns, cut off.

        Args:
            call: what works below.
            *args: for it.
            **kwargs: for it.

        Returns:
            What it returned, with leaves that stand for tensors that need a gradient.
        """
        first = _autograd._get_sequence_nr()
        made = call(*args, **kwargs)
        self._below.append(range(first, _autograd._get_sequence_nr()))
        stands: dict[int, Tensor] = {}
        return tree_map(lambda value: self._cut(value, stands), made)

    def originals(self, values: Any) -> Any:
        """Values in which nothing stands for another.

        Args:
            values: tensors, or collections that hold some.

        Returns:
            The like.
        """
        return tree_map(lambda value: self._originals.get(value, value) if isinstance(value, Tensor) else value, values)

    def add(self, loss: Tensor) -> Tensor:
        """Take the gradients of a loss and add them to those of the losses before.

        Args:
            loss: a number. What it was computed with is let go.

        Returns:
            The number, without a graph.

        Raises:
            ReachedBelowError: if it depends on something below that nothing stands for.
        """
        self._take(loss, self._sums, keep=False)
        return loss.detach()

    def alone(self, value: Tensor) -> Tensor:
        """A number with gradients of its own, which stays differentiable when what it shares with a loss is gone.

        Args:
            value: a number.

        Returns:
            The number.
        """
        sums = _Sums()
        self._take(value, sums, keep=True)
        return sums.joined(value.detach(), self._originals)

    def joined(self, loss: Tensor) -> Tensor:
        """A number whose gradients are those that were taken.

        Args:
            loss: the sum of all losses.

        Returns:
            The number, with a graph.
        """
        return self._sums.joined(loss, self._originals)

    def _cut(self, value: Any, stands: dict[int, Tensor]) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        if id(value) not in stands:
            stands[id(value)] = value.detach().requires_grad_()
            self._originals[stands[id(value)]] = value
        return stands[id(value)]

    def _take(self, loss: Tensor, sums: "_Sums", keep: bool) -> None:
        if not loss.requires_grad:
            return
        sources = self._sources(loss)
        # A backward pass runs outside of autocast.
        with _silenced(sources), torch.autocast(loss.device.type, enabled=False):
            gradients = torch.autograd.grad(loss, sources, retain_graph=keep, allow_unused=True)
        for source, gradient in zip(sources, gradients, strict=True):
            if gradient is not None:
                sums.add(source, gradient)

    def _sources(self, loss: Tensor) -> list[Tensor]:
        """The leaves that a loss was computed of, stand-ins among them."""
        found = []
        for node in graph.nodes_of(loss):
            leaf = graph.leaf_of(node)
            if leaf is not None:
                found.append(leaf)
            elif node in self._given or any(node._sequence_nr() in numbers for numbers in self._below):
                raise ReachedBelowError
        return found


class _Sums:
    """Sums of gradients, in float32 or better: rounded at the end, not at every step."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}
        self._shared: set[Tensor] = set()  # sources whose sum is a single gradient, which others may hold as well

    def add(self, source: Tensor, gradient: Tensor) -> None:
        """Add to the sum of a source."""
        if source not in self._sums:
            self._sums[source] = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            self._shared.add(source)
        elif source in self._shared:
            self._sums[source] = self._sums[source] + gradient
            self._shared.discard(source)
        else:
            self._sums[source] += gradient

    def joined(self, loss: Tensor, originals: Mapping[Tensor, Tensor]) -> Tensor:
        """A number with these gradients, which are given away."""
        if not self._sums:
            return loss
        sources = list(self._sums)
        gradients = [self._sums.pop(source).to(source.dtype, copy=source in self._shared) for source in sources]
        return _Known.apply(loss, gradients, *(originals.get(source, source) for source in sources))  # type: ignore[no-untyped-call, no-any-return]


@contextmanager
def _silenced(sources: Sequence[Tensor]) -> Iterator[None]:
    """Without the hooks of tensors: they are called in the backward pass, with the whole gradient."""
    former = [(source._backward_hooks, dict(source._backward_hooks)) for source in sources if source._backward_hooks]
    for hooks, _ in former:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in former:
            hooks.update(kept)


class _Known(torch.autograd.Function):
    """A number whose gradients are known. They are given away if nobody asks again, so that none is held twice."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *sources: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a loss of logits in chunks has no second derivatives; output_logits=True gives all logits"
            )
        if gradients is None:
            raise RuntimeError("a second backward pass through the loss: the first one needs retain_graph=True")
        if _engine._get_current_graph_task_keep_graph():
            return None, None, *(gradient * incoming.to(gradient.device) for gradient in gradients)
        ctx.gradients = None
        return None, None, *(gradient.mul_(incoming.to(gradient.device)) for gradient in gradients)
