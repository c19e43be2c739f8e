"""Gradient checkpointing of a part's layers from outside.

Hugging Face's own checkpoints only layers in train mode. A frozen language model that passes a gradient on stays in
evaluation mode (dropout must not run in it), so there its layers are wrapped here instead, whatever their mode.
Paper: https://arxiv.org/abs/1604.06174.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy

_OTHER = "_forward_before_checkpointing"


def enable(part: nn.Module, every_n_layers: int = 1, offload: bool = False, **options: Any) -> None:
    """Recompute the activations of every n-th layer of `part` in the backward pass instead of keeping them.

    Args:
        part: an encoder or a language model.
        every_n_layers: 1 for every layer.
        offload: keep what is saved for the recomputation in host memory.
        **options: for `torch.utils.checkpoint.checkpoint`.

    Raises:
        ArgumentError: for `use_reentrant=True`, which loses the gradients of trainable layers behind frozen ones.
    """
    if options.pop("use_reentrant", None):
        raise ArgumentError(
            "use_reentrant=True is not supported: it drops the gradient of a trainable layer whose input needs none. "
            "Leave it out or pass use_reentrant=False"
        )
    disable(part)
    for module in part.modules():  # a second checkpoint inside ours would recompute twice
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
    forward = _checkpointed(offload, options)
    for index, layer in enumerate(anatomy.layers(part)):
        if index % every_n_layers == 0:
            if "forward" in layer.__dict__:  # put there by somebody else (accelerate's hooks), who goes on working
                layer.__dict__[_OTHER] = layer.__dict__["forward"]
            layer.forward = MethodType(forward, layer)


def disable(part: nn.Module) -> None:
    """Let the layers of `part` keep their activations again."""
    for layer in part.modules():
        if _is_checkpointed(layer):
            del layer.forward
            if _OTHER in layer.__dict__:
                layer.forward = layer.__dict__.pop(_OTHER)


def is_enabled(part: nn.Module) -> bool:
    """Whether any layer of `part` is checkpointed here."""
    return any(_is_checkpointed(layer) for layer in part.modules())


def place_of_forward(layer: nn.Module) -> str:
    """Under which name of its own a layer keeps a forward other than its class's: that which a checkpoint is around."""
    return _OTHER if _is_checkpointed(layer) else "forward"


def _is_checkpointed(layer: nn.Module) -> bool:
    return getattr(layer.__dict__.get("forward"), "is_checkpointed", False)


def _checkpointed(offload: bool, options: dict[str, Any]) -> Callable[..., Any]:
    # A method bound to the layer, not a closure over it: a deep copy of the layer must call the copy.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__.get(_OTHER) or MethodType(type(self).forward, self)
        plain = partial(own, **kwargs)
        # To a cache a layer would write a second time when it is recomputed.
        names = anatomy.forward_arguments(self).names
        if anatomy.is_given_cache(names, args, kwargs) or not _builds_graph(self, args, kwargs):
            return plain(*args)
        place = save_on_cpu(pin_memory=torch.accelerator.is_available()) if offload else nullcontext()
        with place:
            return checkpoint(plain, *args, use_reentrant=False, **options)

    forward.is_checkpointed = True  # type: ignore[attr-defined]
    return forward


def _builds_graph(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return any(t.requires_grad for t in tensors) or any(p.requires_grad for p in layer.parameters())
