"""5f. A causal language model out of a text backbone and a head, for backbones that transformers has no such class for.

The text sides of many multimodal models (Qwen2-VL, Qwen3-VL, GLM-4V, ...) come without a causal language model of their
own: only the whole has a head. Here the backbone is used as it is, and what its config says of the head is done behind
it.

Shapes: B samples, S positions, D width, V vocabulary.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy

# Where configs state how many experts there are, and how many of them a token goes to.
_NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_OF_A_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk")
# What transformers asks the class of a model: the backbone's answers are the whole's.
_FLAGS = ("_supports_", "_can_compile_", "_compatible_", "_is_stateful")
# What some backbones add to the rows of an image behind their first layers: where, and what.
_WHERE_BEHIND_LAYERS, _ADDED_BEHIND_LAYERS = "visual_pos_masks", "deepstack_visual_embeds"


class BackboneWithHead(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A text backbone of transformers and a linear head behind it; see `with_head` and `of`.

    Args:
        config: the backbone's own config.
    """

    backbone_class: type[PreTrainedModel]
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.model: Any = self.backbone_class(config)
        self.lm_head = nn.Linear(anatomy.width_before_head(config), config.vocab_size, bias=False)
        embedding = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    @classmethod
    def of(
        cls, backbone: PreTrainedModel, lm_head: nn.Linear, generation_config: GenerationConfig | None = None
    ) -> "BackboneWithHead":
        """Put modules that are there together; no weight is copied.

        Args:
            backbone: a text backbone of transformers. Its config is the result's, and is told whether the head is tied.
            lm_head: from the backbone's width to the vocabulary, without a bias.
            generation_config: how to generate; of the backbone's config if not given.

        Returns:
            The language model, in the backbone's mode.

        Raises:
            ArgumentError: if the backbone is none, or the head is no linear layer without a bias.
        """
        if not isinstance(lm_head, nn.Linear) or lm_head.bias is not None:
            raise ArgumentError(f"the head must be an nn.Linear without a bias, found {lm_head!r}")
        made_by = with_head(type(backbone))
        tied = lm_head.weight is backbone.get_input_embeddings().weight
        backbone.config.tie_word_embeddings = tied
        with torch.device("meta"):
            made = made_by(backbone.config)
        made.model, made.lm_head = backbone, lm_head
        if generation_config is not None:
            made.generation_config = generation_config
        return made.train(backbone.training)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | MoeCausalLMOutputWithPast:
        """Run the backbone and the head.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), or ready 4-D.
            position_ids: (B, S), or (3, B, S) where a position has three axes.
            inputs_embeds: (B, S, D), instead of `input_ids`.
            labels: (B, S); -100 carries no loss.
            use_cache: give the cache back.
            output_router_logits: of a mixture of experts: give the routers' logits back, and add the loss that
                balances experts, in which padding has no part; what the config says if not given.
            logits_to_keep: logits of this many last positions, or of these: (K,) of all samples, (B, K) of each, or
                (B, S) booleans, for which logits are (K, V); 0 for all.
            **kwargs: further arguments of the backbone (its cache, features for its layers), and `num_items_in_batch`.

        Returns:
            Loss (None without labels), logits (B, S, V), and what else the backbone returned.
        """
        if output_router_logits is None:
            output_router_logits = getattr(self.config, "output_router_logits", False)
        if self._has_experts:
            kwargs["output_router_logits"] = output_router_logits
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache}
        counted = {"num_items_in_batch": kwargs.pop("num_items_in_batch", None)}
        kwargs.pop("return_dict", None)
        output = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **given, **kwargs)
        hidden = output.last_hidden_state
        logits = self._scaled(self.lm_head(_kept(hidden, logits_to_keep).to(self.lm_head.weight.dtype)))
        loss = None
        if labels is not None:
            vocabulary = self.config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **counted)
        if not self._has_experts:
            return _filled(CausalLMOutputWithPast, output, loss=loss, logits=logits)
        balance = self._balance(output.router_logits, attention_mask, hidden) if output_router_logits else None
        if loss is not None and balance is not None:
            loss = loss + getattr(self.config, "router_aux_loss_coef", 0.0) * balance.to(loss.device)
        return _filled(MoeCausalLMOutputWithPast, output, loss=loss, logits=logits, aux_loss=balance)

    def _scaled(self, logits: Tensor) -> Tensor:
        """Logits as the config says that they leave the head: scaled, then capped."""
        for name, divides in (("logit_scale", False), ("output_multiplier", False), ("logits_scaling", True)):
            scale = getattr(self.config, name, None)
            if scale is not None:
                logits = logits / scale if divides else logits * scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def _has_experts(self) -> bool:
        return hasattr(self.config, "output_router_logits") and _first(self.config, _NUMBERS_OF_EXPERTS) is not None

    def _balance(self, router_logits: Any, mask: Tensor | None, hidden: Tensor) -> Tensor | None:
        """The loss that is lowest where all experts get as many tokens; https://arxiv.org/abs/2101.03961."""
        if not router_logits:
            return None
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        # Of a cache's positions there are no routers' logits; a ready mask does not say what is padding.
        counted = mask[:, -hidden.shape[1] :] if isinstance(mask, Tensor) and mask.dim() == 2 else None
        experts, of_a_token = (_first(self.config, names) for names in (_NUMBERS_OF_EXPERTS, _EXPERTS_OF_A_TOKEN))
        return load_balancing_loss_func(tuple(router_logits), experts, of_a_token, counted)  # type: ignore[no-any-return]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """As the backbone says: transformers would look at the source of this file."""
        return cls.backbone_class._can_set_attn_implementation()  # type: ignore[no-any-return]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """As the backbone says, too."""
        return cls.backbone_class._can_set_experts_implementation()  # type: ignore[no-any-return]

    # --- generation ---------------------------------------------------------------------------------------------------

    @property
    def _own_inputs(self) -> set[str]:
        """Arguments of the backbone that say something about the prompt alone."""
        return set(anatomy.forward_arguments(self.model).names) - {
            *anatomy.forward_arguments(self).names,
            *anatomy.CACHE_NAMES,
        }

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """As in transformers, which does not know the backbone's own arguments."""
        known = {*self._own_inputs, *anatomy.CACHE_NAMES}
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in known})

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; what belongs to the prompt goes with the prompt only.

        Args:
            input_ids: (B, S) so far.
            inputs_embeds: (B, S, D) the prompt.
            is_first_iteration: whether this is the prompt.
            **kwargs: everything else that `generate` keeps.

        Returns:
            Arguments of `forward`.
        """
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs = {name: value for name, value in kwargs.items() if name not in self._own_inputs}
        return super().prepare_inputs_for_generation(  # type: ignore[no-any-return]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """As in transformers, and for positions of several axes, and features that go behind layers (beams)."""
        positions, where = kwargs.get("position_ids"), kwargs.get(_WHERE_BEHIND_LAYERS)
        added = kwargs.get(_ADDED_BEHIND_LAYERS)
        if expand_size > 1 and positions is not None and positions.dim() == 3:
            kwargs.pop("position_ids")
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if expand_size > 1 and positions is not None and positions.dim() == 3:
            kwargs["position_ids"] = positions.repeat_interleave(expand_size, dim=1)
        if expand_size > 1 and added is not None and where is not None:
            counts = where.sum(-1).tolist()
            kwargs[_ADDED_BEHIND_LAYERS] = [
                torch.cat([sample for sample in rows.split(counts) for _ in range(expand_size)]) for rows in added
            ]
        return input_ids, kwargs

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; behind a prompt with positions of three axes, text goes on from the highest of them."""
        positions = model_kwargs.get("position_ids")
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        if positions is not None and positions.dim() == 3:
            new = updated["position_ids"].shape[-1] - positions.shape[-1]
            axes = positions[-3:]  # a row before the three counts tokens, and goes on by itself
            first = axes.amax(dim=(0, 2)) + 1
            later = first[:, None] + torch.arange(new, device=positions.device)
            updated["position_ids"][-3:, :, positions.shape[-1] :] = later
        return updated

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled by the backbone's class, as this one is made on the fly."""
        return (_new, (self.backbone_class,), *super().__reduce_ex__(protocol)[2:])


