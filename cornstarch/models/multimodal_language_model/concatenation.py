"""2c. Several vision encoders of the same images as one, their features side by side in width.

Papers: Prismatic (https://arxiv.org/abs/2402.07865), Eagle (https://arxiv.org/abs/2408.15998).
Shapes: N images, T rows, E the sum of the widths; h and w the rows and columns of a map.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy, freezing
from cornstarch.models.multimodal_language_model.callbacks import SelectFeatures
from cornstarch.models.multimodal_language_model.configuration import config_to_dict
from cornstarch.models.multimodal_language_model.encoder import cast

# What the encoders take beside their inputs, which is settled when they are put together.
_SETTLED = ("output_hidden_states", "output_attentions", "return_dict")


class ConcatenatedConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configs of encoders under one roof, and the width of what they yield together.

    Args:
        encoders: name to config, the very objects, not copies.
        hidden_size: the width.
        **kwargs: those of `PreTrainedConfig`.
    """

    model_type = "cornstarch_concatenated"

    def __init__(
        self, encoders: Mapping[str, Any] | None = None, hidden_size: int | None = None, **kwargs: Any
    ) -> None:
        self.encoders = dict(encoders or {})
        self.hidden_size = hidden_size
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values; every encoder's config is a dictionary too."""
        return {
            "model_type": self.model_type,
            "encoders": {name: config_to_dict(config) for name, config in self.encoders.items()},
            "hidden_size": self.hidden_size,
        }


