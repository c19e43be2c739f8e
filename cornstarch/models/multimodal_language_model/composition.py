"""5b. The parts of a model under one roof: what trains, and what trainers and wrappers ask a Hugging Face model."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import (
    anatomy,
    checkpointing,
    compiling,
    freezing,
    manifest,
    quantized,
    routing,
)
from cornstarch.models.multimodal_language_model.configuration import MultimodalConfig
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule


class EncoderMapping(Mapping[str, nn.Module]):
    """A live view of a model's encoders by modality key: whatever stands at `{key}_encoder` now."""

    def __init__(self, model: nn.Module, keys: tuple[str, ...]) -> None:
        self._model = model
        self._keys = keys

    def __getitem__(self, key: str) -> nn.Module:
        if key not in self._keys:
            raise KeyError(key)
        return self._model.get_submodule(f"{key}_encoder")

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Composition(PreTrainedModel):  # type: ignore[misc]
    """Encoders by modality key and a language model, answering for all of them as one `PreTrainedModel` does.

    Where Hugging Face asks one model (its dtype, embeddings, generation config), the language model answers; what
    concerns every part reaches every part.

    Args:
        encoders: modality key to encoder, complete with projector.
        language_model: a causal language model, wrapped by PEFT or not.

    Raises:
        ArgumentError: for a key that would hide an attribute.
    """

    config_class = MultimodalConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    language_model: Any

    def __init__(self, encoders: Mapping[str, ModalEncoderModule], language_model: nn.Module) -> None:
        text_config = getattr(freezing.unwrap(language_model), "config", None)
        super().__init__(MultimodalConfig({key: encoder.config for key, encoder in encoders.items()}, text_config))
        self.loss_type = "ForCausalLM"  # Trainer counts a batch's labels by it
        self._modality_keys = tuple(encoders)
        for key, encoder in encoders.items():
            if f"{key}_encoder" in dir(self):
                raise ArgumentError(f"the modality key {key!r} would hide an attribute of the model; choose another")
            self.add_module(f"{key}_encoder", encoder)
        self.language_model = language_model
        quantized.keep_differentiable(self)

    @property
    def encoders(self) -> EncoderMapping:
        """Modality key to encoder, live: a wrapper put in a submodule's place is seen."""
        return EncoderMapping(self, self._modality_keys)

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """The parts by name (`{key}_encoder`, `{key}_projector`, `language_model`), in the order in which they run.

        Each is a list: the part itself, and callbacks with weights that go with it.
        """
        parts = {}
        for key, encoder in self._modal_encoders.items():
            parts[f"{key}_encoder"] = encoder.encoder_modules
            parts[f"{key}_projector"] = encoder.projector_modules
        return {**parts, "language_model": self.language_modules}

    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """Where each part came from: `path`, `revision` (the commit where it is known), `class`, and `part_of`.

        `part_of` is the class of the model that a part was taken out of. Of a part that was made here all but the class
        are None.
        """
        origin = getattr(self, "origin", None)
        return manifest.of({name: part for name, (part, *_) in self.parts.items()}, origin)

    @property
    def language_modules(self) -> list[nn.Module]:
        """The modules that `llm_mode` governs: the language model and the callback before it, if it is a module."""
        callback = getattr(self, "preprocess_llm_callback", None)
        return [self.language_model, *([callback] if isinstance(callback, nn.Module) else [])]

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """Names of tied weights to the names they are tied to, of all parts."""
        return {
            f"{name}.{key}": f"{name}.{value}"
            for name, part in self.named_modules()
            if isinstance(part, PreTrainedModel) and part is not self
            for key, value in (getattr(part, "all_tied_weights_keys", None) or {}).items()
        }

    def replace_part(self, name: str, module: nn.Module) -> None:
        """Put another module, a wrapper around it for example, in the place of a part.

        Args:
            name: as in `parts`.
            module: takes the place of the part itself; callbacks stay.

        Raises:
            ArgumentError: for an unknown name.
        """
        if name == "language_model":
            self.language_model = module
            return
        key, _, half = name.rpartition("_")
        if name not in self.parts:
            raise ArgumentError(f"the model has no part {name!r}; its parts: {', '.join(self.parts)}")
        setattr(self._modal_encoders[key], "module" if half == "encoder" else "projector", module)

    @property
    def _modal_encoders(self) -> dict[str, ModalEncoderModule]:
        """The encoder modules themselves, under whatever wraps them."""
        found = {}
        for key, wrapper in self.encoders.items():
            inner = next((module for module in wrapper.modules() if isinstance(module, ModalEncoderModule)), None)
            if inner is None:
                raise ArgumentError(f"{key}_encoder holds no ModalEncoderModule, found {type(wrapper).__name__}")
            found[key] = inner
        return found

    # --- what trains --------------------------------------------------------------------------------------------------

    def train(
        self,
        first: bool | Mapping[str, tuple[bool, bool]] = True,
        /,
        *,
        mode: bool | None = None,
        encoders_mode: Mapping[str, tuple[bool, bool]] | None = None,
        llm_mode: bool | None = None,
    ) -> Self:
        """Switch training mode, and say which parts train.

        `train()`, `train(True)`, `train(False)` and `train(mode=...)` switch the mode as everywhere in PyTorch and
        neither freeze nor thaw: frozen parts stay in evaluation mode. With `encoders_mode` or `llm_mode` the parts
        named are frozen or thawed. Frozen means no gradient, no optimizer state, dropout off.

        Args:
            first: the mode, or `encoders_mode`.
            mode: the mode, as a keyword.
            encoders_mode: modality key to (encoder trains, projector trains); keys that are not named stay as they
                are. If it is not given, all encoders and projectors follow `llm_mode`.
            llm_mode: whether the language model trains; None leaves it as it is.

        Returns:
            This model.

        Raises:
            ArgumentError: for an unknown key or a value of the wrong type; nothing is changed then.
        """
        if isinstance(first, Mapping):
            if encoders_mode is not None:
                raise ArgumentError("encoders_mode was given twice, in first position and as a keyword")
            encoders_mode, first = dict(first), True
        switch = first if mode is None else mode
        self._check_train_arguments((first, switch), encoders_mode, llm_mode)
        encoders = self._modal_encoders
        if encoders_mode is None and llm_mode is not None:
            encoders_mode = dict.fromkeys(encoders, (llm_mode, llm_mode))
        for key, (encoder_trains, projector_trains) in (encoders_mode or {}).items():
            for part in encoders[key].encoder_modules:
                (freezing.thaw if encoder_trains else freezing.freeze)(part)
            for part in encoders[key].projector_modules:
                (freezing.thaw if projector_trains else freezing.freeze)(part)
        if llm_mode is not None:
            for part in self.language_modules:
                (freezing.thaw if llm_mode else freezing.freeze)(part)
        super().train(switch)
        freezing.set_mode(self.language_modules, switch)
        return self

    def _check_train_arguments(self, modes: tuple[Any, Any], encoders_mode: Any, llm_mode: Any) -> None:
        for mode in modes:
            if not isinstance(mode, bool):
                raise ArgumentError(
                    f"train() takes a mode (True or False) or a dict of encoder modes, found {mode!r}; "
                    f"known encoder keys: {', '.join(self._modality_keys) or 'none'}"
                )
        if llm_mode is not None and not isinstance(llm_mode, bool):
            raise ArgumentError(f"llm_mode must be True, False or None, found {llm_mode!r}")
        if encoders_mode is None:
            return
        if not isinstance(encoders_mode, Mapping):
            raise ArgumentError(f"encoders_mode must be a dict of modality keys, found {encoders_mode!r}")
        self._check_keys(encoders_mode, "encoders_mode")
        for key, pair in encoders_mode.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(flag, bool) for flag in pair):
                raise ArgumentError(f"encoders_mode[{key!r}] must be (encoder, projector) as two bools, found {pair!r}")

    def _check_keys(self, keys: Mapping[str, Any], where: str) -> None:
        unknown = [key for key in keys if key not in self._modality_keys]
        if unknown:
            raise ArgumentError(
                f"{where}: unknown encoder key {unknown[0]!r}; known keys: {', '.join(self._modality_keys) or 'none'}"
            )

    # --- what trainers and wrappers ask a Hugging Face model ----------------------------------------------------------

    def _get_name(self) -> str:
        """A name by which Trainer tells causal language models, whose labels it shifts before it smooths them."""
        return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["llama"])

    def __repr__(self) -> str:
        return super().__repr__().replace(self._get_name(), type(self).__name__, 1)  # type: ignore[no-any-return]

    @classmethod
    def can_generate(cls) -> bool:
        """False: Hugging Face would make a generation config for the whole; the language model's own is used."""
        return False

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's own; wrappers such as PEFT look for it."""
        return self.language_model.prepare_inputs_for_generation(*args, **kwargs)

    @property
    def generation_config(self) -> Any:
        """The language model's generation config."""
        return getattr(freezing.unwrap(self.language_model), "generation_config", None)

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        freezing.unwrap(self.language_model).generation_config = config

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss can be divided by `num_items_in_batch`, so that accumulation changes nothing."""
        return "num_items_in_batch" in routing.language_model_names(self.language_model)

    @property
    def dtype(self) -> torch.dtype:
        """The language model's dtype; encoders may have another."""
        return anatomy.parameter_dtype(self.language_model) or torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """The language model's device."""
        return next((p.device for p in self.language_model.parameters()), torch.device("cpu"))

    def get_input_embeddings(self) -> nn.Module:
        """The language model's input embedding."""
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's input embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's head."""
        return self.language_model.get_output_embeddings()  # type: ignore[no-any-return]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize the language model's table, with its own method; modality tokens never need it."""
        return self.language_model.resize_token_embeddings(*args, **kwargs)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie what the parts' configs say is tied."""
        for part in self._hugging_face_parts:
            part.tie_weights(*args, **kwargs)

    def enable_input_require_grads(self) -> None:
        """Let the language model's embeddings require a gradient; checkpointing here needs it nowhere."""
        base: Any = freezing.unwrap(self.language_model)
        base.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        base: Any = freezing.unwrap(self.language_model)
        base.disable_input_require_grads()

    @property
    def _hugging_face_parts(self) -> list[PreTrainedModel]:
        parts = [encoder.module for encoder in self._modal_encoders.values()] + [self.language_model]
        return [part for part in map(freezing.unwrap, parts) if isinstance(part, PreTrainedModel)]

    # --- compilation --------------------------------------------------------------------------------------------------

    def compile(self, **options: Any) -> None:
        """Compile the layers of every part with `torch.compile`, each kind when it first runs; no number changes.

        What stands between layers depends on the batch and is left as it is, as are layers that are given a cache
        (`generate`). The names of weights stay what they are.

        Args:
            **options: for `torch.compile`. Left out, `dynamic` is True for the language model, whose every batch has
                another length, and for encoders and projectors what PyTorch finds that it has to be.
        """
        for encoder in self._modal_encoders.values():
            for part in (encoder.module, encoder.projector):
                if part is not None:
                    compiling.enable(part, **options)
        compiling.enable(self.language_model, **{"dynamic": True, **options})

    # --- gradient checkpointing ---------------------------------------------------------------------------------------

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute layers in the backward pass, in every part that builds a graph, frozen or not.

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`.
            **kwargs: `every_n_layers` and `offload`, as in `transformers`.

        Raises:
            ArgumentError: for `use_reentrant=True`.
        """
        options = {**(gradient_checkpointing_kwargs or {}), **kwargs}
        for encoder in self._modal_encoders.values():
            for part in (encoder.module, encoder.projector):
                if part is not None:
                    checkpointing.enable(part, **options)
        checkpointing.enable(self.language_model, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        checkpointing.disable(self)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The newer name of `gradient_checkpointing_enable` in `transformers`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        """The newer name of `gradient_checkpointing_disable` in `transformers`."""
        self.gradient_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any layer is recomputed in the backward pass."""
        return checkpointing.is_enabled(self)

    @property
    def is_activation_checkpointing(self) -> bool:
        """The newer name of `is_gradient_checkpointing` in `transformers`."""
        return self.is_gradient_checkpointing