@functools.cache
def with_head(backbone_class: type[PreTrainedModel]) -> type[BackboneWithHead]:
    """The class of causal language models on backbones of a class.

    Args:
        backbone_class: a text backbone of transformers, such as `Qwen2VLTextModel`.

    Returns:
        A subclass of `BackboneWithHead`, the same at each call; it is made of a config, or by `from_pretrained`.

    Raises:
        ArgumentError: if the class is no backbone of a causal language model.
    """
    if not is_backbone(backbone_class):
        raise ArgumentError(
            f"{backbone_class.__name__} is no backbone of a causal language model: it must be a model of transformers "
            "that takes inputs_embeds and a cache"
        )
    place = f"{backbone_class.__module__}.{backbone_class.__qualname__}"
    attributes = {
        "__module__": __name__,
        "__qualname__": f"{BackboneWithHead.__name__}[{place}]",
        "__doc__": f"{backbone_class.__name__} and a linear head.",
        "backbone_class": backbone_class,
        "config_class": backbone_class.config_class,
    }
    flags = {name: getattr(backbone_class, name) for name in vars(PreTrainedModel) if name.startswith(_FLAGS)}
    return type(f"{backbone_class.__name__}WithHead", (BackboneWithHead,), flags | attributes)


def is_backbone(cls: Any) -> bool:
    """Whether a class is a text backbone that a head makes a causal language model of."""
    config_class = getattr(cls, "config_class", None)
    if not isinstance(cls, type) or not issubclass(cls, PreTrainedModel) or config_class is None:
        return False
    if "text_config" in config_class.sub_configs:  # a whole multimodal model
        return False
    names = anatomy.class_arguments(cls).names
    return "inputs_embeds" in names and "labels" not in names and any(name in names for name in anatomy.CACHE_NAMES)


