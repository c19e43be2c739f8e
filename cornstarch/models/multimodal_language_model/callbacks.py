"""2a. Callbacks that come with the package: saved with a model by name and JSON arguments.

Each is a frozen dataclass that is called like the function it stands for; its fields are its arguments.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cornstarch.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class OutputHiddenStates:
    """A `preprocess_callback` that has the encoder return the hidden states of all its layers."""

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The encoder's arguments with `output_hidden_states=True`."""
        return {**inputs, "output_hidden_states": True}


@dataclass(frozen=True, kw_only=True)
class SelectFeatures:
    """A `postprocess_module_callback` that takes rows of chosen layers, as LLaVA does (layer -2, no class token).

    Attributes:
        layers: which hidden states to take, counted as Hugging Face counts them (0 is the embeddings, -1 the last
            layer); several are put side by side in width. None takes the encoder's last hidden state. Any other
            choice needs `OutputHiddenStates` before the encoder.
        skip_first: how many leading rows to leave out: 1 for a class token.
    """

    layers: tuple[int, ...] | None = None
    skip_first: int = 0

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # JSON has lists only

    def __call__(self, inputs: dict[str, Any], output: Any) -> Tensor:
        """Take the rows.

        Args:
            inputs: the encoder's arguments; not used.
            output: what the encoder returned.

        Returns:
            (N, T - skip_first, width).

        Raises:
            ArgumentError: if the encoder returned no hidden states of its layers.
        """
        if self.layers is None:
            return output.last_hidden_state[:, self.skip_first :]  # type: ignore[no-any-return]
        states = getattr(output, "hidden_states", None)
        if states is None:
            raise ArgumentError(
                "SelectFeatures(layers=...) needs the hidden states of all layers: pass "
                "preprocess_callback=OutputHiddenStates()"
            )
        return torch.cat([states[layer][:, self.skip_first :] for layer in self.layers], dim=-1)


CALLBACKS: dict[str, Callable[..., Any]] = {
    "output_hidden_states": OutputHiddenStates,
    "select_features": SelectFeatures,
}


def describe(callback: Any) -> dict[str, Any] | None:
    """A callback of the package as JSON values; None for one of the caller's own."""
    for name, cls in CALLBACKS.items():
        if type(callback) is cls:
            return {"name": name, "arguments": dataclasses.asdict(callback)}
    return None


def build(description: dict[str, Any]) -> Any:
    """The callback that `describe` described.

    Args:
        description: its name and arguments.

    Returns:
        The callback.

    Raises:
        ArgumentError: for an unknown name; the message lists the known ones.
    """
    name = description["name"]
    if name not in CALLBACKS:
        raise ArgumentError(f"unknown callback {name!r}; known callbacks: {', '.join(CALLBACKS)}")
    return CALLBACKS[name](**description["arguments"])
