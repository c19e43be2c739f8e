"""Adapters of PEFT on the language model, on encoders and on both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel

# --- parts ------------------------------------------------------------------------------------------------------------

IMAGE = 200  # beyond every embedding table
FEATURES = 5

LM_ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=2, init_lora_weights=False),
    "lora-causal": lambda: LoraConfig(r=2, init_lora_weights=False, task_type=TaskType.CAUSAL_LM),
    "dora": lambda: LoraConfig(r=2, use_dora=True, target_modules="all-linear"),
    "rslora-head": lambda: LoraConfig(r=2, modules_to_save=["lm_head"], use_rslora=True),
    "lora-bias": lambda: LoraConfig(r=2, bias="all", init_lora_weights=False),
    "ia3": lambda: IA3Config(task_type=TaskType.CAUSAL_LM),
}


def llama(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": None}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **heads, **changes}))


def clip() -> nn.Module:
    torch.manual_seed(1)
    config = {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    return CLIPVisionModel(CLIPVisionConfig(hidden_size=16, patch_size=4, **config))


def adapted_clip() -> Any:
    return get_peft_model(clip(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def composed(lm: Any = None, vision: Any = None) -> MultimodalModel:
    lm = llama() if lm is None else lm
    vision = clip() if vision is None else vision
    torch.manual_seed(2)
    model = MultimodalModel({"vision": ModalEncoderModule(vision)}, lm).double()
    model.set_modality_token_ids({"vision": IMAGE})
    return model.eval()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 64, (2, 12), generator=generator)
    ids[:, 2 : 2 + FEATURES] = IMAGE
    pixels = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def with_gradient(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# --- forward ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LM_ADAPTERS)
def test_forward_equals_the_wrapped_model_by_hand(kind: str) -> None:
    """Logits equal embed -> splice -> peft_model(inputs_embeds), 1e-10, and adapters matter where they are not zero."""
    model, inputs = composed(get_peft_model(llama(), LM_ADAPTERS[kind]())), batch()
    encoder, mask = model.encoders["vision"], inputs["input_ids"] == IMAGE
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(mask, 0)).clone()
    embeds[mask] = encoder.projector(encoder.module(inputs["pixel_values"]).last_hidden_state).flatten(0, 1)
    expected = model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
    found = model(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    if kind.startswith("lora"):
        assert (found - composed()(**inputs).logits).abs().max() > 1e-3


def test_fresh_adapters_change_nothing() -> None:
    """Adapters as PEFT makes them (zero product), on both parts: bit-equal logits."""
    lm = get_peft_model(llama(), LoraConfig(r=2))
    vision = get_peft_model(clip(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert torch.equal(composed(lm, vision)(**batch()).logits, composed()(**batch()).logits)


def test_adapters_on_the_encoder_let_the_image_through() -> None:
    """The image reaches the language model through a wrapped encoder: merged weights give the same logits, 1e-10."""
    vision = adapted_clip()
    model, inputs = composed(vision=vision), batch()
    found = model(**inputs).logits
    other = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits
    assert (found - other).abs().max() > 1e-3
    merged = vision.merge_and_unload()
    torch.testing.assert_close(composed(vision=merged)(**inputs).logits, found, rtol=1e-10, atol=1e-10)


def test_widths_and_names_are_read_through_wrappers() -> None:
    """A wrapped encoder needs no projector of the caller's, and `config` and the embedding are the base's."""
    lm, vision = get_peft_model(llama(), LoraConfig(r=2)), adapted_clip()
    model = composed(lm, vision)
    projection = model.encoders["vision"].projector.projection
    assert (projection.in_features, projection.out_features) == (16, 32)
    assert model.config.text_config is lm.get_base_model().config
    assert model.encoders["vision"].config is vision.get_base_model().config
    assert model.get_input_embeddings() is lm.get_base_model().get_input_embeddings()


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LM_ADAPTERS)
def test_gradients_reach_adapters_and_projector_only(kind: str) -> None:
    """With the encoder frozen: exactly what PEFT trains and the projector get a gradient."""
    lm = get_peft_model(llama(), LM_ADAPTERS[kind]())
    expected = {f"language_model.{name}" for name in trainable(lm)}
    model, inputs = composed(lm).train({"vision": (False, True)}), batch()
    assert trainable(model.language_model) == trainable(lm)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    projector = {f"vision_encoder.projector.projection.{name}" for name in ("weight", "bias")}
    assert with_gradient(model) == expected | projector


@pytest.mark.parametrize("kind", LM_ADAPTERS)
def test_freezing_and_thawing_trains_adapters_not_the_base(kind: str) -> None:
    """`llm_mode=False` then `llm_mode=True` gives back exactly the parameters that PEFT trains."""
    lm = get_peft_model(llama(), LM_ADAPTERS[kind]())
    expected = trainable(lm)
    model = composed(lm)
    model.train(llm_mode=False)
    assert not trainable(model.language_model)
    model.train({"vision": (False, True)}, llm_mode=True)
    assert trainable(model.language_model) == expected


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"]),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(target_modules="all-linear", bias="lora_only"),
    ],
    ids=["lora", "head", "bias"],
)
def test_adapters_injected_into_a_part_train_and_the_base_does_not(config: LoraConfig) -> None:
    """`inject_adapter_in_model` makes no PeftModel; freezing and thawing gives back what it trains."""
    lm = inject_adapter_in_model(config, llama(attention_bias=True))
    expected = trainable(lm)
    model = composed(lm)
    model.train(llm_mode=False)
    assert not trainable(model.language_model)
    model.train({"vision": (False, True)}, llm_mode=True)
    assert trainable(model.language_model) == expected


def test_adapters_around_the_whole_model_train_and_the_bases_do_not() -> None:
    """PEFT around the multimodal model: thawing a part trains the adapters in it, of both adapters the active one."""
    model = composed(llama(), clip())
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]), adapter_name="one")
    wrapped.add_adapter("two", LoraConfig(target_modules=["q_proj"]))
    wrapped.set_adapter("two")
    expected = trainable(model)
    model.train({"vision": (False, False)}, llm_mode=False)
    assert not trainable(model)
    model.train({"vision": (True, False)}, llm_mode=True)
    assert trainable(model) == expected
    assert expected
    assert all(".two." in name for name in expected)


def test_freezing_and_thawing_a_wrapped_encoder() -> None:
    """The same on the encoder: adapters train, the base does not."""
    vision = adapted_clip()
    expected = trainable(vision)
    model, inputs = composed(vision=vision), batch()
    model.train({"vision": (False, False)}, llm_mode=False)
    assert not trainable(model)
    model.train({"vision": (True, True)})
    assert trainable(vision) == expected
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert {f"vision_encoder.module.{name}" for name in expected} <= with_gradient(model)


def test_llm_mode_none_keeps_adapters_training() -> None:
    """`encoders_mode` alone leaves the wrapped language model as it is."""
    lm = get_peft_model(llama(), LoraConfig(r=2, lora_dropout=0.5))
    expected = trainable(lm)
    model = composed(lm).train({"vision": (False, False)})
    assert trainable(model.language_model) == expected
    assert model.language_model.training


def test_wrapping_after_construction_is_seen() -> None:
    """A part replaced by its wrapped self is what runs, trains and freezes."""
    model, inputs = composed(), batch()
    before = model(**inputs).logits
    model.vision_encoder.module = adapted_clip().double()
    model.language_model = get_peft_model(model.language_model, LoraConfig(r=2, init_lora_weights=False)).double()
    assert (model.eval()(**inputs).logits - before).abs().max() > 1e-3
    model.train({"vision": (True, False)}, llm_mode=True)
    names = trainable(model)
    assert names
    assert all("lora_" in name for name in names)
    model.train({"vision": (False, False)}, llm_mode=False)
    assert not trainable(model)


@pytest.mark.parametrize("frozen", [False, True], ids=["adapters", "frozen-lm"])
def test_checkpointing_with_adapters(frozen: bool) -> None:
    """Gradients with checkpointing equal those without, 1e-10; nothing more requires a gradient than before."""
    found = []
    for on in (False, True):
        model, inputs = composed(get_peft_model(llama(), LM_ADAPTERS["lora"]())), batch()
        model.train({"vision": (False, True)}, llm_mode=False if frozen else None)
        names = trainable(model)
        if on:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert with_gradient(model) == names
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-10)


def test_prompt_tuning_reaches_the_language_model() -> None:
    """Virtual tokens in front: the loss is that of the wrapped model on merged embeddings, 1e-10, and trains them."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    model, inputs = composed(get_peft_model(llama(), config)), batch()
    encoder, mask = model.encoders["vision"], inputs["input_ids"] == IMAGE
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(mask, 0)).clone()
    embeds[mask] = encoder.projector(encoder.module(inputs["pixel_values"]).last_hidden_state).flatten(0, 1)
    labels = inputs["input_ids"].masked_fill(mask, -100)
    expected = model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], labels=labels).loss
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    model.train({"vision": (False, True)})
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert any("prompt_encoder" in name for name in with_gradient(model))