def _new(backbone_class: type[PreTrainedModel]) -> BackboneWithHead:
    cls: Any = with_head(backbone_class)  # type: ignore[arg-type]
    return cls.__new__(cls)  # type: ignore[no-any-return]


def _kept(hidden: Tensor, which: int | Tensor) -> Tensor:
    """Hidden states (B, S, D) at the positions whose logits are asked for."""
    if isinstance(which, int):
        return hidden[:, -which:]
    if which.dim() < 2:
        return hidden[:, which]
    if which.dtype == torch.bool:
        return hidden[which]
    return hidden.gather(1, which.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def _filled(cls: Any, output: Any, **values: Any) -> Any:
    """A language model's output with what a backbone's output has of it."""
    names = cls.__dataclass_fields__
    return cls(**{name: value for name, value in output.items() if name in names}, **values)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)


def joined(backbone: Any, head: Any, generation_config: GenerationConfig | None) -> Any:
    """The causal language model that a text backbone and a head belong to; no weight is copied.

    Args:
        backbone: of transformers; its config is told whether the head is tied.
        head: what `get_output_embeddings` of the model that they come from gave.
        generation_config: how to generate.

    Returns:
        A causal language model of transformers' class where it has one for this backbone, else a `BackboneWithHead`; in
        the backbone's mode.

    Raises:
        ArgumentError: if there is no such class, and the head is no linear layer without a bias.
    """
    config = backbone.config
    config.tie_word_embeddings = head.weight is backbone.get_input_embeddings().weight
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return BackboneWithHead.of(backbone, head, generation_config)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    setattr(made, made.base_model_prefix, backbone)
    made.set_output_embeddings(head)
    made.generation_config = generation_config
    return made.train(backbone.training)
