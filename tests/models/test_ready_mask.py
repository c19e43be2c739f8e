"""Ready 4-D masks: what a language model that heeds them computes, and who is refused."""

import copy
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cornstarch import ArgumentError, MultimodalModel
from tests import tiny

_SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
_MPT = {"vocab_size": 64, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}
_XGLM = {"vocab_size": 64, "d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, **_HEADS},
    "gemma2": {**_SIZES, **_HEADS, "head_dim": 8, "sliding_window": 16},
    "gpt2": {**_SIZES, **_HEADS},
    "opt": {**_SIZES, **_HEADS, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "xglm": _XGLM,
    "mpt": _MPT,
    "roberta": {**_SIZES, **_HEADS, "is_decoder": True},
}
DEAF = {
    "bloom": {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mamba2": {**_SIZES, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "rwkv": {**_SIZES, "attention_hidden_size": 16},
}


def language_model(family: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES, **DEAF}[family])
    return tiny.loud(AutoModelForCausalLM.from_config(config)).eval()


def blocks(dtype: torch.dtype = torch.bool) -> Tensor:
    """Two documents of three positions in one row: each position sees its own document up to itself."""
    visible = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool().tril()[None, None]
    return visible if dtype is torch.bool else visible.to(dtype)


def lowered(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.mark.parametrize("form", ["boolean", "whole", "lowest", "infinite", "double"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_of_a_mask_is_the_additive_one(family: str, form: str) -> None:
    """Logits equal the language model's own with the additive mask and plain positions; fp32, 1e-5."""
    lm = language_model(family)
    made = lowered(blocks())
    forms = {"boolean": blocks(), "whole": blocks(torch.long), "lowest": made, "double": made.double()}
    mask = forms.get(form, made.masked_fill(made < 0, -torch.inf))
    first = 1 if family == "roberta" else 0  # behind the padding id
    positions = {} if family == "mpt" else {"position_ids": torch.arange(6)[None] + first}
    with torch.no_grad():
        expected = lm(input_ids=TOKENS, attention_mask=made, **positions).logits
        plain = lm(input_ids=TOKENS).logits
        found = MultimodalModel({}, lm)(input_ids=TOKENS, attention_mask=mask).logits
    tiny.assert_near(found, expected, 1e-5)
    assert (expected - plain).abs().max() > 1e-3, "the mask hides nothing"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt"])
def test_two_documents_in_a_row_are_two_documents(family: str) -> None:
    """Logits of packed documents with positions of their own equal each document's alone; fp32, 1e-5."""
    lm = language_model(family)
    model = MultimodalModel({}, lm)
    positions = torch.arange(3).repeat(2)[None]
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=blocks(), position_ids=positions).logits
        expected = torch.cat([lm(input_ids=half).logits for half in TOKENS.split(3, dim=1)], dim=1)
    tiny.assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("family", DEAF)
def test_models_that_do_not_heed_a_mask_say_so(family: str) -> None:
    model = MultimodalModel({}, language_model(family))
    for _ in range(2):
        with pytest.raises(ArgumentError, match=f"(?i){family}.*4-D attention_mask: it (fails|does not)"):
            model(input_ids=TOKENS, attention_mask=blocks())
    model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS))


def test_a_learned_prompt_and_a_ready_mask_are_refused_together() -> None:
    """While the prompt is active only: the base alone heeds the mask."""
    lm = get_peft_model(language_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model = MultimodalModel({}, lm)
    with pytest.raises(ArgumentError, match="learned prompt"):
        model(input_ids=TOKENS, attention_mask=blocks())
    MultimodalModel({}, lm.get_base_model())(input_ids=TOKENS, attention_mask=blocks())


def test_a_model_is_asked_once_and_left_as_it_was() -> None:
    """Modes, dropout's random numbers and weights stay; the second mask costs one forward pass."""
    lm = tiny.language_model("llama", drop=0.5)
    model = MultimodalModel({}, lm).train()
    lm.model.layers[0].eval()
    calls: list[int] = []
    lm.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(lm.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    first = model(input_ids=TOKENS, attention_mask=blocks()).logits
    asked = len(calls)
    torch.manual_seed(1)
    assert torch.equal(model(input_ids=TOKENS, attention_mask=blocks()).logits, first)
    assert (asked > 1, len(calls) - asked) == (True, 1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())


def test_a_half_precision_model_takes_a_mask_of_any_dtype() -> None:
    model = MultimodalModel({}, language_model("llama").bfloat16())
    with torch.no_grad():
        expected = model(input_ids=TOKENS, attention_mask=blocks()).logits
        assert torch.equal(model(input_ids=TOKENS, attention_mask=lowered(blocks())).logits, expected)
    assert expected.isfinite().all()


def test_other_forms_of_masks_are_the_language_models_business() -> None:
    """A mask for each kind of layer, as Gemma takes them; equal to the same mask for all."""
    lm = language_model("gemma2")
    kinds = dict.fromkeys(("full_attention", "sliding_attention"), lowered(blocks()))
    positions = torch.arange(6)[None]
    with torch.no_grad():
        expected = lm(input_ids=TOKENS, attention_mask=lowered(blocks()), position_ids=positions).logits
        found = MultimodalModel({}, lm)(input_ids=TOKENS, attention_mask=kinds).logits
    tiny.assert_near(found, expected, 1e-5)
