"""2a. Callbacks that come with the package: saved with a model by name and JSON arguments.

Each is called like the function it stands for. One that changes the width of rows says so with `output_width`, so that
the projector behind it is made to fit; one that wants arguments that no part takes names them as `additional_args`.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model.llm_callbacks import (
    DeepFeatures,
    FeaturesSeeEachOther,
    OutputDeepFeatures,
    RotaryPositions,
)
from cornstarch.models.multimodal_language_model.tiles import JoinTiles, SplitTiles, UnpadImages


@runtime_checkable
class ChangesWidth(Protocol):
    """A callback, of the package or of one's own, that says how wide the rows are that it returns."""

    def output_width(self, width: int) -> int:
        """The width of the rows it returns, of rows of `width`."""


def output_width(callback: Any, width: int) -> int:
    """The width of the rows that a module callback returns; of one that does not say, that of the rows it is given."""
    return callback.output_width(width) if isinstance(callback, ChangesWidth) else width


def takes_lists(callback: Any) -> bool:
    """Whether a module callback states, as `takes_lists`, that it takes a list with rows (T_i, width) of each input.

    It is given one where inputs are padded or packed, so that it sees neither padding nor another input.
    """
    return bool(getattr(callback, "takes_lists", False))


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
            if not self.layers:
                raise ArgumentError("SelectFeatures needs at least one layer, or None for the encoder's output")

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
            return self._rows(output.last_hidden_state)
        states = getattr(output, "hidden_states", None)
        if states is None:
            raise ArgumentError(
                "SelectFeatures(layers=...) needs the hidden states of all layers: pass "
                "preprocess_callback=OutputHiddenStates()"
            )
        beyond = [layer for layer in self.layers if not -len(states) <= layer < len(states)]
        if beyond:
            raise ArgumentError(f"SelectFeatures: there is no layer {beyond[0]}; there are 0 to {len(states) - 1}")
        return torch.cat([self._rows(states[layer]) for layer in self.layers], dim=-1)

    def output_width(self, width: int) -> int:
        """The width of the rows it returns, of rows of `width`."""
        return width * len(self.layers or (0,))

    def _rows(self, states: Tensor) -> Tensor:
        if states.shape[1] <= self.skip_first:
            raise ArgumentError(
                f"SelectFeatures(skip_first={self.skip_first}) leaves nothing of {states.shape[1]} rows"
            )
        return states[:, self.skip_first :]


@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """A `postprocess_module_callback` or `postprocess_projector_callback` that averages neighbouring rows into one.

    A window that sticks out at the end averages the rows it has.

    Attributes:
        size: rows per window; of a square map, rows per side of it.
        square: the rows are a square map, row-major, as a vision transformer yields them (without class token);
            otherwise a sequence.
    """

    size: int
    square: bool = True
    takes_lists: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ArgumentError(f"AveragePool needs a size of at least 1, found {self.size}")

    def __call__(self, inputs: dict[str, Any], output: Any) -> Any:
        """Pool the rows.

        Args:
            inputs: the encoder's arguments; not used.
            output: hidden states (N, T, width), a list of (T_i, width), or what holds `last_hidden_state`.

        Returns:
            The same with about T / size rows, of a square map T / size^2.

        Raises:
            ArgumentError: if the rows of a square map are no square number.
        """
        rows = getattr(output, "last_hidden_state", output)
        if isinstance(rows, list):
            return [self._pool(one.unsqueeze(0)).squeeze(0) if len(one) else one for one in rows]
        return self._pool(rows)

    def _pool(self, rows: Tensor) -> Tensor:
        if not self.square:
            return functional.avg_pool1d(rows.mT, self.size, ceil_mode=True).mT
        side = math.isqrt(rows.shape[1])
        if side**2 != rows.shape[1]:
            raise ArgumentError(
                f"AveragePool: {rows.shape[1]} rows are no square map; leave out a class token before "
                "(SelectFeatures(skip_first=1)), or pass square=False"
            )
        maps = rows.mT.reshape(rows.shape[0], -1, side, side)
        return functional.avg_pool2d(maps, self.size, ceil_mode=True).flatten(2).mT


