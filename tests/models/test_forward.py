"""The forward pass: what goes where, what comes out, and what is refused."""

import copy
import inspect
import re
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, Wav2Vec2Config, Wav2Vec2Model
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeCausalLMOutputWithPast

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel

# --- parts ------------------------------------------------------------------------------------------------------------

IMAGE, SOUND = 200, 201  # beyond every embedding table
FEATURES = 5
_COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 2}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "gpt2": ("GPT2LMHeadModel", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "falcon-alibi": ("FalconForCausalLM", {"alibi": True, "multi_query": False}),
    "gpt-neox": ("GPTNeoXForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"num_key_value_heads": 2, "num_local_experts": 4}),
}


def language_model(name: str = "llama", peft: bool = False, seed: int = 0, **changes: Any) -> Any:
    class_name, arguments = LANGUAGE_MODELS[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(seed)
    model = cls(cls.config_class(**{**_COMMON, **arguments, **changes}))
    with torch.no_grad():  # the usual initialisation is so small that little would show in the logits
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model = model.double()
    if peft:
        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False)).double()
    return model.eval()


def vision(seed: int = 1, hidden_size: int = 16, **changes: Any) -> CLIPVisionModel:
    torch.manual_seed(seed)
    config = {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    return CLIPVisionModel(CLIPVisionConfig(hidden_size=hidden_size, **{**config, "patch_size": 4, **changes})).double()


def audio(seed: int = 2) -> Wav2Vec2Model:
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        conv_dim=(8, 8),
        conv_stride=(4, 4),
        conv_kernel=(4, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        hidden_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return Wav2Vec2Model(config).double()


def composed(lm: Any = None, encoders: Any = None, **arguments: Any) -> MultimodalModel:
    lm = language_model() if lm is None else lm
    encoders = {"vision": ModalEncoderModule(vision())} if encoders is None else encoders
    torch.manual_seed(3)
    model = MultimodalModel(encoders, lm, **arguments).double()
    model.set_modality_token_ids(dict(zip(encoders, (IMAGE, SOUND), strict=False)))
    return model.eval()


def row(*parts: int | list[int], image: int = FEATURES, sound: int = 0) -> Tensor:
    """Text ids, with `IMAGE` and `SOUND` each written once and repeated."""
    repeat = {IMAGE: image, SOUND: sound}
    return torch.tensor([i for part in parts for i in [part] * repeat.get(part, 1)])  # type: ignore[index]


def images(count: int, seed: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(samples: int = 2) -> dict[str, Tensor]:
    ids = torch.stack([row(5 + i, IMAGE, 6, 7, 8 + i, 9) for i in range(samples)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images(samples)}


def merged(model: MultimodalModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the language model must be given, made without the package's forward."""
    encoder = model.encoders["vision"]
    features = encoder.projector.projection(encoder.module(inputs["pixel_values"]).last_hidden_state)
    mask = inputs["input_ids"] == IMAGE
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(mask, 0))
    embeds = embeds.clone()
    embeds[mask] = features.flatten(0, 1)
    return embeds


def close(found: Tensor, expected: Tensor, **arguments: Any) -> None:
    """To 1e-10 in fp64; to 1e-6 for a loss, which Hugging Face computes in fp32."""
    tolerance = 1e-10 if found.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, **arguments)


@pytest.fixture(params=[False, True], ids=["plain", "peft"])
def peft(request: pytest.FixtureRequest) -> bool:
    return request.param


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name, cls", [("llama", CausalLMOutputWithPast), ("mixtral", MoeCausalLMOutputWithPast)])
def test_output_class_is_the_language_models_own(name: str, cls: type, mode: bool) -> None:
    """With and without labels, in both modes; through the class, not a subclass."""
    lm = language_model(name)
    if name == "mixtral":
        lm.set_experts_implementation("eager")
    model = composed(lm).train(mode)
    inputs = batch()
    assert type(model(**inputs)) is cls
    assert type(model(**inputs, labels=inputs["input_ids"])) is cls


def test_auxiliary_loss_of_experts_is_kept() -> None:
    """The router's loss and the total loss equal the language model's own on merged embeddings, 1e-10."""
    lm = language_model("mixtral")
    lm.set_experts_implementation("eager")
    model, inputs = composed(lm), batch()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    mask = inputs["attention_mask"]
    expected = lm(inputs_embeds=merged(model, inputs), attention_mask=mask, labels=labels, output_router_logits=True)
    found = model(**inputs, labels=inputs["input_ids"], output_router_logits=True)
    close(found.aux_loss, expected.aux_loss)
    close(found.loss, expected.loss)


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_without_labels_no_loss_and_all_logits(mode: bool) -> None:
    """`loss` is None and absent; logits cover every position."""
    output = composed().train(mode)(**batch())
    assert output.loss is None
    assert "loss" not in output
    assert output.logits.shape == (2, 10, 96)


def test_training_with_labels_yields_no_logits_unless_asked() -> None:
    """`logits` is None and absent in training mode; the loss is that of the call with logits, 1e-10."""
    model, inputs = composed().train(), batch()
    labels = inputs["input_ids"]
    output = model(**inputs, labels=labels)
    assert output.logits is None
    assert "logits" not in output
    with pytest.raises(KeyError):
        output["logits"]
    full = model(**inputs, labels=labels, output_logits=True)
    assert full.logits.shape == (2, 10, 96)
    close(output.loss, full.loss)
    shown = model.eval()(**inputs, labels=labels)
    assert shown.logits.shape == (2, 10, 96)
    close(output.loss, shown.loss)


def test_output_logits_does_not_reach_the_parts() -> None:
    """`output_logits` is this package's word: no part sees it, in either value."""
    seen: list[dict[str, Any]] = []
    model = composed()
    model.language_model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    for value in (True, False):
        model(**batch(), output_logits=value)
    assert all("output_logits" not in kwargs for kwargs in seen)


# --- what reaches the language model ----------------------------------------------------------------------------------


def test_position_ids_reach_the_language_model(peft: bool) -> None:
    """Given positions change the logits as they do in the language model alone, 1e-10."""
    model, inputs = composed(language_model(peft=peft)), batch()
    positions = torch.arange(10).mul(3).expand(2, -1)
    expected = model.language_model(
        inputs_embeds=merged(model, inputs), attention_mask=inputs["attention_mask"], position_ids=positions
    )
    found = model(**inputs, position_ids=positions).logits
    close(found, expected.logits)
    assert (found - model(**inputs).logits).abs().max() > 1e-3


@pytest.mark.parametrize("argument", ["past_key_values", "cache"])
@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "falcon-alibi", "gpt-neox"])
def test_the_cache_reaches_the_language_model(name: str, argument: str, peft: bool) -> None:
    """The image first, the rest from the cache, with padding on the left: the logits of one pass, 1e-10.

    The cache has had several names in transformers; each works with any release.
    """
    model = composed(language_model(name, peft=peft))
    ids = torch.stack([row(5, IMAGE, 6, 7, 8), row(0, 0, 3, IMAGE, 4)])
    mask = (ids != 0).long()
    whole = model(input_ids=ids, attention_mask=mask, pixel_values=images(2)).logits
    cache = DynamicCache(config=model.language_model.config)
    first = model(
        input_ids=ids[:, :8],
        attention_mask=mask[:, :8],
        pixel_values=images(2),
        use_cache=True,
        **{argument: cache},
    )
    assert first.past_key_values is cache
    rest = model(input_ids=ids[:, 8:], attention_mask=mask, **{argument: cache}).logits
    close(rest, whole[:, 8:])
    with pytest.raises(ArgumentError, match="two names for one argument"):
        model(input_ids=ids[:, 8:], attention_mask=mask, past_key_values=cache, cache=cache)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])], ids=["one", "three", "chosen"])
