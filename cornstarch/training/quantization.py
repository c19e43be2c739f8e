"""2a. A language model in fewer bits, with the libraries that do that, where they are installed."""

import inspect
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from cornstarch.errors import ArgumentError
from cornstarch.training.config import QuantizationConfig


def make_config(config: QuantizationConfig, dtype: torch.dtype | str) -> Any:
    """Hugging Face's config for loading a model in fewer bits.

    Args:
        config: library, bits and its own arguments.
        dtype: to compute in.

    Returns:
        What `from_pretrained` takes as `quantization_config`.

    Raises:
        ImportError: if the library is not installed.
        ArgumentError: for an argument that it does not take.
    """
    try:
        if config.backend == "bitsandbytes":
            import bitsandbytes  # noqa: F401 - Hugging Face's config is of no use without it

            compute = {"bnb_4bit_compute_dtype": dtype} if isinstance(dtype, torch.dtype) else {}
            four = {"bnb_4bit_quant_type": "nf4", **compute} if config.bits == 4 else {}
            known = inspect.signature(BitsAndBytesConfig).parameters
            for name in config.arguments:
                if name not in known:
                    raise TypeError(f"BitsAndBytesConfig takes no {name!r}; it takes: {', '.join(known)}")
            return BitsAndBytesConfig(**{f"load_in_{config.bits}bit": True}, **{**four, **config.arguments})
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

        kind = Int4WeightOnlyConfig if config.bits == 4 else Int8WeightOnlyConfig
        return TorchAoConfig(kind(**config.arguments))
    except ImportError as error:
        raise ImportError(
            f"model.language_model.quantization needs {config.backend}, which is not installed: pip install "
            f"{config.backend}"
        ) from error
    except TypeError as error:
        raise ArgumentError(f"model.language_model.quantization.arguments: {error}") from error
