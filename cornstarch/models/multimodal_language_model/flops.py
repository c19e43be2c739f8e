"""5j. Floating-point operations of an operator, by the shapes of its tensors; a multiplication and an addition are two.

Matrix products and convolutions count as in `torch.utils.flop_counter`. Attention counts as if scores were computed and
kept, as eager code does: 4 B H S T E forward, twice that backward, whatever a fused kernel computes again, and whatever
a mask leaves out. So figures do not depend on which kernel was at hand.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_Count = Callable[..., int]


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Scores and weighted values of (B, H, S, E), (B, H', T, E), (B, H', T, F); heads of keys may be shared."""
    batch, heads, positions, width = query.shape
    return 2 * batch * heads * positions * key.shape[-2] * (width + value.shape[-1])


def _fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return _attention(query, key, value)


def _fused_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    return 2 * _attention(query, key, value)


def _packed_backward(*args: Any, **kwargs: Any) -> int:
    """Of attention over packed sequences, without the scores that its kernel computes again: four products of five."""
    count: Any = flop_registry[torch.ops.aten._flash_attention_backward]
    return int(count(*args, **kwargs)) * 4 // 5


def _grouped(first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """Products of groups of rows with a matrix each, or of groups of columns with groups of rows."""
    inner = first.shape[-1]
    if first.dim() == 2 and second.dim() == 2:  # (N, rows) by (rows, M): the weights' gradient
        return 2 * int(first.shape[0]) * int(inner) * int(second.shape[-1])
    rows = first.shape[0] if first.dim() == 2 else first.shape[0] * first.shape[1]
    columns = second.shape[-1]
    return 2 * int(rows) * int(inner) * int(columns)


def _grouped_backward(rows: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """What transformers' own products compute backward: the gradients of rows and of weights, asked for or not."""
    return 2 * _grouped(rows, weight)


_FUSED = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
_BY_NAME: dict[str, _Count] = {
    **{f"aten::_scaled_dot_product_{kernel}": _fused for kernel in _FUSED},
    "aten::_scaled_dot_product_fused_attention_overrideable": _fused,
    **{f"aten::_scaled_dot_product_{kernel}_backward": _fused_backward for kernel in _FUSED},
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": _fused_backward,
    "aten::_flash_attention_backward": _packed_backward,
    "aten::_efficient_attention_backward": _packed_backward,
    "aten::_grouped_mm": _grouped,
    "transformers::grouped_mm_fallback": _grouped,
    "transformers::grouped_mm_fallback_backward": _grouped_backward,
}


def of_operator(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """How many operations a call of an operator takes.

    Args:
        func: an overload, as dispatch modes get it.
        args: of the call.
        kwargs: of the call.
        result: what it returned.

    Returns:
        The number; 0 for what multiplies no matrices.
    """
    own = _BY_NAME.get(func._schema.name) if isinstance(func, torch._ops.OpOverload) else None
    if own is not None:
        return own(*args, **kwargs)
    packet = getattr(func, "_overloadpacket", None)
    count: Any = flop_registry.get(packet)
    return int(count(*args, **kwargs, out_val=result)) if count is not None else 0


def gradients(func: Any, args: tuple[Any, ...]) -> int:
    """How many gradients of a matrix product's factors are asked for; each takes as many operations as the product.

    Args:
        func: an overload that `of_operator` counts, called in a forward pass.
        args: of the call.

    Returns:
        The number; of fused attention, 2 if any is, which is how it counts backward.
    """
    factors = args[1:3] if func._schema.name in ("aten::addmm", "aten::baddbmm") else args[:2]
    asked = [isinstance(factor, Tensor) and factor.requires_grad for factor in factors]
    if "attention" in func._schema.name:
        return 2 * any(asked)
    return sum(asked)