def test_logits_to_keep(keep: Any, peft: bool) -> None:
    """The logits kept are those of the full output, 1e-10."""
    model, inputs = composed(language_model(peft=peft)), batch()
    full = model(**inputs).logits
    expected = full[:, -keep:] if isinstance(keep, int) else full[:, keep]
    close(model(**inputs, logits_to_keep=keep).logits, expected)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_num_items_in_batch_divides_the_loss(name: str, mode: bool, peft: bool) -> None:
    """The loss is the sum over labelled positions divided by it, 1e-10."""
    lm = language_model(name, peft=peft)
    model, inputs = composed(lm).train(mode), batch()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    scored = int((labels[:, 1:] != -100).sum())
    mean = model(**inputs, labels=labels).loss
    close(model(**inputs, labels=labels, num_items_in_batch=100).loss, mean * scored / 100)
    close(model(**inputs, labels=labels, num_items_in_batch=torch.tensor(7)).loss, mean * scored / 7)


def test_hidden_states_and_attentions_are_the_language_models(peft: bool) -> None:
    """Asked for, they come back, one per layer (and one of the embeddings)."""
    lm = language_model(peft=peft, attn_implementation="eager")
    output = composed(lm)(**batch(), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2


def test_no_cache_is_made_in_training_unless_asked(peft: bool) -> None:
    """Training keeps no keys and values; evaluation keeps the language model's default."""
    model, inputs = composed(language_model(peft=peft)), batch()
    assert model(**inputs).past_key_values is not None
    assert model.train()(**inputs).past_key_values is None
    assert model(**inputs, use_cache=True).past_key_values is not None


@pytest.mark.parametrize("name", ["pixel_value", "atention_mask", "input_feature", "labelz", "images"])
def test_unknown_argument(name: str, peft: bool) -> None:
    """A TypeError with the word in it, before anything runs."""
    model = composed(language_model(peft=peft))
    ran: list[int] = []
    model.language_model.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(TypeError, match=f"'{name}'"):
        model(**batch(), **{name: torch.ones(1)})
    assert not ran


def test_unknown_argument_suggests_the_nearest() -> None:
    """The message holds the word that was probably meant."""
    with pytest.raises(TypeError, match="'pixel_values'"):
        composed()(input_ids=row(5, 6)[None], pixel_valeus=images(1))


def test_nothing_to_run_on() -> None:
    """Neither ids nor embeddings is a ValueError; `return_dict=False` too."""
    with pytest.raises(ValueError, match="input_ids"):
        composed()()
    with pytest.raises(ValueError, match="return_dict"):
        composed()(**batch(), return_dict=False)


# --- which encoders run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "absent",
    [{}, {"pixel_values": None}, {"pixel_values": images(0)}, {"encoder_outputs": {"vision": None}}],
    ids=["missing", "none", "no-rows", "no-output"],
)
def test_text_only_batch_does_not_run_the_encoder(absent: dict[str, Any]) -> None:
    """The logits are the language model's own on the ids, 1e-10, and the encoder is not called."""
    model = composed()
    model.encoders["vision"].module.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    ids = torch.arange(3, 15).view(2, 6)
    expected = model.language_model(input_ids=ids, labels=ids)
    output = model(input_ids=ids, labels=ids, **absent)
    close(output.logits, expected.logits)
    close(output.loss, expected.loss)