@dataclass(frozen=True, kw_only=True)
class PixelShuffle:
    """A `postprocess_module_callback` that puts neighbouring rows of a map into one wider row (space to depth).

    As between the towers and the language models of InternVL (https://arxiv.org/abs/2404.16821), Idefics3, SmolVLM and
    Llama 4: nothing is lost, and the projector learns what to make of it. The rows of a window stand in the new row in
    the order in which they stand in the map.

    Attributes:
        scale: rows of the map per side of a window, so that scale^2 rows become one of scale^2 times the width.
        size: (rows, columns) of the map, row-major; a square map if left out.
    """

    scale: int = 2
    size: tuple[int, int] | None = None
    takes_lists: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ArgumentError(f"PixelShuffle needs a scale of at least 1, found {self.scale}")
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))  # JSON has lists only
            if len(self.size) != 2 or any(side < 1 or side % self.scale for side in self.size):
                raise ArgumentError(
                    f"PixelShuffle: size is (rows, columns), multiples of the scale {self.scale}; found {self.size}"
                )

    def __call__(self, inputs: dict[str, Any], output: Any) -> Any:
        """Put rows together.

        Args:
            inputs: the encoder's arguments; not used.
            output: hidden states (N, T, width), a list of (T_i, width), or what holds `last_hidden_state`.

        Returns:
            The same as (N, T / scale^2, width * scale^2).

        Raises:
            ArgumentError: if the rows are no such map, or its sides no multiples of the scale.
        """
        rows = getattr(output, "last_hidden_state", output)
        if isinstance(rows, list):
            return [self._shuffle(one.unsqueeze(0)).squeeze(0) for one in rows]
        return self._shuffle(rows)

    def output_width(self, width: int) -> int:
        """The width of the rows it returns, of rows of `width`."""
        return width * self.scale**2

    def _shuffle(self, rows: Tensor) -> Tensor:
        height, width = self.size or (math.isqrt(rows.shape[1]),) * 2
        if height * width != rows.shape[1] or height % self.scale or width % self.scale:
            shape = "square map" if self.size is None else f"map of {height} by {width}"
            raise ArgumentError(
                f"PixelShuffle: {rows.shape[1]} rows are no {shape} with sides that are multiples of {self.scale}; "
                "leave out a class token before (SelectFeatures(skip_first=1)), or choose another scale or size"
            )
        down, across = height // self.scale, width // self.scale
        windows = rows.reshape(rows.shape[0], down, self.scale, across, self.scale, rows.shape[2])
        return windows.transpose(2, 3).flatten(3).flatten(1, 2)