class ConcatenatedEncoders(nn.Module):
    """Vision encoders that all see the same images, as one encoder whose rows are theirs side by side.

    The rows of each are a map; those of the second and further ones are resampled (bilinear) to the map of the first
    where they have another size. Goes where one encoder would: `ModalEncoderModule(ConcatenatedEncoders(...))`.

    Args:
        encoders: name to encoder, in the order of their features: any of Hugging Face's that takes `pixel_values`,
            wrapped by PEFT or not.
        skip_first: name to how many leading rows to leave out: 1 for a class token, 5 with four registers.
        layers: name to the hidden states to take, counted as Hugging Face does, side by side if several; the encoder's
            own output for those that are not named.

    Raises:
        ArgumentError: for fewer than two encoders, one that takes no `pixel_values` or states no width, or a name that
            is none.
    """

    main_input_name = "pixel_values"
    input_dtype = None  # each encoder may have one of its own
    base_model_prefix = ""  # transformers asks for it where PEFT wraps the whole

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        skip_first: Mapping[str, int] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        _check(encoders, {"skip_first": skip_first or {}, "layers": layers or {}})
        self.encoders = nn.ModuleDict(encoders)
        self.skip_first = {name: (skip_first or {}).get(name, 0) for name in encoders}
        self.layers = {name: list(chosen) for name, chosen in (layers or {}).items()}
        self._own_arguments = {  # {name}_{argument} to both
            f"{name}_{argument}": (name, argument)
            for name, encoder in self._bases()
            for argument in anatomy.forward_arguments(encoder).names
            if argument not in _SETTLED
        }
        self._widths: dict[str, int] = {}
        for name, encoder in self._bases():
            width = anatomy.observed_width(encoder) or anatomy.feature_width(encoder)
            if width is None:
                raise ArgumentError(f"the encoder {name!r}, a {type(encoder).__name__}, states no hidden_size")
            self._widths[name] = width

    @property
    def config(self) -> ConcatenatedConfig:
        """The encoders' configs, and the width of the rows."""
        return ConcatenatedConfig({name: encoder.config for name, encoder in self._bases()}, self.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Width of the rows: the sum of the encoders'."""
        return sum(self._select(name).output_width(width) for name, width in self._widths.items())

    @property
    def argument_names(self) -> tuple[str, ...]:
        """What `forward` takes: `pixel_values` for all, and `{name}_{argument}` for one."""
        return ("pixel_values", *self._own_arguments)

    @property
    def main_input_names(self) -> tuple[str, ...]:
        """The arguments by which images come."""
        return ("pixel_values", *(f"{name}_pixel_values" for name in self.encoders))

    def forward(self, pixel_values: Tensor | None = None, **inputs: Any) -> BaseModelOutput:
        """Run every encoder, and put their rows side by side.

        Args:
            pixel_values: (N, channels, height, width), for every encoder that is not given its own.
            **inputs: `{name}_pixel_values` for one encoder (images as its own processor prepares them), or another of
                its arguments with its name before it.

        Returns:
            `last_hidden_state` (N, T, E), T the rows of the first encoder.

        Raises:
            ArgumentError: for an argument that is none, an encoder without images, rows that are no map, or encoders
                that were given different numbers of images.
        """
        own: dict[str, dict[str, Any]] = {name: {} for name in self.encoders}
        known = self._own_arguments
        for place, value in inputs.items():
            if place not in known:
                raise ArgumentError(
                    f"concatenated encoders take no argument {place!r}; known: pixel_values, {', '.join(known)}. "
                    "Layers and leading rows are chosen when they are put together"
                )
            if value is not None:
                name, argument = known[place]
                own[name][argument] = value
        maps: list[Tensor] = []
        for name, encoder in self.encoders.items():
            arguments = own[name] if pixel_values is None else {"pixel_values": pixel_values, **own[name]}
            found = self._map(name, encoder, arguments)
            if maps and found.shape[0] != maps[0].shape[0]:
                raise ArgumentError(
                    f"{found.shape[0]} images were given for {name!r}, {maps[0].shape[0]} for the first"
                )
            if maps and found.shape[2:] != maps[0].shape[2:]:
                found = functional.interpolate(found, size=maps[0].shape[2:], mode="bilinear", align_corners=False)
            maps.append(found)
        return BaseModelOutput(last_hidden_state=torch.cat(maps, dim=1).flatten(2).mT)

    def train(self, mode: bool = True) -> "ConcatenatedEncoders":
        """Switch training mode as in PyTorch; frozen encoders stay in evaluation mode."""
        super().train(mode)
        for encoder in self.encoders.values():
            encoder.train(mode and not freezing.is_frozen(encoder))
        return self

    def _bases(self) -> Iterator[tuple[str, Any]]:
        for name, encoder in self.encoders.items():
            yield name, freezing.unwrap(encoder)

    def _select(self, name: str) -> SelectFeatures:
        layers = self.layers.get(name)
        return SelectFeatures(layers=None if layers is None else tuple(layers), skip_first=self.skip_first[name])

    def _map(self, name: str, encoder: nn.Module, arguments: dict[str, Any]) -> Tensor:
        """The features of one encoder as a map (N, width, h, w)."""
        if "pixel_values" not in arguments:
            raise ArgumentError(
                f"the encoder {name!r} has no images: give {name}_pixel_values, or pixel_values for all"
            )
        shape = tuple(arguments["pixel_values"].shape)
        if len(shape) != 4:
            raise ArgumentError(
                f"the encoder {name!r} was given pixel values of shape {shape}, expected (images, channels, height, "
                "width)"
            )
        base, select = freezing.unwrap(encoder), self._select(name)
        dtype = anatomy.parameter_dtype(base)
        arguments = {argument: cast(value, dtype) for argument, value in arguments.items()}
        if select.layers is not None:
            arguments["output_hidden_states"] = True
        tracked = any(isinstance(value, Tensor) and value.requires_grad for value in arguments.values())
        with torch.no_grad() if freezing.is_frozen(encoder) and not tracked else nullcontext():
            output = freezing.run(encoder, arguments)
            rows = _rows(name, base, select, output)
        height, width = shape[2:]
        size = _size(rows.shape[1], height, width)
        if size is None:
            raise ArgumentError(
                f"the encoder {name!r} yields {rows.shape[1]} rows, which are no map of an image of {height} by "
                f"{width} pixels: leave out its class token and registers (skip_first={{{name!r}: 1}})"
            )
        return rows.mT.unflatten(2, size)  # type: ignore[no-any-return, no-untyped-call]


def adaptable(part: nn.Module) -> list[nn.Module]:
    """What adapters go on in a part: the encoders that are concatenated in it, else the part itself."""
    base = freezing.unwrap(part)
    return list(base.encoders.values()) if isinstance(base, ConcatenatedEncoders) else [part]


def replace(part: nn.Module, wrapped: Sequence[nn.Module]) -> None:
    """Put modules, adapters around them for example, in the places of the encoders concatenated in a part."""
    base: Any = freezing.unwrap(part)
    for name, module in zip(base.encoders, wrapped, strict=True):
        base.encoders[name] = module


def _check(encoders: Mapping[str, nn.Module], chosen: Mapping[str, Mapping[str, Any]]) -> None:
    if len(encoders) < 2:
        raise ArgumentError(f"there must be two encoders or more to concatenate, found {len(encoders)}")
    for name, encoder in encoders.items():
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ArgumentError(f"{name!r} cannot name an encoder: it must be an identifier, and no method of a dict")
        base = freezing.unwrap(encoder) if isinstance(encoder, nn.Module) else encoder
        if not isinstance(base, PreTrainedModel) or anatomy.main_input_name(base) != "pixel_values":
            found = type(base).__name__
            raise ArgumentError(
                f"the encoder {name!r} must be one of Hugging Face's that takes pixel_values, found {found}"
            )
    for what, by_name in chosen.items():
        unknown = next((name for name in by_name if name not in encoders), None)
        if unknown is not None:
            raise ArgumentError(f"{what}: there is no encoder {unknown!r}; there are {', '.join(encoders)}")


def _rows(name: str, base: nn.Module, select: SelectFeatures, output: Any) -> Tensor:
    """The chosen rows (N, T, width) of what an encoder returned."""
    last = output.last_hidden_state
    if last.dim() != 3 and (select.layers is not None or select.skip_first):
        raise ArgumentError(f"the encoder {name!r} yields maps: layers and skip_first are for encoders that yield rows")
    rows = anatomy.hidden_states(base, last if last.dim() != 3 else select({}, output))
    assert isinstance(rows, Tensor), "made of a tensor"
    return rows


def _size(rows: int, height: int, width: int) -> tuple[int, int] | None:
    """(h, w) of a map of so many rows that square patches of an image make, of which a rest may be cut off.

    There is at most one: more rows of patches mean smaller patches, and more columns too.
    """
    near = math.sqrt(rows * height / width)  # what h were if nothing was cut off; it is at most sqrt(2) as much
    for h in range(max(1, int(near) - 1), int(1.5 * near) + 2):
        w, rest = divmod(rows, h)
        if not rest and height * w < width * (h + 1) and width * h < height * (w + 1):
            return h, w
    return None