def test_text_only_batch_trains_in_training_mode() -> None:
    """A text-only step gives no gradient to the projector and one to the language model."""
    model = composed().train()
    ids = torch.arange(3, 15).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.language_model.lm_head.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.encoders["vision"].parameters())


def test_only_some_samples_have_an_image() -> None:
    """Samples with none, one and two images together equal each alone, 1e-10."""
    model, pixels = composed(), images(3)
    rows = [row(5, 6, IMAGE, 7), row(*range(3, 11)), row(4, IMAGE, IMAGE, 8)]
    owned = [pixels[:1], pixels[:0], pixels[1:]]
    length = max(map(len, rows))
    ids = torch.stack([nn.functional.pad(r, (length - len(r), 0)) for r in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(r), (length - len(r), 0)) for r in rows])
    together = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    for index, (alone, own) in enumerate(zip(rows, owned, strict=True)):
        close(together[index, length - len(alone) :], model(input_ids=alone[None], pixel_values=own).logits[0])


def test_encoder_outputs_stand_for_inputs() -> None:
    """Hidden states after the module callback, before the projector, give the same logits, 1e-10."""
    encoder = ModalEncoderModule(
        vision(), postprocess_module_callback=lambda inputs, output: output.last_hidden_state[:, 1:] * 2
    )
    model = composed(encoders={"vision": encoder})
    ids = torch.stack([row(5, IMAGE, 6, image=4), row(7, IMAGE, 8, image=4)])
    expected = model(input_ids=ids, pixel_values=images(2)).logits
    hidden = encoder.module(images(2)).last_hidden_state[:, 1:] * 2
    encoder.module.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    close(model(input_ids=ids, encoder_outputs={"vision": hidden}).logits, expected)