@dataclass(frozen=True, kw_only=True)
class StackRows:
    """A `postprocess_module_callback` that puts neighbouring rows of a sequence side by side, into one wider row.

    As between the encoders and the language models of SLAM-ASR (https://arxiv.org/abs/2402.08846) and Ultravox: what
    `PixelShuffle` is for a map. A last window that lacks rows is filled up with zeros.

    Attributes:
        size: rows that become one, of so many times the width.
    """

    size: int
    takes_lists: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ArgumentError(f"StackRows needs a size of at least 1, found {self.size}")

    def __call__(self, inputs: dict[str, Any], output: Any) -> Any:
        """Put rows together.

        Args:
            inputs: the encoder's arguments; not used.
            output: hidden states (N, T, width), a list of (T_i, width), or what holds `last_hidden_state`.

        Returns:
            The same as (N, T / size rounded up, width * size).
        """
        rows = getattr(output, "last_hidden_state", output)
        if isinstance(rows, list):
            return [self._stack(one) for one in rows]
        return self._stack(rows)

    def output_width(self, width: int) -> int:
        """The width of the rows it returns, of rows of `width`."""
        return width * self.size

    def _stack(self, rows: Tensor) -> Tensor:
        whole = functional.pad(rows, (0, 0, 0, -rows.shape[-2] % self.size))
        return whole.reshape(*rows.shape[:-2], whole.shape[-2] // self.size, rows.shape[-1] * self.size)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Callbacks one after the other, in the place of one.

    Attributes:
        callbacks: each is given what the one before it returned.
    """

    callbacks: tuple[Any, ...]

    @property
    def takes_lists(self) -> bool:
        """Whether the first of them does."""
        return takes_lists(next(iter(self.callbacks), None))

    def __call__(self, inputs: dict[str, Any], *output: Any) -> Any:
        """Call them: on `inputs` where this stands before the encoder, on `inputs` and `output` behind it."""
        for callback in self.callbacks:
            if output:
                output = (callback(inputs, *output),)
            else:
                inputs = callback(inputs)
        return output[0] if output else inputs

    def output_width(self, width: int) -> int:
        """The width of the rows it returns, of rows of `width`: through all its callbacks that say so."""
        return functools.reduce(lambda found, callback: output_width(callback, found), self.callbacks, width)


@dataclass(frozen=True, kw_only=True)
class MaskPaddedSounds:
    """A `preprocess_callback` that hides the padding of sounds from an encoder that takes a ready mask (Qwen2-Audio).

    The mask over frames (`feature_attention_mask`) becomes one over the positions behind the convolutions. What the
    encoder yields for padding is left out behind the projector, by the encoder's own map of lengths.

    Attributes:
        stride: frames per position behind the convolutions.
    """

    stride: int = 2
    additional_args: ClassVar[tuple[str, ...]] = ("feature_attention_mask",)

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add `attention_mask` (N, 1, 1, frames / stride), 0 where visible and the lowest number where hidden.

        Args:
            inputs: `input_features` (N, bins, frames) and `feature_attention_mask` (N, frames).

        Returns:
            The same with the mask; unchanged where `feature_attention_mask` is missing.
        """
        frames, features = inputs.get("feature_attention_mask"), inputs["input_features"]
        if frames is None:
            return inputs
        lengths = (frames.sum(-1) - 1) // self.stride + 1
        positions = torch.arange((features.shape[-1] - 1) // self.stride + 1, device=lengths.device)
        hidden = (positions >= lengths[:, None])[:, None, None].to(features.device)
        mask = torch.zeros(hidden.shape, dtype=features.dtype, device=features.device)
        return {**inputs, "attention_mask": mask.masked_fill(hidden, torch.finfo(features.dtype).min)}


# Each is a frozen dataclass, or a module with weights that says as `arguments` what it was made with.
CALLBACKS: dict[str, Callable[..., Any]] = {
    "output_hidden_states": OutputHiddenStates,
    "select_features": SelectFeatures,
    "average_pool": AveragePool,
    "pixel_shuffle": PixelShuffle,
    "stack_rows": StackRows,
    "split_tiles": SplitTiles,
    "join_tiles": JoinTiles,
    "unpad_images": UnpadImages,
    "mask_padded_sounds": MaskPaddedSounds,
    "output_deep_features": OutputDeepFeatures,
    "deep_features": DeepFeatures,
    "rotary_positions": RotaryPositions,
    "features_see_each_other": FeaturesSeeEachOther,
    "chain": Chain,
}


def additional_args(callback: Any) -> tuple[str, ...]:
    """Names of arguments that a callback wants and no part of the model takes, as its `additional_args` says."""
    inner = callback.callbacks if isinstance(callback, Chain) else ()
    return tuple(
        dict.fromkeys([*getattr(callback, "additional_args", ()), *(n for c in inner for n in additional_args(c))])
    )


def describe(callback: Any) -> dict[str, Any] | None:
    """A callback of the package as JSON values; None for one of the caller's own, or a chain that holds one."""
    for name, cls in CALLBACKS.items():
        if type(callback) is cls:
            if isinstance(callback, nn.Module):
                return {"name": name, "arguments": callback.arguments}
            if not isinstance(callback, Chain):
                return {"name": name, "arguments": dataclasses.asdict(callback)}
            inner = [describe(entry) for entry in callback.callbacks]
            return None if None in inner else {"name": name, "arguments": {"callbacks": inner}}
    return None


def build(description: Mapping[str, Any]) -> Any:
    """The callback that `describe` described.

    Args:
        description: its name and arguments.

    Returns:
        The callback.

    Raises:
        ArgumentError: for an unknown name or arguments that it does not take; the message lists the known ones.
    """
    name, arguments = description["name"], dict(description["arguments"])
    if name not in CALLBACKS:
        raise ArgumentError(f"unknown callback {name!r}; known callbacks: {', '.join(CALLBACKS)}")
    known = list(inspect.signature(CALLBACKS[name]).parameters)
    if not set(arguments) <= set(known):
        unknown = next(argument for argument in arguments if argument not in known)
        raise ArgumentError(f"callback {name!r}: unknown argument {unknown!r}; known: {', '.join(known) or 'none'}")
    if name == "chain":
        arguments["callbacks"] = tuple(build(entry) for entry in arguments["callbacks"])
    try:
        return CALLBACKS[name](**arguments)
    except TypeError as error:
        raise ArgumentError(f"callback {name!r} refuses its arguments {arguments}: {error}") from error
