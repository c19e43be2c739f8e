"""5g2. The autograd graph behind a value: its nodes, and the leaves it was computed of."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def nodes_of(value: Tensor) -> Iterator[Any]:
    """Every node behind a value, once.

    Args:
        value: perhaps without a graph, which has no nodes.

    Yields:
        The nodes, each before those behind it.
    """
    seen: set[Any] = set()
    rest: list[Any] = [value.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            rest += [before for before, _ in node.next_functions]


def leaf_of(node: Any) -> Tensor | None:
    """The tensor at whose end of the graph a node stands, where gradients are gathered; None of any other node."""
    leaf: Tensor | None = getattr(node, "variable", None)
    return leaf


def leaves_of(value: Tensor) -> list[Tensor]:
    """The tensors that get a gradient when a value's backward pass is run.

    Args:
        value: perhaps without a graph.

    Returns:
        Parameters, and whatever else requires a gradient (the sound that Wav2Vec2 is given, by its own doing).
    """
    return [leaf for leaf in map(leaf_of, nodes_of(value)) if leaf is not None]