def test_encoder_outputs_of_an_unknown_key() -> None:
    """A ValueError that lists the known keys."""
    with pytest.raises(ValueError, match="vision"):
        composed()(input_ids=row(5, 6)[None], encoder_outputs={"visoin": torch.zeros(1, 5, 16)})


# --- pairing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids, count, numbers, sample",
    [
        ([row(5, IMAGE, 6, 7)], 0, (5, 0), 0),
        ([row(5, IMAGE, 6), row(3, 4, 5, 6, 7, 8, 9)], 2, (5, 10), 1),
        ([row(3, 4, 5)], 1, (0, 5), 0),
        ([row(5, IMAGE, 6), row(5, IMAGE, 6)], 1, (10, 5), 1),
        ([row(5, IMAGE, 6, 7), row(5, 6, IMAGE, IMAGE, image=3)], 2, (11, 10), 1),
        ([row(5, IMAGE, 6, 7, image=4), row(5, IMAGE, 6, image=5)], 2, (9, 10), 0),
    ],
    ids=["no-input", "too-many-inputs", "no-positions", "too-few-inputs", "one-more", "one-less"],
)
def test_counts_that_disagree(ids: list[Tensor], count: int, numbers: tuple[int, int], sample: int) -> None:
    """A ValueError with the modality, both counts and the first sample that disagrees."""
    with pytest.raises(ValueError, match="'vision'") as caught:
        composed()(input_ids=torch.stack(ids), pixel_values=images(count) if count else None)
    message = str(caught.value)
    assert {str(number) for number in numbers} <= set(re.findall(r"\d+", message))
    assert re.search(rf"sample\D*\b{sample}\b", message)


@pytest.mark.parametrize("first", [4, 6], ids=["too-few", "too-many"])
def test_no_input_straddles_two_samples(first: int) -> None:
    """Totals that agree while samples do not are a ValueError naming the sample."""
    ids = torch.stack(
        [row(5, IMAGE, *[6] * (9 - first), image=first), row(5, IMAGE, *[6] * (first - 1), image=10 - first)]
    )
    with pytest.raises(ValueError, match=r"'vision'.*sample\D*\b0\b"):
        composed()(input_ids=ids, pixel_values=images(2))


def test_straddling_is_found_in_encoder_outputs_too() -> None:
    """The same through `encoder_outputs`, and in generate."""
    ids = torch.stack([row(5, IMAGE, 6, 6, image=4), row(5, IMAGE, image=6)])
    hidden = torch.zeros(2, 5, 16, dtype=torch.float64)
    for run in (composed(), composed().generate):
        with pytest.raises(ValueError, match=r"'vision'.*sample\D*\b0\b"):
            run(input_ids=ids, encoder_outputs={"vision": hidden})


def test_ids_of_modalities_may_lie_beyond_the_table() -> None:
    """An id inside the table and one beyond it give the same logits, 1e-10, and the table keeps its size."""
    model, inputs = composed(), batch()
    beyond = model(**inputs).logits
    assert model.get_input_embeddings().weight.shape[0] == 96
    model.set_modality_token_ids({"vision": 90})
    inside = model(**{**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 90)})
    close(inside.logits, beyond)


