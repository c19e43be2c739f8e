"""5e. Parts that hold their weights in fewer bits (bitsandbytes, torchao): what must be seen to for them."""

import math
from typing import Any

from torch import Tensor, nn

# What bitsandbytes' layers keep beside a weight in few bits, to make it whole again.
_SCALES = ("SCB", "weight_format")


def is_quantized(part: nn.Module) -> bool:
    """Whether a part was loaded in fewer bits by one of transformers' quantisers."""
    return any(getattr(module, "is_quantized", False) for module in part.modules())


def number_of_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for; several of 4 bits lie in one number."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def keep_differentiable(part: nn.Module) -> None:
    """Keep bitsandbytes from losing the gradient on a CPU.

    In evaluation mode its 4-bit layers repack their weights for a kernel that has no backward, and go on using that
    kernel in training: after the first generated answer no gradient would pass them any more, without a word.

    Args:
        part: may hold such layers.
    """
    for module in part.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with every weight in floating point, under the names it has without quantisation.

    Args:
        model: parts of it may be quantised by bitsandbytes or torchao.

    Returns:
        Name to tensor.
    """
    state: dict[str, Any] = dict(model.state_dict())
    for place, module in model.named_modules():
        weight = module._parameters.get("weight")  # the module's own: adapters around it show it as theirs
        if type(weight).__name__ not in ("Params4bit", "Int8Params"):
            continue
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # imports the library

        name = f"{place}.weight"
        for key in [key for key in state if key.startswith(f"{name}.")] + [f"{place}.{scale}" for scale in _SCALES]:
            state.pop(key, None)
        dtype = next((p.dtype for p in module.parameters(recurse=False) if p.is_floating_point()), None)
        whole = dequantize_bnb_weight(weight, getattr(module, "state", None))
        state[name] = whole.to(getattr(module, "compute_dtype", None) or dtype or whole.dtype)
    # torchao's weights are tensors of classes of its own.
    torchao = (name for name, value in state.items() if type(value).__module__.startswith("torchao."))
    return state | {name: state[name].dequantize() for name in torchao}
