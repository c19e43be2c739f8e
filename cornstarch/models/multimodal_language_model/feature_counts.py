"""1b. How many positions an input takes: the features it yields after the whole encoder module.

Arithmetic where it is enough; else the encoder module is asked, on the `meta` device where it can run there (shapes
only, no work), else once for real.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from cornstarch.errors import ArgumentError, MediaError
from cornstarch.models.multimodal_language_model import anatomy, compiling, freezing, kernels, library
from cornstarch.models.multimodal_language_model.anatomy import Rows
from cornstarch.models.multimodal_language_model.configuration import MultimodalProjectorConfig
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule

Inputs = dict[str, Any]
_MOST_REMEMBERED = 10_000
_EMPTY = CellType()


def _patches(config: Any, pixels: Tensor, extra: int) -> int:
    patch = config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return (pixels.shape[-2] // rows) * (pixels.shape[-1] // columns) + extra


# Features per input by arithmetic, from the encoder's config and its main input.
_ARITHMETIC: dict[str, Callable[[Any, Tensor], int]] = {
    "clip_vision_model": lambda config, pixels: _patches(config, pixels, 1),
    "siglip_vision_model": lambda config, pixels: _patches(config, pixels, 0),
    "vit": lambda config, pixels: _patches(config, pixels, 1),
    "dinov2": lambda config, pixels: _patches(config, pixels, 1),
    "dinov2_with_registers": lambda config, pixels: _patches(config, pixels, 1 + config.num_register_tokens),
    "whisper": lambda config, features: (features.shape[-1] + 1) // 2,
}


class FeatureCounter:
    """Counts an encoder's features per input and remembers the counts by what they depend on."""

    def __init__(self) -> None:
        self._remembered: dict[Any, list[int]] = {}
        self._parts: list[Any] = []
        self._state: Any = None

    def count(
        self, encoder: ModalEncoderModule, inputs: Inputs, number: int, process_one: Callable[[int], Inputs]
    ) -> list[int]:
        """Features of each input.

        Args:
            encoder: the encoder module.
            inputs: its arguments for all inputs at once, under the names its forward uses.
            number: how many inputs there are.
            process_one: the arguments for one input alone, for encoders that pack inputs into one tensor.

        Returns:
            One count per input.

        Raises:
            ArgumentError: if the encoder does not show which features belong to which input.
            MediaError: if the inputs are too short for the encoder.
        """
        known = _by_arithmetic(encoder, inputs, number)
        if known is not None:
            return known
        if all(value.shape[:1] == (number,) for value in _tensors(inputs).values()):
            # One input may become several (tiles) before the encoder: its features are those of all of them.
            return [sum(self._remember(encoder, _slice(inputs, index, number), 1)) for index in range(number)]
        counts = self._remember(encoder, inputs, number)
        if len(counts) == number:
            return counts
        alone = [sum(self._remember(encoder, process_one(index), 1)) for index in range(number)]
        if sum(alone) != sum(counts):
            raise ArgumentError(
                f"{type(freezing.unwrap(encoder.module)).__name__} yields {sum(counts)} features for {number} inputs "
                f"together but {sum(alone)} one by one; say how many each takes with num_feature_calculation_funcs"
            )
        return alone

    def count_runs(self, encoder: ModalEncoderModule, inputs: Inputs, runs: list[int]) -> list[list[int]]:
        """Features of each run of each input, where an input is several pictures, in the order of runs.

        Args:
            encoder: the encoder module.
            inputs: its arguments, with one entry along the first axis for each picture.
            runs: how many pictures each input is.

        Returns:
            For each input, one count per run.

        Raises:
            ArgumentError: if the encoder yields features for another number of pictures.
        """
        number = sum(runs)
        if all(value.shape[:1] == (number,) for value in _tensors(inputs).values()):
            counts = [sum(self._remember(encoder, _slice(inputs, index, number), 1)) for index in range(number)]
        else:
            counts = self._remember(encoder, inputs, number)
        if len(counts) != number:
            raise ArgumentError(
                f"{type(freezing.unwrap(encoder.module)).__name__} yields features for {len(counts)} pictures, the "
                f"text of the inputs has {number}; say how many each takes with num_feature_calculation_funcs"
            )
        rest = iter(counts)
        return [[next(rest) for _ in range(run)] for run in runs]

    def _remember(self, encoder: ModalEncoderModule, inputs: Inputs, number: int) -> list[int]:
        parts, state = [*encoder.modules(), *_callbacks(encoder)], _state_after_encoder(encoder)
        same = len(parts) == len(self._parts) and all(a is b for a, b in zip(parts, self._parts, strict=True))
        if not same or state != self._state:
            self._parts, self._state, self._remembered = parts, state, {}
        by_shape, by_value = (
            tuple((n, identity(v)) for n, v in sorted(inputs.items())) for identity in (_shape, _value)
        )
        for key in (by_shape, by_value):
            if key in self._remembered:
                return self._remembered[key]
        counts, from_shapes = _ask(encoder, inputs, number)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[by_shape if from_shapes else by_value] = counts
        return counts