def test_other_ids_beyond_the_table_are_an_error() -> None:
    """A ValueError that names the id and the size of the table."""
    with pytest.raises(ValueError, match=r"150.*96"):
        composed()(input_ids=row(5, 150)[None])


def test_inputs_without_a_token_id_are_an_error() -> None:
    """A ValueError that says how to give the id."""
    model = MultimodalModel({"vision": ModalEncoderModule(vision())}, language_model()).eval()
    with pytest.raises(ValueError, match="set_modality_token_ids"):
        model(**batch())


def test_labels_at_modality_positions_are_ignored() -> None:
    """Any label there gives the loss of -100 there, 1e-10; the caller's labels stay as they are."""
    model, inputs = composed(), batch()
    labels = inputs["input_ids"]
    kept = labels.clone()
    expected = model(**inputs, labels=labels.masked_fill(labels == IMAGE, -100)).loss
    close(model(**inputs, labels=labels).loss, expected)
    close(model(**inputs, labels=labels.masked_fill(labels == IMAGE, 17)).loss, expected)
    assert torch.equal(labels, kept)
    assert torch.equal(inputs["input_ids"], kept)


# --- masks and positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "falcon-alibi", "gpt-neox"])
def test_padding_changes_nothing(name: str, peft: bool) -> None:
    """Logits of the same tokens: no mask, a mask of ones, left and right padding; each sample alone, 1e-10."""
    model, pixels = composed(language_model(name, peft=peft)), images(2)
    rows = [row(5, IMAGE, 6, 7, 8, 9), row(3, IMAGE, 4)]
    gap = len(rows[0]) - len(rows[1])
    alone = [model(input_ids=r[None], pixel_values=pixels[i : i + 1]).logits[0] for i, r in enumerate(rows)]
    for side, pad in (("left", (gap, 0)), ("right", (0, gap))):
        ids = torch.stack([rows[0], nn.functional.pad(rows[1], pad, value=7)])
        mask = torch.stack([torch.ones_like(rows[0]), nn.functional.pad(torch.ones_like(rows[1]), pad)])
        output = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
        close(output[0], alone[0], msg=lambda text, side=side: f"{side}, unpadded sample: {text}")
        own = output[1, gap:] if side == "left" else output[1, : len(rows[1])]
        close(own, alone[1], msg=lambda text, side=side: f"{side}, padded sample: {text}")
    ones = model(input_ids=rows[0][None], attention_mask=torch.ones(1, len(rows[0])), pixel_values=pixels[:1]).logits[0]
    close(ones, alone[0])


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gpt-neox"])
def test_loss_does_not_depend_on_the_padding_side(name: str, peft: bool) -> None:
    """The loss of a padded batch, labels -100 at padding, is the same on both sides, 1e-10."""
    model, pixels = composed(language_model(name, peft=peft)), images(2)
    rows = [row(5, IMAGE, 6, 7, 8, 9), row(3, IMAGE, 4)]
    losses = []
    for pad in ((3, 0), (0, 3)):
        ids = torch.stack([rows[0], nn.functional.pad(rows[1], pad)])
        mask = (ids != 0).long()
        labels = ids.masked_fill((mask == 0) | (mask.cumsum(-1) == 1), -100)  # nothing precedes a first token
        output = model(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=pixels)
        losses.append(output.loss)
    close(losses[0], losses[1])


def test_the_callers_mask_is_what_the_language_model_sees() -> None:
    """A hole in the middle of the mask arrives as it was given."""
    model, inputs = composed(), batch()
    inputs["attention_mask"][0, 7] = 0
    seen: list[Tensor] = []
    model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(**inputs)
    assert torch.equal(seen[0], inputs["attention_mask"])


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_ready_4d_mask(name: str, kind: str) -> None:
    """A 4-D causal mask equals the 2-D one, 1e-10; one that lets the image see itself differs."""
    model, inputs = composed(language_model(name)), batch()
    expected = model(**inputs).logits
    allowed = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 1, -1, -1)

    def ready(mask: Tensor) -> Tensor:
        return mask if kind == "bool" else torch.zeros_like(mask, dtype=torch.float64).masked_fill(~mask, -1e300)

    close(model(**{**inputs, "attention_mask": ready(allowed)}).logits, expected)
    both = allowed.clone()
    both[:, :, 1:6, 1:6] = True
    assert (model(**{**inputs, "attention_mask": ready(both)}).logits - expected).abs().max() > 1e-4