# --- several adapters, saving -----------------------------------------------------------------------------------------


def test_switching_adapters() -> None:
    """Two adapters give two outputs; disabling both gives the base's, bit-equal."""
    lm = get_peft_model(llama(), LoraConfig(r=2, init_lora_weights=False), adapter_name="one")
    lm.add_adapter("two", LoraConfig(r=4, init_lora_weights=False))
    model, inputs = composed(lm), batch()
    outputs = []
    for name in ("one", "two"):
        lm.set_adapter(name)
        outputs.append(model(**inputs).logits)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    with lm.disable_adapter():
        assert torch.equal(model(**inputs).logits, composed()(**inputs).logits)


def test_thawing_trains_the_active_adapter_only() -> None:
    """With two adapters, freezing and thawing trains the one that is active."""
    lm = get_peft_model(llama(), LoraConfig(r=2), adapter_name="one")
    lm.add_adapter("two", LoraConfig(r=2))
    lm.set_adapter("two")
    model = composed(lm)
    model.train(llm_mode=False)
    model.train(llm_mode=True)
    names = trainable(model.language_model)
    assert names
    assert all(".two." in name for name in names)


@pytest.mark.parametrize("kind", [*LM_ADAPTERS, "encoder", "both", "two"])
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    """Bit-equal logits after a round trip, the same parameters under the same names, the same ones trainable."""
    lm: Any = llama()
    if kind == "two":
        lm = get_peft_model(lm, LoraConfig(r=2, init_lora_weights=False), adapter_name="one")
        lm.add_adapter("two", LoraConfig(r=4, init_lora_weights=False))
        lm.set_adapter("two")
    elif kind != "encoder":
        lm = get_peft_model(lm, LM_ADAPTERS.get(kind, LM_ADAPTERS["lora"])())
    model = composed(lm, adapted_clip() if kind in ("encoder", "both") else None)
    model.train({"vision": (kind in ("encoder", "both"), True)}).eval()
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert trainable(loaded) == trainable(model)
    if kind == "two":
        loaded.language_model.set_adapter("one")
        model.language_model.set_adapter("one")
        assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)


def test_merging_adapters_into_the_base() -> None:
    """`merge_and_unload` in the language model's place gives the same logits, 1e-10."""
    model, inputs = composed(get_peft_model(llama(), LM_ADAPTERS["lora"]())), batch()
    expected = model(**inputs).logits
    model.language_model = model.language_model.merge_and_unload()
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-10, atol=1e-10)