def _by_arithmetic(encoder: ModalEncoderModule, inputs: Inputs, number: int) -> list[int] | None:
    if any(callback is not None for callback in _callbacks(encoder)):
        return None
    if encoder.projector is None or encoder.projector.is_custom:
        return None
    if not isinstance(encoder.projector.config, MultimodalProjectorConfig):
        return None  # one of transformers' own may pool
    module = freezing.unwrap(encoder.module)
    if type(encoder).forward is not ModalEncoderModule.forward or not library.is_found(type(module)):
        return None  # somebody's own class, whatever its config says
    hooked = (encoder, encoder.module, *module.modules(), *encoder.projector.modules())
    if any(part._forward_hooks or part._forward_pre_hooks for part in hooked) or _has_replaced_layers(module):
        return None
    for known in (anatomy.packed_feature_counts(module, inputs), anatomy.padded_feature_counts(module, inputs)):
        if known is not None and len(known) == number:
            _check_length(module, inputs, known)
            return _after_projector(encoder, known)
    main = inputs.get(anatomy.main_input_name(module))
    config = getattr(module, "config", None)
    rule = _ARITHMETIC.get(getattr(config, "model_type", ""))
    if rule is None or not isinstance(main, Tensor) or main.shape[0] != number:
        return None
    return _after_projector(encoder, [rule(config, main)] * number)


def _after_projector(encoder: ModalEncoderModule, rows: list[int]) -> list[int]:
    assert encoder.projector is not None, "the caller saw it"
    features = encoder.projector.features_per_input
    return rows if features is None else [features] * len(rows)


def _check_length(module: nn.Module, inputs: Inputs, counts: list[int]) -> None:
    """Refuse what is, padding included, too short for a single feature: the module could not run."""
    mask = inputs.get("attention_mask")
    if any(counts) or not isinstance(mask, Tensor):
        return
    if not any(anatomy.padded_feature_counts(module, {"attention_mask": torch.ones_like(mask)}) or [1]):
        raise MediaError(
            f"inputs of length {mask.shape[-1]} are too short for {type(module).__name__}, which yields no feature for "
            "them: leave them out, or pad them"
        )


def _has_replaced_layers(module: nn.Module) -> bool:
    """Whether classes stand in a Hugging Face module that its own code would not put there."""
    libraries = ("transformers.", "torch.", "peft.", "bitsandbytes.")
    return any(
        not type(inner).__module__.startswith(libraries)
        or (isinstance(inner, nn.ModuleList) and len({type(layer).__module__ for layer in inner}) > 1)
        for inner in module.modules()
    )


def _ask(encoder: ModalEncoderModule, inputs: Inputs, number: int) -> tuple[list[int], bool]:
    """The counts read off the module's features for `inputs`, and whether shapes alone gave them."""
    from_shapes = True
    with torch.no_grad():
        try:
            features = anatomy.rows_of(_run_on_meta(encoder, inputs))
        except Exception:  # a module that needs values, or a tensor PyTorch does not know of: run it for real
            features, from_shapes = anatomy.rows_of(_run(encoder, inputs)), False
    if isinstance(features, list):
        return [rows.shape[0] for rows in features], from_shapes
    if features.dim() == 3:
        return [features.shape[1]] * features.shape[0], from_shapes
    return [features.shape[0]] if number == 1 else [1] * features.shape[0], from_shapes


