"""2. One modality's encoder: callback -> Hugging Face encoder -> callback -> projector -> callback.

Shapes: N inputs (images, sounds), T positions an input yields, E encoder width, D embedding width.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy, callbacks, freezing
from cornstarch.models.multimodal_language_model.anatomy import Features, Rows
from cornstarch.models.multimodal_language_model.configuration import MultimodalProjectorConfig
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector

Callback = Callable[..., Any]


class ModalEncoderModule(nn.Module):
    """Any encoder with hidden states, what may be done to its inputs and outputs, and its projector.

    The encoder is a Hugging Face model (wrapped by PEFT or not) or any `nn.Module` whose output is hidden states and
    that states `hidden_size`, in its config or itself, or comes with a projector.

    Args:
        model: the encoder.
        projector: from the encoder's width to the language model's; made by `MultimodalModel` if missing.
        additional_args: names of arguments for the callbacks that the encoder's own forward does not take, beside those
            that callbacks themselves name as their `additional_args`.
        preprocess_callback: `(inputs) -> inputs`, before the encoder; `inputs` is a dict of this encoder's arguments.
        postprocess_module_callback: `(inputs, output) -> output`, on what the encoder returned.
        postprocess_projector_callback: `(inputs, output) -> output`, on the projected features.
        module: another spelling of `model`.

    Raises:
        ArgumentError: if no encoder, or two, were given, or something given has the wrong type.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        projector: MultimodalProjector | None = None,
        additional_args: Sequence[str] = (),
        preprocess_callback: Callback | None = None,
        postprocess_module_callback: Callback | None = None,
        postprocess_projector_callback: Callback | None = None,
        *,
        module: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (model is None) == (module is None):
            raise ArgumentError("ModalEncoderModule takes one encoder, as `model` or as `module`")
        encoder = model if model is not None else module
        if not isinstance(encoder, nn.Module):
            raise ArgumentError(f"the encoder must be an nn.Module, found {type(encoder).__name__}")
        if projector is not None and not isinstance(projector, nn.Module):
            raise ArgumentError(f"the projector must be a MultimodalProjector, found {type(projector).__name__}")
        if projector is not None and not isinstance(projector, MultimodalProjector):
            projector = MultimodalProjector(None, projector)
        if isinstance(additional_args, str):
            raise ArgumentError(f"additional_args must be a sequence of names, found the string {additional_args!r}")
        self.module = encoder
        self.projector = projector
        wanted = (preprocess_callback, postprocess_module_callback, postprocess_projector_callback)
        own = [name for callback in wanted for name in callbacks.additional_args(callback)]
        self.additional_args = tuple(dict.fromkeys([*additional_args, *own]))
        self.preprocess_callback = preprocess_callback
        self.postprocess_module_callback = postprocess_module_callback
        self.postprocess_projector_callback = postprocess_projector_callback

    @property
    def config(self) -> Any:
        """The encoder's own config; None for a plain module that has none."""
        return getattr(freezing.unwrap(self.module), "config", None)

    @property
    def encoder_modules(self) -> list[nn.Module]:
        """The modules that the encoder's train flag governs: the encoder and callbacks before the projector."""
        before = (self.preprocess_callback, self.postprocess_module_callback)
        return [self.module, *(callback for callback in before if isinstance(callback, nn.Module))]

    @property
    def projector_modules(self) -> list[nn.Module]:
        """The modules that the projector's train flag governs: the projector and the callback after it."""
        candidates = (self.projector, self.postprocess_projector_callback)
        return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]

    def make_projector(
        self, width: int, text_dtype: torch.dtype, projection_type: str, activation: str, **options: Any
    ) -> None:
        """Make the projector if there is none, and check that it fits on both sides.

        Args:
            width: the language model's embedding width.
            text_dtype: the language model's dtype.
            projection_type: kind of projector to make.
            activation: its activation.
            **options: further arguments of `MultimodalProjectorConfig`.

        Raises:
            ArgumentError: if the projector's widths are not the encoder's and `width`, or the encoder's is unknown.
        """
        encoder = freezing.unwrap(self.module)
        if self.projector is None:
            encoder_width = anatomy.observed_width(encoder) or anatomy.feature_width(encoder)
            if encoder_width is None:
                raise ArgumentError(
                    f"{type(encoder).__name__} states no hidden_size, in its config or itself: set `hidden_size` "
                    "on it, pass a projector, or, of a model with several towers, pass one tower"
                )
            row_width = callbacks.output_width(self.postprocess_module_callback, encoder_width)
            config = MultimodalProjectorConfig(
                {"hidden_size": row_width}, {"hidden_size": width}, projection_type, activation, **options
            )
            reference = next(self.module.parameters(), torch.empty(0))
            # New weights are trained, so they get the more precise of the two dtypes they stand between.
            dtype = torch.promote_types(anatomy.parameter_dtype(self.module) or text_dtype, text_dtype)
            self.projector = MultimodalProjector(config).to(device=reference.device, dtype=dtype)
            self.projector.train(self.training)
        found_in, found_out = self.projector.widths
        reshaped = self.postprocess_module_callback is not None  # a callback may change the width (pixel shuffle)
        if found_in not in (None, anatomy.feature_width(encoder)) and not reshaped:
            # A config's word refuses nothing: what it does not know of shows when the encoder runs.
            encoder_width = anatomy.observed_width(encoder)
            if encoder_width not in (None, found_in):
                raise ArgumentError(f"the projector takes width {found_in}, the encoder yields width {encoder_width}")
        if found_out is not None and found_out != width and self.postprocess_projector_callback is None:
            raise ArgumentError(f"the projector yields width {found_out}, the language model embeds in width {width}")

    def train(self, mode: bool = True) -> "ModalEncoderModule":
        """Switch training mode as in PyTorch; frozen modules stay in evaluation mode."""
        super().train(mode)
        for modules in (self.encoder_modules, self.projector_modules):
            freezing.set_mode(modules, mode)
        self.training = mode and not freezing.is_frozen(self)
        return self

    def forward(self, **inputs: Any) -> Rows | Features:
        """Encode and project.

        Args:
            **inputs: this encoder's arguments, under the names its forward uses, and `additional_args`.

        Returns:
            (N, T, D); a list of (T_i, D) where inputs differ in how many features they yield; or (M, D) where the
            encoder packs its inputs and nothing tells them apart. `Features` with such rows if a callback returned
            `Features`.
        """
        if self.preprocess_callback is not None:
            inputs = self.preprocess_callback(inputs)
        output = self._encode(inputs)
        if callbacks.takes_lists(self.postprocess_module_callback):
            output = _apart(freezing.unwrap(self.module), output, inputs)
        if self.postprocess_module_callback is not None:
            output = self.postprocess_module_callback(inputs, output)
        return self.project(output, inputs)

    def project(self, output: Any, inputs: Mapping[str, Any] | None = None) -> Rows | Features:
        """The second half of a forward pass: an encoder's output, after its module callback, to features.

        Args:
            output: hidden states, or anything that holds them (see `anatomy.hidden_states`).
            inputs: the encoder's arguments, as far as they are known.

        Returns:
            Features, as `forward` returns them.
        """
        if isinstance(output, Features):
            rows = self.project(output.rows, inputs)
            return Features(anatomy.rows_of(rows), output.extras)
        encoder, inputs = freezing.unwrap(self.module), dict(inputs or {})
        width = None if self.projector is None else self.projector.widths[0]
        hidden = anatomy.hidden_states(encoder, output, width)
        counts, mask = None, None
        if isinstance(hidden, Tensor):
            hidden, counts = _counted(encoder, inputs, hidden)
        if self.projector is not None and self.projector.takes_mask:
            hidden, mask = self._whole_inputs(hidden, counts, inputs)
            counts = None  # of rows, which are no features
        if isinstance(hidden, list):
            features: Any = [self._project(rows) for rows in hidden]
        else:
            features = self._project(hidden, mask)
        if self.postprocess_projector_callback is not None:
            features = self.postprocess_projector_callback(inputs, features)
        if isinstance(features, tuple):
            features = list(features)
        if isinstance(features, list):
            return [rows.flatten(0, -2) for rows in features]
        if features.dim() > 3:
            features = features.flatten(1, -2)
        return self._by_input(features, hidden, counts, inputs)

    def _encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the encoder, without an autograd graph if nothing up to here trains."""
        encoder = freezing.unwrap(self.module)
        names = anatomy.forward_arguments(encoder).names
        unwanted = set(self.additional_args) - set(names)
        dtype = anatomy.input_dtype(encoder)
        arguments = {name: cast(value, dtype) for name, value in inputs.items() if name not in unwanted}
        tracked = any(isinstance(value, Tensor) and value.requires_grad for value in arguments.values())
        # Hooks of others (input gradients for checkpointing) would start a graph in a frozen encoder.
        free = freezing.is_frozen(self.module) and not tracked
        with torch.no_grad() if free else nullcontext():
            return freezing.run(self.module, arguments)

    def _whole_inputs(
        self, hidden: Rows, counts: list[int] | None, inputs: Mapping[str, Any]
    ) -> tuple[Rows, Tensor | None]:
        """Rows (N, T, E) for a projector that takes an input as a whole, and where they are no padding (N, T).

        None stands for a mask that is True everywhere.
        """
        if isinstance(hidden, Tensor) and hidden.dim() == 2:
            if counts is None and not self._has_one_row_each(hidden, inputs):
                name = type(freezing.unwrap(self.module)).__name__
                raise ArgumentError(
                    f"the projector takes each input as a whole, but {name} packs its inputs and nothing tells which "
                    "rows belong to which: let a postprocess_module_callback return a list with one (rows, width) "
                    "tensor per input"
                )
            hidden = list(torch.split(hidden, counts or 1))
        if isinstance(hidden, list):
            counts = [rows.shape[0] for rows in hidden]
            hidden = pad_sequence(hidden, batch_first=True) if hidden else hidden
        if counts is None or isinstance(hidden, list) or all(count == hidden.shape[1] for count in counts):
            return hidden, None
        places = torch.arange(hidden.shape[1], device=hidden.device)
        return hidden, places < torch.tensor(counts, device=hidden.device)[:, None]

    def _has_one_row_each(self, rows: Tensor, inputs: Mapping[str, Any]) -> bool:
        """Whether rows (M, width) are one of each input."""
        main = inputs.get(anatomy.main_input_name(freezing.unwrap(self.module)))
        return isinstance(main, Tensor) and main.shape[0] == rows.shape[0]

    def _project(self, hidden: Tensor, mask: Tensor | None = None) -> Any:
        if self.projector is None:
            raise ArgumentError("this encoder has no projector yet: build a MultimodalModel with it, or pass one")
        wanted, found = self.projector.widths[0], hidden.shape[-1]
        if wanted is not None and wanted != found:
            raise ArgumentError(
                f"the projector takes width {wanted}, the encoder (and its callback) gave width {found}"
            )
        further = {} if mask is None else {"mask": mask}
        return self.projector(cast(hidden, anatomy.parameter_dtype(self.projector)), **further)

    def _by_input(self, features: Tensor, hidden: Rows, counts: list[int] | None, inputs: Mapping[str, Any]) -> Rows:
        """Tell inputs apart where the features do not show it: trim padding, split what was packed."""
        if counts is not None and isinstance(hidden, Tensor) and features.shape[:-1] == hidden.shape[:-1]:
            return _split(features, counts)
        if features.dim() == 2 and self._has_one_row_each(features, inputs):
            return features.unsqueeze(1)  # one vector an input
        return features


def _counted(encoder: nn.Module, inputs: Mapping[str, Any], hidden: Tensor) -> tuple[Tensor, list[int] | None]:
    """Hidden states, and how many of their rows belong to each input, where inputs differ in that."""
    packed = anatomy.packed_feature_counts(encoder, inputs)
    if packed is not None and hidden.dim() == 3 and hidden.shape[0] == 1 and len(packed) > 1:
        hidden = hidden.squeeze(0)  # inputs one behind the other, under a batch axis that says nothing
    if hidden.dim() == 2:
        return hidden, packed if packed is not None and sum(packed) == hidden.shape[0] else None
    padded = anatomy.padded_feature_counts(encoder, inputs)
    mask = anatomy.mask_of_rows(inputs, hidden) if padded is None else None
    if mask is not None:
        padded = mask.sum(-1).tolist()
        if (mask[:, 1:] & ~mask[:, :-1]).any():  # padding first
            order = mask.int().sort(dim=-1, descending=True, stable=True).indices
            hidden = hidden.gather(1, order.unsqueeze(-1).expand_as(hidden))
    counts = [min(count, hidden.shape[1]) for count in padded or []]
    return hidden, counts if any(count < hidden.shape[1] for count in counts) else None


def _apart(encoder: nn.Module, output: Any, inputs: Mapping[str, Any]) -> Any:
    """What an encoder returned, as a list with the rows of each input where these are padded or packed."""
    hidden = anatomy.hidden_states(encoder, output)
    if isinstance(hidden, list):
        return hidden
    hidden, counts = _counted(encoder, inputs, hidden)
    return output if counts is None else _split(hidden, counts)


def _split(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of each input: packed (M, width), or padded (N, T, width)."""
    if rows.dim() == 2:
        return list(torch.split(rows, counts))
    return [one[:count] for one, count in zip(rows, counts, strict=True)]


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A floating-point tensor in the dtype of the weights it meets; under autocast PyTorch sees to that itself.

    Args:
        value: anything; what is no such tensor stays as it is.
        dtype: of the weights; None leaves the value as it is.

    Returns:
        The value.
    """
    if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    device = value.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return value if autocast else value.to(dtype)
