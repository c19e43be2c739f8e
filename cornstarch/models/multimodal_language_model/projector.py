"""3. The projector: features of an encoder -> vectors of the language model's embedding space."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy, freezing
from cornstarch.models.multimodal_language_model.configuration import (
    MultimodalProjectorConfig,
    TransformersProjectorConfig,
)
from cornstarch.models.multimodal_language_model.resampler import Resampler


class MultimodalProjector(nn.Module):
    """A projection built from a config, or the caller's own module.

    Args:
        config: what to build; may be None only with `projection`.
        projection: a module from (..., encoder width) to (..., embedding width); wrapped as it is.

    Raises:
        ArgumentError: if neither is given, the config does not state both widths, or its type is `identity` and they
            differ.
    """

    def __init__(
        self,
        config: MultimodalProjectorConfig | TransformersProjectorConfig | None,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if projection is None and config is None:
            raise ArgumentError("MultimodalProjector needs a MultimodalProjectorConfig or a projection module")
        self.config = config
        self.projection: Any = projection if projection is not None else _build(config)  # type: ignore[arg-type]

    @property
    def is_custom(self) -> bool:
        """Whether the projection is something else than the config describes."""
        if self.config is None:
            return True
        with torch.device("meta"):
            described = _build(self.config)
        return _shape(described) != _shape(self.projection)

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Input and output width, each None where a module of the caller's own does not show it."""
        if isinstance(self.config, TransformersProjectorConfig):
            return None, self.config.out_features
        if isinstance(self.projection, nn.Identity) and self.config is not None:
            return self.config.in_features, self.config.out_features
        return anatomy.linear_widths(self.projection)

    @property
    def takes_mask(self) -> bool:
        """Whether it looks at an input as a whole: its forward has a `mask` (N, T), False at padding."""
        return "mask" in anatomy.forward_arguments(freezing.unwrap(self.projection)).names

    @property
    def features_per_input(self) -> int | None:
        """How many features every input yields, whatever it has of rows; None where each row yields one."""
        return self.config.queries if isinstance(self.config, MultimodalProjectorConfig) else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Project hidden states (..., encoder width) to (..., embedding width); further arguments pass through."""
        return self.projection(hidden_states, *args, **kwargs)


def _build(config: MultimodalProjectorConfig | TransformersProjectorConfig) -> nn.Module:
    if isinstance(config, TransformersProjectorConfig):
        return config.make()
    taken, yielded = config.in_features, config.out_features
    if config.projection_type == "identity":
        if taken != yielded:
            raise ArgumentError(
                f"an identity projector changes no width, but the encoder yields width {taken} and the language model "
                f"embeds in width {yielded}: choose another projection_type"
            )
        return nn.Identity()
    if config.projection_type == "resampler":
        return Resampler(taken, yielded, **config.own_arguments, activation=config.activation)
    first = nn.Linear(taken, yielded, bias=config.bias)
    if config.projection_type == "linear":
        return first
    return nn.Sequential(first, ACT2FN[config.activation], nn.Linear(yielded, yielded, bias=config.bias))


def _shape(module: nn.Module) -> list[tuple[type, str, list[tuple[int, ...]]]]:
    return [(type(m), m.extra_repr(), [tuple(p.shape) for p in m.parameters(recurse=False)]) for m in module.modules()]