def _run_on_meta(encoder: ModalEncoderModule, inputs: Inputs) -> Rows:
    # Whole numbers are geometry (grids, sizes, masks), which a module may read; pixels and sounds are not.
    shapes = {
        name: torch.empty_like(value, device="meta")
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    return _stand_in(encoder, _on_meta)(**shapes)  # type: ignore[no-any-return]


def _run(encoder: ModalEncoderModule, inputs: Inputs) -> Rows:
    device = next((p.device for p in encoder.parameters() if not p.is_meta), torch.device("cpu"))
    placed = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
    with torch.random.fork_rng(devices=[]):
        return _stand_in(encoder, _filled)(**placed)  # type: ignore[no-any-return]


def _filled(weight: Tensor) -> Tensor:
    """A weight that can be computed with; how many features there are does not depend on its values."""
    return torch.zeros(weight.shape, dtype=weight.dtype) if weight.is_meta else weight


def _on_meta(weight: Tensor) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device="meta")


def _stand_in(encoder: ModalEncoderModule, weight: Callable[[Tensor], Tensor]) -> ModalEncoderModule:
    """A copy of the module around other weights, in evaluation mode: the module may be training in another thread.

    What its modules hold beside weights and modules (locks, files, the caller's own objects) is shared.
    """
    memo: dict[int, Any] = {id(buffer): weight(buffer).clone() for buffer in encoder.buffers()}
    memo |= {id(p): nn.Parameter(weight(p.detach()), requires_grad=False) for p in encoder.parameters()}
    for module in encoder.modules():
        for value in (*vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(value, Tensor):
                memo.setdefault(id(value), weight(value.detach()))
            elif not isinstance(getattr(value, "__self__", value), nn.Module | dict | list | tuple | set):
                memo.setdefault(id(value), value)
    try:
        made = copy.deepcopy(encoder, memo).eval()
        compiling.disable(made)  # for the meta device, and for every shape that is asked for
        kernels.disable(made)
        return made
    except Exception as error:
        name = type(freezing.unwrap(encoder.module)).__name__
        raise ArgumentError(
            f"{name} cannot be asked how many features it yields, as it cannot be copied ({error}): say it with "
            "num_feature_calculation_funcs"
        ) from error


def _callbacks(encoder: ModalEncoderModule) -> list[Any]:
    return [
        encoder.preprocess_callback,
        encoder.postprocess_module_callback,
        encoder.postprocess_projector_callback,
    ]


def _state_after_encoder(encoder: ModalEncoderModule) -> Any:
    """Plain values that the caller may change in place and that a count may depend on (`callback.ratio`)."""
    owners = [getattr(callback, "__self__", callback) for callback in _callbacks(encoder)]
    modules = [encoder.projector, *(owner for owner in owners if isinstance(owner, nn.Module))]
    owners += [inner for module in modules if module is not None for inner in module.modules()]
    values = [item for owner in owners for item in getattr(owner, "__dict__", {}).items() if item[0] != "training"]
    for callback in _callbacks(encoder):
        values += [("", cell.cell_contents) for cell in getattr(callback, "__closure__", None) or () if cell != _EMPTY]
    return [item for item in values if isinstance(item[1], int | float | str | None)]


def _tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def _slice(inputs: Inputs, index: int, number: int) -> Inputs:
    """The arguments of one input."""
    return {
        name: value[index : index + 1] if isinstance(value, Tensor | list) and len(value) == number else value
        for name, value in inputs.items()
    }


def _shape(value: Any) -> Any:
    """What a count that shapes gave depends on: shapes of pixels and sounds, and the value of everything else."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return tuple(value.shape), value.dtype
    return _value(value)


def _value(value: Any) -> Any:
    """What any count depends on at most."""
    if not isinstance(value, Tensor):
        return repr(value)
    content = value.detach().cpu().contiguous().view(torch.uint8 if value.dim() else value.dtype).numpy().tobytes()
    return tuple(value.shape), value.dtype, hashlib.blake2b(content).digest()