def test_inputs_embeds_alone() -> None:
    """Merged embeddings and no ids give the logits of the ids, 1e-10; images then have no place and are refused."""
    model, inputs = composed(), batch()
    embeds = merged(model, inputs)
    close(model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])


def test_inputs_embeds_with_ids_are_merged_and_not_changed() -> None:
    """Embeddings of the caller's, ids for the places: features are put in; the caller's tensor stays as it was."""
    model, inputs = composed(), batch()
    text = torch.randn(2, 10, 32, dtype=torch.float64)
    kept = text.clone()
    expected = text.clone()
    mask = inputs["input_ids"] == IMAGE
    expected[mask] = merged(model, inputs)[mask]
    close(
        model(**inputs, inputs_embeds=text).logits,
        model(inputs_embeds=expected, attention_mask=inputs["attention_mask"]).logits,
    )
    assert torch.equal(text, kept)


# --- routing to encoders ----------------------------------------------------------------------------------------------


def test_a_name_with_the_key_before_it_says_which_part_is_meant() -> None:
    """`audio_attention_mask` masks samples of the sound, `attention_mask` tokens; each alone as in the parts, 1e-10."""
    encoder = ModalEncoderModule(audio())
    model = composed(encoders={"audio": encoder})
    model.set_modality_token_ids({"audio": SOUND})
    sounds = torch.randn(2, 160, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lengths = [160, 96]
    heard = torch.stack([(torch.arange(160) < length).long() for length in lengths])
    hidden = encoder.module(sounds, attention_mask=heard).last_hidden_state
    counts = [10, 6]
    assert encoder.module._get_feat_extract_output_lengths(torch.tensor(lengths)).tolist() == counts
    features = [encoder.projector(hidden[i, :count]) for i, count in enumerate(counts)]

    rows = [row(5, SOUND, 6, sound=10), row(0, 0, 0, 0, 5, SOUND, 6, sound=6)]
    ids = torch.stack(rows)
    mask = (ids != 0).long()
    embeds = model.get_input_embeddings()(ids.masked_fill(ids == SOUND, 0)).clone()
    embeds[ids == SOUND] = torch.cat(features)
    expected = model(inputs_embeds=embeds, attention_mask=mask).logits
    found = model(input_ids=ids, attention_mask=mask, input_values=sounds, audio_attention_mask=heard).logits
    close(found[mask.bool()], expected[mask.bool()])


def test_two_encoders_share_pixel_values_or_are_told_apart() -> None:
    """A shared name reaches both; `{key}_pixel_values` reaches one, each with its own size of image, 1e-10."""
    small, large = vision(1), vision(6, hidden_size=24, image_size=12)
    encoders = {"small": ModalEncoderModule(small), "large": ModalEncoderModule(large)}
    model = composed(encoders=encoders)
    ids = row(5, IMAGE, 6, SOUND, 7, sound=10)[None]
    little, big = images(1), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    expected = model(
        input_ids=ids,
        encoder_outputs={"small": small(little).last_hidden_state, "large": large(big).last_hidden_state},
    ).logits
    close(model(input_ids=ids, small_pixel_values=little, large_pixel_values=big).logits, expected)

    twins = composed(encoders={"small": ModalEncoderModule(vision(1)), "large": ModalEncoderModule(vision(6))})
    ids = row(5, IMAGE, 6, SOUND, 7, sound=5)[None]
    shared = twins(input_ids=ids, pixel_values=little).logits
    close(shared, twins(input_ids=ids, small_pixel_values=little, large_pixel_values=little).logits)


def test_two_encoders_one_of_them_absent() -> None:
    """With vision and audio, each input runs its own encoder only."""
    encoders = {"vision": ModalEncoderModule(vision()), "audio": ModalEncoderModule(audio())}
    model = composed(encoders=encoders)
    ran: list[str] = []
    for key, encoder in encoders.items():
        encoder.module.register_forward_hook(lambda *_, key=key: ran.append(key))
    model(input_ids=row(5, IMAGE, 6)[None], pixel_values=images(1))
    sound = torch.randn(1, 160, dtype=torch.float64)
    model(input_ids=row(5, SOUND, 6, sound=10)[None], input_values=sound)
    assert ran == ["vision", "audio"]
    model(input_ids=row(5, IMAGE, SOUND, 6, sound=10)[None], pixel_values=images(1), input_values=sound)
    assert ran == ["vision", "audio", "vision", "audio"]


def test_additional_args_reach_callbacks_only() -> None:
    """A named extra argument is in `inputs` of every callback and never in the encoder's own call."""
    seen: dict[str, Any] = {}

    def before(inputs: dict[str, Any]) -> dict[str, Any]:
        seen["before"] = inputs["scale"]
        return {**inputs, "pixel_values": inputs["pixel_values"] * inputs["scale"]}

    def after(inputs: dict[str, Any], output: Any) -> Any:
        seen["after"] = inputs["scale"]
        return output

    def last(inputs: dict[str, Any], output: Any) -> Any:
        seen["last"] = inputs["scale"]
        return output

    encoder = ModalEncoderModule(
        vision(),
        additional_args=("scale",),
        preprocess_callback=before,
        postprocess_module_callback=after,
        postprocess_projector_callback=last,
    )
    model, inputs = composed(encoders={"vision": encoder}), batch()
    close(
        model(**inputs, scale=2.0).logits, composed()(**{**inputs, "pixel_values": inputs["pixel_values"] * 2}).logits
    )
    assert seen == {"before": 2.0, "after": 2.0, "last": 2.0}


@pytest.mark.parametrize("name", ["labels", "inputs_embeds", "attention_mask"])
def test_additional_args_may_be_the_language_models(name: str) -> None:
    """An argument of the language model that an encoder's callback asks for reaches both."""
    seen: dict[str, Any] = {}

    def before(inputs: dict[str, Any]) -> dict[str, Any]:
        seen.update(inputs)
        return inputs

    encoder = ModalEncoderModule(vision(), additional_args=(name,), preprocess_callback=before)
    model, inputs = composed(encoders={"vision": encoder}), batch()
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 0))
    given = {"inputs_embeds": embeds, "attention_mask": torch.ones_like(inputs["input_ids"])}
    given["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    output = model(**{**inputs, name: given[name]})
    assert seen[name] is given[name]
    close(output.logits, composed()(**inputs).logits)
    assert (output.loss is None) == (name != "labels")


def test_two_encoders_of_one_name_one_of_them_ready() -> None:
    """The message says under which name the input of the other goes."""
    model = composed(encoders={"vision": ModalEncoderModule(vision()), "audio": ModalEncoderModule(vision(2))})
    ids = row(5, IMAGE, SOUND, 6, sound=FEATURES)[None]
    ready = {"vision": model.encoders["vision"].module(images(1)).last_hidden_state}
    with pytest.raises(ArgumentError, match=r"'vision'.*meant for 'audio', pass audio_pixel_values"):
        model(input_ids=ids, encoder_outputs=ready, pixel_values=images(1))
    model(input_ids=ids, encoder_outputs=ready, audio_pixel_values=images(1))


def test_labels_that_are_shifted_already() -> None:
    """Hugging Face's own loss on shift_labels, -100 for what is at an image's position: the same, 1e-10."""
    model, inputs = composed(), batch()
    ids = inputs["input_ids"]
    shifted = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    kept = shifted.masked_fill(shifted == IMAGE, -100)
    mask = inputs.get("attention_mask")
    embeds = merged(model, inputs)
    expected = model.language_model(inputs_embeds=embeds, attention_mask=mask, labels=ids, shift_labels=kept).loss
    close(model(**inputs, shift_labels=shifted).loss, expected)
    close(model(**inputs, labels=torch.full_like(ids, 3), shift_labels=shifted).loss, expected)
    assert "shift_labels" in inspect.signature(model.forward).parameters
    with pytest.raises(ArgumentError, match="last position"):
        model(**inputs, shift_labels=ids.clamp(max=95))
    with pytest.raises(ArgumentError, match="shape"):
        model(**inputs, shift_labels=shifted[:, 1:])


# --- the language model's callback ------------------------------------------------------------------------------------


def test_preprocess_llm_callback_sees_everything_and_changes_the_call(peft: bool) -> None:
    """It is given ids, encoder inputs and merged embeddings; what it returns is what the language model gets, 1e-10."""
    seen: dict[str, Any] = {}

    def callback(inputs: dict[str, Any]) -> dict[str, Any]:
        seen.update(inputs)
        return {**inputs, "position_ids": torch.arange(10).mul(2).expand(2, -1)}

    model, inputs = composed(language_model(peft=peft), preprocess_llm_callback=callback), batch()
    found = model(**inputs).logits
    assert {"input_ids", "attention_mask", "pixel_values", "inputs_embeds"} <= set(seen)
    close(seen["inputs_embeds"], merged(model, inputs))
    close(
        found, composed(language_model(peft=peft))(**inputs, position_ids=torch.arange(10).mul(2).expand(2, -1)).logits
    )


def test_preprocess_llm_callback_runs_in_generate() -> None:
    """Embeddings it changes change the tokens: doubling the prompt's scale is the same as giving it so."""
    calls: list[set[str]] = []

    def callback(inputs: dict[str, Any]) -> dict[str, Any]:
        calls.append(set(inputs))
        return {**inputs, "inputs_embeds": -inputs["inputs_embeds"]}

    model, inputs = composed(preprocess_llm_callback=callback), batch()
    found = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = model.language_model.generate(
        inputs_embeds=-merged(model, inputs),
        attention_mask=inputs["attention_mask"],
        max_new_tokens=4,
        do_sample=False,
    )
    assert calls
    assert "input_ids" in calls[0]
    assert found[:, 10:].tolist() == expected.tolist()


# --- copies and compilation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_deep_copy_is_independent(checkpointing: bool, peft: bool) -> None:
    """Equal outputs and gradients, 1e-10; changing, training or freezing one changes nothing of the other."""
    model, inputs = composed(language_model(peft=peft)).train(), batch()
    if checkpointing:
        model.gradient_checkpointing_enable()
    twin = copy.deepcopy(model)
    assert twin.encoders["vision"] is twin.vision_encoder
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert twin.is_gradient_checkpointing == checkpointing

    twin(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradients = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        assert (parameter.grad is None) == (gradients[name].grad is None), name
        if parameter.grad is not None:
            close(parameter.grad, gradients[name].grad)

    before = model.eval()(**inputs).logits
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.train({"vision": (False, False)}, llm_mode=False)
    twin.set_modality_token_ids({"vision": 300})
    close(model(**inputs).logits, before)
    assert model.modality_token_ids == {"vision": IMAGE}
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_torch_compile(mode: bool) -> None:
    """Through Dynamo with the eager backend: loss and gradients of the plain model, 1e-10; a second shape too."""
    torch.compiler.reset()
    model = composed().train(mode)
    compiled = torch.compile(model, backend="eager")
    weight = model.encoders["vision"].projector.projection.weight
    for samples in (1, 3):
        inputs = batch(samples)
        expected = model(**inputs, labels=inputs["input_ids"]).loss
        (gradient,) = torch.autograd.grad(expected, weight)
        found = compiled(**inputs, labels=inputs["input_ids"]).loss
        close(found, expected)
        close(torch.autograd.grad(found, weight)[0], gradient)
    torch.compiler.reset()
