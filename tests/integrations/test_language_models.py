"""Every family of causal language models, composed with a vision encoder, against the same composition by hand."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel

VOCABULARY, WIDTH = 96, 32
MARK = 200  # lies beyond every embedding table
FEATURES = 5  # of one image: a class token and 2 x 2 patches

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_HEAD = {**_GROUPED, "head_dim": 8}
_FALCON = {**_COMMON, "attention_dropout": 0.0, "hidden_dropout": 0.0}
_GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}

# Name -> (model class, arguments of its config): one of each way in which families differ.
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _GROUPED),
    "llama-tied": ("LlamaForCausalLM", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", _HEAD),
    "gemma": ("GemmaForCausalLM", _HEAD),  # embeddings scaled
    "gemma2": ("Gemma2ForCausalLM", {**_HEAD, "sliding_window": 4, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3ForCausalLM", {**_HEAD, "sliding_window": 4}),  # embeddings scaled, masks of two kinds
    "phi3": ("Phi3ForCausalLM", _GROUPED),
    "opt": ("OPTForCausalLM", {**_COMMON, "ffn_dim": 48, "dropout": 0.0}),  # positions counted from the mask
    "opt-projected": ("OPTForCausalLM", {**_COMMON, "ffn_dim": 48, "dropout": 0.0, "word_embed_proj_dim": 16}),
    "gpt2": ("GPT2LMHeadModel", {**_COMMON, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt-neox": ("GPTNeoXForCausalLM", _COMMON),
    "olmo2": ("Olmo2ForCausalLM", _GROUPED),
    "granite": ("GraniteForCausalLM", {**_GROUPED, "embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "smollm3": ("SmolLM3ForCausalLM", {**_GROUPED, "no_rope_layer_interval": 2}),
    "falcon": ("FalconForCausalLM", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("FalconForCausalLM", {**_FALCON, "alibi": True, "multi_query": False}),
    "mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        {**_HEAD, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {**_HEAD, "num_local_experts": 4, "sliding_window": 4, "rope_parameters": _GPT_OSS_ROPE},
    ),
    "bloom": ("BloomForCausalLM", {**_COMMON, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0}),
    "mamba2": (
        "Mamba2ForCausalLM",
        {**_COMMON, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    ),
}


def _language_model(name: str) -> nn.Module:
    class_name, arguments = LANGUAGE_MODELS[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**arguments))
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # grouped products have no fp64
    with torch.no_grad():  # the usual initialisation is so small that logits hardly depend on the image
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.double().eval()


def _model(name: str) -> MultimodalModel:
    language_model = _language_model(name)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = MultimodalModel({"vision": ModalEncoderModule(CLIPVisionModel(config).double().eval())}, language_model)
    model.set_modality_token_ids({"vision": MARK})
    return model.eval()


def _batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, VOCABULARY, (2, 6), generator=generator)
    marks = torch.full((2, FEATURES), MARK)
    input_ids = torch.cat([text[:, :2], marks, text[:, 2:]], dim=1)
    pixel_values = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixel_values}


def _by_hand(model: MultimodalModel, batch: dict[str, Tensor]) -> Any:
    """The composition without any of this package's forward: embed, splice, run; labels ignored at the image."""
    encoder = model.encoders["vision"]
    features = encoder.projector.projection(encoder.module(pixel_values=batch["pixel_values"]).last_hidden_state)
    mask = batch["input_ids"] == MARK
    embeds = model.language_model.get_input_embeddings()(batch["input_ids"].masked_fill(mask, 0))
    rows = [torch.cat([row[:2], image, row[2 + FEATURES :]]) for row, image in zip(embeds, features, strict=True)]
    return model.language_model(
        inputs_embeds=torch.stack(rows),
        attention_mask=batch["attention_mask"],
        labels=batch["input_ids"].masked_fill(mask, -100),
    )


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_equals_the_composition_by_hand(name: str) -> None:
    """Logits, loss and the projector's gradient equal embed -> splice -> lm(inputs_embeds), 1e-10 in fp64."""
    model, batch = _model(name), _batch()
    weight = model.encoders["vision"].projector.projection.weight
    expected = _by_hand(model, batch)
    (gradient,) = torch.autograd.grad(expected.loss, weight)

    output = model(**batch, labels=batch["input_ids"])
    assert type(output) is type(expected)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-10, atol=1e-10)
    output.loss.backward()
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-10, atol=1e-10)
    assert weight.grad.abs().max() > 1e-6, "the image does not reach the loss"


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_trains(name: str) -> None:
    """One step in training mode with the language model frozen moves the projector only."""
    model, batch = _model(name), _batch()
    model.train({"vision": (False, True)}, llm_mode=False)
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    moved = {parameter for parameter, value in model.named_parameters() if value.grad is not None}
    assert moved == {f"vision_encoder.projector.projection.{part}" for part in ("weight", "bias")}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_generates(name: str) -> None:
    """Greedy tokens equal those of a loop that runs the composition on the whole sequence for each token."""
    model, batch = _model(name), _batch()
    generated = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)

    expected = dict(batch)
    with torch.no_grad():
        for _ in range(3):
            logits = _by_hand(model, expected).logits[:, -1]
            logits[:, _stop_ids(model)] = -torch.inf
            ids = torch.cat([expected["input_ids"], logits.argmax(-1, keepdim=True)], dim=1)
            expected = {**expected, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert generated.tolist() == expected["input_ids"].tolist()


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_padding_changes_nothing(name: str) -> None:
    """Logits of a row padded on either side equal the row alone without a mask, 1e-5 of the largest, fp32."""
    model, batch = _model(name).float(), _batch()  # fp64 masks are beyond the fp32 softmax of some families
    pixels = batch["pixel_values"].float()
    rows = [batch["input_ids"][0], batch["input_ids"][1, 2:9]]
    gap = len(rows[0]) - len(rows[1])
    with torch.no_grad():
        alone = model(input_ids=rows[1][None], pixel_values=pixels[1:]).logits[0]
        for pad, own in (((gap, 0), slice(gap, None)), ((0, gap), slice(None, len(rows[1])))):
            ids = torch.stack([rows[0], nn.functional.pad(rows[1], pad, value=7)])
            mask = torch.stack([torch.ones_like(rows[0]), nn.functional.pad(torch.ones_like(rows[1]), pad)])
            found = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits[1, own]
            assert (found - alone).abs().max() <= 1e-5 * alone.abs().max()


def _stop_ids(model: MultimodalModel) -> list[int]:
    stop = model.language_model.generation_config.eos_token_id
    return stop if isinstance(stop, list) else [] if stop is None else [stop]
