"""5. The model: encode, embed, merge, language model, loss, generate.

Shapes: B samples, S positions, D embedding width, V vocabulary.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from cornstarch.errors import ArgumentError, ModalityMismatchError
from cornstarch.models.multimodal_language_model import (
    anatomy,
    callbacks,
    freezing,
    generation,
    labelled_head,
    merge,
    ready_mask,
    routing,
)
from cornstarch.models.multimodal_language_model.anatomy import Features, Rows
from cornstarch.models.multimodal_language_model.composition import Composition
from cornstarch.models.multimodal_language_model.configuration import MultimodalProjectorConfig
from cornstarch.models.multimodal_language_model.encoder import Callback, ModalEncoderModule
from cornstarch.models.multimodal_language_model.signature import NamesItsInputs


class MultimodalModel(Composition):
    """Any encoders, a projector each, and one causal language model, called like any `nn.Module`.

    Args:
        encoders: modality key to encoder; encoders without a projector get one.
        language_model: a causal language model of Hugging Face's, wrapped by PEFT or not.
        preprocess_llm_callback: `(inputs) -> inputs`, just before the language model. It is given everything the model
            was called with (and their names as `called_with`), `inputs_embeds` with the features in place,
            `modality_masks` (modality key to a mask (B, S) of its positions), and what encoders add to their features
            (`Features`); it may change or add arguments of the language model. Arguments that no part takes reach it
            if its `additional_args` names them.
        init_projector_type: kind of the projectors made here, see `MultimodalProjectorConfig`.
        init_activation: activation of the projectors made here.

    Raises:
        ArgumentError: for a key that cannot name a submodule, a part of the wrong type, or a projector that does not
            fit; the message has both sizes.
    """

    def __init__(
        self,
        encoders: dict[str, ModalEncoderModule],
        language_model: nn.Module,
        preprocess_llm_callback: Callback | None = None,
        init_projector_type: str = "linear",
        init_activation: str = "gelu",
    ) -> None:
        MultimodalProjectorConfig(projection_type=init_projector_type, activation=init_activation)  # checks the names
        _check_parts(encoders, language_model)
        width = anatomy.embedding_width(language_model)
        text_dtype = anatomy.parameter_dtype(language_model) or torch.get_default_dtype()
        for key, encoder in encoders.items():
            try:
                encoder.make_projector(width, text_dtype, init_projector_type, init_activation)
            except ArgumentError as error:
                raise ArgumentError(f"modality {key!r}: {error}") from None
        super().__init__(encoders, language_model)
        self._first_position = anatomy.first_position(language_model)
        self._most_positions = anatomy.most_positions(freezing.unwrap(language_model))
        self.preprocess_llm_callback = preprocess_llm_callback
        self.origin: dict[str, Any] | None = None
        self.train(language_model.training)  # parts from `from_pretrained` come in evaluation mode

    # --- the parts ----------------------------------------------------------------------------------------------------

    @property
    def _input_names(self) -> tuple[str, ...]:
        reserved = routing.language_model_names(self.language_model)
        names = dict.fromkeys(sorted(reserved))
        for key, encoder in self._modal_encoders.items():
            names.update(dict.fromkeys(routing.encoder_names(key, encoder, reserved)))
        names.update(dict.fromkeys(callbacks.additional_args(self.preprocess_llm_callback)))
        return (*(name for name in names if name.isidentifier()), "output_logits", "shift_labels")

    @property
    def most_positions(self) -> int | None:
        """How many positions the language model has in a table; None where any number will do."""
        return self._most_positions

    @property
    def modality_token_ids(self) -> dict[str, int]:
        """Modality key to the id that marks its positions in `input_ids`."""
        return dict(self.config.modality_token_ids)

    def set_modality_token_ids(self, token_ids: Mapping[str, int]) -> None:
        """Say which id marks the positions of each modality; ids may lie beyond the embedding table.

        Args:
            token_ids: modality key to id; keys that are not named keep theirs.

        Raises:
            ArgumentError: for an unknown key, an id that is no non-negative integer, or an id used twice.
        """
        self._check_keys(token_ids, "set_modality_token_ids")
        for key, token_id in token_ids.items():
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise ArgumentError(f"modality {key!r}: a token id is a non-negative integer, found {token_id!r}")
        merged = {**self.config.modality_token_ids, **token_ids}
        if len(set(merged.values())) != len(merged):
            raise ArgumentError(f"every modality needs a token id of its own, found {merged}")
        self.config.modality_token_ids = merged

    # --- forward ------------------------------------------------------------------------------------------------------

    @NamesItsInputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> Any:
        """Encode, merge, and run the language model.

        Args:
            input_ids: (B, S), with each modality's id at the positions of its features.
            attention_mask: (B, S) or ready 4-D; what the language model sees, and what positions follow.
            labels: (B, S); -100 carries no loss. Labels at modality positions are ignored.
            inputs_embeds: (B, S, D), instead of looking up `input_ids`; with `input_ids` features are still merged.
            encoder_outputs: modality key to an encoder's output (after its module callback, before its projector),
                instead of its input.
            **inputs: encoders' inputs (`pixel_values`, `input_features`, ...), arguments of the language model,
                `output_logits=True` to get logits in training mode with labels too, and `shift_labels` (B, S) in place
                of labels, as some collators make them: at each position the label of the next.

        Returns:
            The language model's own output class, with `loss` (None without labels) and `logits` (B, S, V), which are
            None in training mode with labels.

        Raises:
            UnknownArgumentError: for a keyword that no part takes.
            ModalityMismatchError: if positions and features do not pair.
            ArgumentError: if there is nothing to run on, the language model does not heed a ready mask, or
                `return_dict=False` is asked for.
        """
        output_logits = bool(inputs.pop("output_logits", False))
        if inputs.pop("return_dict", None) is False:
            raise ArgumentError("return_dict=False is not supported; call .to_tuple() on the output")
        if inputs.get("shift_labels") is not None:  # as everywhere in `transformers`, they go before labels
            _check_shapes(input_ids, inputs_embeds, inputs["shift_labels"])
            labels = merge.unshifted(inputs["shift_labels"])
        inputs.pop("shift_labels", None)
        reserved = routing.language_model_names(self.language_model)
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        prepared = {**given, "labels": labels, "inputs_embeds": inputs_embeds, **inputs}
        routing.refuse_unknown(inputs, self._input_names)
        routed, rest = routing.route(self._modal_encoders, reserved, prepared, _ready(encoder_outputs))
        rest.pop("input_ids", None)
        rest = routing.name_cache(self.language_model, rest)
        features = self._encode(routed, encoder_outputs)
        masks = self._modality_masks(input_ids)
        inputs_embeds, kept_labels = self._merge(input_ids, inputs_embeds, labels, features, masks)
        if "num_items_in_batch" in rest:
            merge.warn_if_counted(labels, kept_labels, list(features))
        labels = kept_labels

        arguments = self._with_defaults({**rest, "inputs_embeds": inputs_embeds, "labels": labels})
        arguments = self._preprocess_llm(arguments, input_ids, inputs, features, masks)
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if not self.training or labels is None or output_logits:
            return self.language_model(**arguments)
        output = labelled_head.run(self.language_model, arguments)
        return type(output)(**{name: value for name, value in output.items() if name != "logits"})

    def _with_defaults(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Positions that follow the attention mask, and no cache where none is read, unless the caller said else."""
        taken = anatomy.language_model_arguments(freezing.unwrap(self.language_model)).names
        merge.check_positions(self._most_positions, self._first_position, arguments)
        embeds, mask = arguments["inputs_embeds"], arguments.get("attention_mask")
        if ready_mask.is_ready(mask):
            ready_mask.check(self.language_model, embeds)
            arguments["attention_mask"] = ready_mask.additive(mask, embeds.dtype)
        if "position_ids" in taken and "position_ids" not in arguments:
            positions = self._positions(mask, embeds, any(name in arguments for name in anatomy.CACHE_NAMES))
            arguments |= {} if positions is None else {"position_ids": positions}
        if "use_cache" in taken and self.training and not any(name in arguments for name in anatomy.CACHE_NAMES):
            arguments.setdefault("use_cache", False)
        return arguments

    def _positions(self, mask: Any, embeds: Tensor, cached: bool) -> Tensor | None:
        """Position ids (B or 1, S) that a mask stands for; None where they are the language model's business."""
        if not isinstance(mask, Tensor) or freezing.learns_prompt(self.language_model):
            return None
        if mask.dim() == 2:
            return merge.positions_from_mask(mask, embeds.shape[1]) + self._first_position
        if cached:  # only the cache knows how many positions it holds
            return None
        return torch.arange(embeds.shape[1], device=embeds.device)[None] + self._first_position

    def _encode(
        self, routed: dict[str, dict[str, Any]], outputs: Mapping[str, Any] | None
    ) -> dict[str, Rows | Features]:
        """Features of every modality that has an input or a ready encoder output."""
        outputs = outputs or {}
        self._check_keys(outputs, "encoder_outputs")
        features = {}
        for key, encoder in self.encoders.items():
            if outputs.get(key) is not None:
                features[key] = self._modal_encoders[key].project(outputs[key], routed.get(key))
            elif key in routed:
                features[key] = encoder(**routed[key])
        return features

    def _modality_masks(self, input_ids: Tensor | None) -> dict[str, Tensor]:
        """Modality key to a mask (B, S) of its positions."""
        if not isinstance(input_ids, Tensor):
            return {}
        return {key: input_ids == token_id for key, token_id in self.modality_token_ids.items()}

    def _merge(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        labels: Tensor | None,
        features: Mapping[str, Rows | Features],
        masks: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Embed the text and put features and ignored labels at the modalities' positions."""
        _check_shapes(input_ids, inputs_embeds, labels)
        if input_ids is None:
            if inputs_embeds is None:
                raise ArgumentError("forward needs input_ids or inputs_embeds, found neither")
            if features:
                raise ModalityMismatchError(
                    f"inputs of {', '.join(features)} were given without input_ids, which say where they go"
                )
            return inputs_embeds, labels
        token_ids = self.modality_token_ids
        missing = [key for key in features if key not in token_ids]
        if missing:
            raise ModalityMismatchError(
                f"inputs of {missing[0]!r} were given, but no token id marks its positions: create a "
                "MultimodalProcessor with this model, or call set_modality_token_ids"
            )
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, masks)
        numbers = torch.stack([mask.sum(-1) for mask in masks.values()]).tolist() if masks else []
        for (key, mask), positions in zip(masks.items(), numbers, strict=True):
            if key not in features:
                merge.check_absent(key, positions)
                continue
            rows, per_input = merge.flatten_features(anatomy.rows_of(features[key]))
            merge.check_pairing(key, positions, rows.shape[0], per_input)
            if rows.shape[-1] != inputs_embeds.shape[-1]:
                raise ArgumentError(
                    f"modality {key!r}: its features have width {rows.shape[-1]}, the language model embeds in width "
                    f"{inputs_embeds.shape[-1]}"
                )
            inputs_embeds = merge.scatter_features(inputs_embeds, mask, rows)
            labels = labels if labels is None else merge.mask_labels(labels, mask)
        return inputs_embeds, labels

    def _embed(self, input_ids: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """The language model's embeddings (B, S, D) of `input_ids` with every modality id replaced by 0."""
        text_ids = input_ids
        for mask in masks.values():
            text_ids = text_ids.masked_fill(mask, 0)
        embedding: Any = self.get_input_embeddings()
        try:
            embeds: Tensor = embedding(text_ids)
        except IndexError:
            rows = embedding.weight.shape[0]
            beyond = sorted(set(text_ids[(text_ids >= rows) | (text_ids < 0)].tolist()))
            raise ArgumentError(
                f"input_ids hold {beyond[:8]}, outside the embedding table of {rows} rows, and these are no modality "
                f"ids (known: {self.modality_token_ids or 'none; create a MultimodalProcessor with this model'})"
            ) from None
        return embeds

    def _preprocess_llm(
        self,
        arguments: dict[str, Any],
        input_ids: Tensor | None,
        inputs: Mapping[str, Any],
        features: Mapping[str, Rows | Features],
        masks: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Let the caller's callback see everything and change what the language model gets."""
        if self.preprocess_llm_callback is None:
            return arguments
        own = callbacks.additional_args(self.preprocess_llm_callback)
        arguments = {name: value for name, value in arguments.items() if name not in own}
        context = {name: value for name, value in inputs.items() if value is not None and name not in arguments}
        for key, encoded in features.items():
            added = encoded.extras if isinstance(encoded, Features) else {}
            context |= {f"{key}_{name}": value for name, value in added.items()}
        called_with = frozenset(name for name, value in inputs.items() if value is not None)
        context |= {"input_ids": input_ids, "modality_masks": dict(masks), "called_with": called_with}
        returned = self.preprocess_llm_callback({**context, **arguments})
        return {name: value for name, value in returned.items() if name not in context}

    # --- generate -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Mapping[str, Any] | None = None,
        **inputs: Any,
    ) -> Any:
        """Generate with the language model's own `generate`, on the merged prompt.

        Args:
            input_ids: (B, S) prompts, left-padded.
            attention_mask: (B, S).
            encoder_outputs: as in `forward`.
            **inputs: encoders' inputs, and everything `transformers.GenerationMixin.generate` takes.

        Returns:
            (B, S + new) prompt and new tokens, or Hugging Face's generation output with such `sequences`.

        Raises:
            ArgumentError: if there is no prompt, or the language model cannot go on from embeddings (nor can assisted
                decoding, prompt lookup and a prompt read in chunks).
            ModalityMismatchError: if positions and features do not pair.
        """
        input_ids = inputs.pop("inputs", None) if input_ids is None else input_ids
        if attention_mask is not None and attention_mask.dim() == 2 and not attention_mask[:, -1].all():
            warnings.warn("right-padded prompts: the first new token follows padding; pad on the left", stacklevel=2)
        if input_ids is None:
            raise ArgumentError("generate needs input_ids")
        generation.check(self.language_model)
        generation.check_way(self.language_model, inputs)
        reserved = routing.language_model_names(self.language_model)
        prepared = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        routed, rest = routing.route(self._modal_encoders, reserved, prepared, _ready(encoder_outputs))
        del rest["input_ids"]
        rest = routing.name_cache(self.language_model, rest)
        # To `generate` None is a value: it overrules what the generation config says.
        rest |= {name: None for name, value in inputs.items() if value is None and hasattr(GenerationConfig(), name)}
        features, masks = self._encode(routed, encoder_outputs), self._modality_masks(input_ids)
        inputs_embeds, _ = self._merge(input_ids, inputs.get("inputs_embeds"), None, features, masks)
        arguments = {**rest, "inputs_embeds": inputs_embeds}
        if self._first_position:  # `generate` would count from 0
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            arguments.setdefault("position_ids", merge.positions_from_mask(mask, mask.shape[-1]) + self._first_position)
        if getattr(self.config.text_config, "output_router_logits", False):
            arguments.setdefault("output_router_logits", False)  # a loss of routers, which fails on cached positions
        before = dict(arguments)
        # Callbacks are given the whole prompt, of which a cache may hold a part.
        cache = {name: arguments.pop(name) for name in anatomy.CACHE_NAMES if name in arguments}
        seen = {name: value for name, value in inputs.items() if name not in anatomy.CACHE_NAMES}
        arguments = {**self._preprocess_llm(arguments, input_ids, seen, features, masks), **cache}
        arguments, once = generation.split_prompt_arguments(before, arguments)
        new = int(arguments.get("max_new_tokens") or 0)
        merge.check_positions(self._most_positions, self._first_position, arguments, new)
        with generation.with_prompt(self.language_model, once, list(masks.values()), input_ids):
            return self._generate(arguments, input_ids, attention_mask)

    def _generate(self, arguments: dict[str, Any], input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        """The language model's own `generate` on embeddings, with the prompt's ids in front of what it generates."""
        if generation.processors_ignore_unknown_ids():
            return self.language_model.generate(**arguments, input_ids=input_ids)
        known = generation.ids_within_vocabulary(
            input_ids, attention_mask, self._vocabulary, self._padding_id(arguments)
        )
        if arguments.get("streamer") is not None:
            arguments["streamer"] = generation.PromptStreamer(arguments["streamer"], input_ids)
        return generation.restore_prompt(self.language_model.generate(**arguments, input_ids=known), input_ids)

    @property
    def _vocabulary(self) -> int:
        base: Any = freezing.unwrap(self.language_model)
        head = base.get_output_embeddings()
        return int((head if head is not None else base.get_input_embeddings()).weight.shape[0])

    def _padding_id(self, arguments: Mapping[str, Any]) -> int | None:
        config = arguments.get("generation_config") or self.generation_config
        padding = arguments.get("pad_token_id", getattr(config, "pad_token_id", None))
        return int(padding) if padding is not None else None

    # --- saving -------------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Save weights (safetensors), configs, token ids and what is frozen, so that a former save is never lost.

        Args:
            save_directory: made if it is not there; files of others in it are left alone.
            state_dict: what to save instead of `state_dict()`, under the same names.
            is_main_process: False makes this call do nothing, for all but one process.
            max_shard_size: bytes, or a string such as `"5GB"`, above which weights are split into several files.
        """
        from cornstarch.models.multimodal_language_model import pretrained

        if is_main_process:
            pretrained.save(self, Path(save_directory), state_dict, max_shard_size)

    @classmethod
    def from_pretrained(
        cls,
        save_directory: str | Path,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        custom_objects: Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> "MultimodalModel":
        """Load what `save_pretrained` (or `transformers.Trainer`) saved, in evaluation mode.

        Args:
            save_directory: the folder.
            dtype: for all weights; None keeps each as it was saved.
            device: where the model goes; None is the CPU.
            custom_objects: the caller's own callbacks, encoders and projectors, by their place in the model, such as
                `{"vision_encoder.postprocess_module_callback": function}`.
            attn_implementation: for every part, such as `"sdpa"`.
            trust_remote_code: run code that came with a part.

        Returns:
            The model.

        Raises:
            CheckpointError: if a file is missing or damaged, or something of the caller's own must be given again.
        """
        from cornstarch.models.multimodal_language_model import pretrained

        model = pretrained.load(
            cls,
            Path(save_directory),
            dtype=dtype,
            custom_objects=custom_objects or {},
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        return model if device is None else model.to(device)  # type: ignore[no-any-return]

    @classmethod
    def from_pretrained_multimodal_model(cls, name_or_path: str | Path, **kwargs: Any) -> "MultimodalModel":
        """Build the model out of a pretrained Hugging Face multimodal model, taken apart by structure.

        Shapes that are known: LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3,
        Idefics3 and SmolVLM, Qwen2-Audio.

        Args:
            name_or_path: a folder or a name on the hub.
            **kwargs: for the `from_pretrained` of Hugging Face's class.

        Returns:
            The model, with the original's weights and token ids.

        Raises:
            ArgumentError: if the model has a shape that cannot be taken apart.
        """
        from cornstarch.models.multimodal_language_model import importing

        return importing.from_hugging_face(name_or_path, **kwargs)


def _check_shapes(input_ids: Any, inputs_embeds: Any, labels: Any) -> None:
    """Refuse what is no (B, S) batch of ids, or has another shape than the rest of the batch."""
    shape: tuple[int, ...] | None = None
    for name, value in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds), ("labels", labels)):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise ArgumentError(f"{name} must be a tensor, found {type(value).__name__}")
        if name == "input_ids" and (value.dim() != 2 or value.is_floating_point()):
            found = f"{value.dtype} of shape {tuple(value.shape)}"
            raise ArgumentError(f"input_ids must be whole numbers of shape (batch, positions), found {found}")
        if shape is not None and tuple(value.shape[:2]) != shape:
            raise ArgumentError(f"{name} must have shape {shape} as the rest of the batch, found {tuple(value.shape)}")
        shape = tuple(value.shape[:2])


def _ready(encoder_outputs: Mapping[str, Any] | None) -> list[str]:
    if encoder_outputs is not None and not isinstance(encoder_outputs, Mapping):
        raise ArgumentError(f"encoder_outputs must be a dict of modality keys, found {type(encoder_outputs).__name__}")
    return [key for key, output in (encoder_outputs or {}).items() if output is not None]


def _check_parts(encoders: Any, language_model: Any) -> None:
    if not isinstance(encoders, Mapping):
        raise ArgumentError(f"encoders must be a dict of modality key to ModalEncoderModule, found {encoders!r}")
    for key, encoder in encoders.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ArgumentError(f"a modality key names a submodule, so it must be an identifier, found {key!r}")
        if not isinstance(encoder, ModalEncoderModule):
            raise ArgumentError(
                f"encoders[{key!r}] must be a ModalEncoderModule, found {type(encoder).__name__}; wrap it: "
                f"ModalEncoderModule({type(encoder).__name__}(...))"
            )
    if not isinstance(language_model, nn.Module) or not hasattr(language_model, "get_input_embeddings"):
        raise ArgumentError(
            f"language_model must be a Hugging Face causal language model, found {type(language_model).__name__}"
        )
    for part in (language_model, *(encoder.module for encoder in encoders.values())):
        if freezing.is_mixed(part):
            raise ArgumentError("get_peft_model(..., mixed=True) is not supported; wrap the part without mixed=True")
    if "labels" not in anatomy.forward_arguments(freezing.unwrap(language_model)).names:
        raise ArgumentError(
            f"{type(freezing.unwrap(language_model)).__name__} takes no labels: it has no language modelling head. "
            "Load it with AutoModelForCausalLM; a backbone that has no such class goes with its head into "
            "BackboneWithHead.of(backbone, lm_head)"
        )
    if getattr(getattr(freezing.unwrap(language_model), "config", None), "return_dict", True) is False:
        raise ArgumentError("the language model's config has return_dict=False, which is not supported; set it to True")
    reason = anatomy.why_not_by_embeddings(freezing.unwrap(language_model))
    if reason is not None:
        raise ArgumentError(f"{type(freezing.unwrap(language_model)).__name__} cannot be composed: {reason}")
