"""Generation: the same tokens whatever the batch, the padding and the way of decoding."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, GenerationConfig

from cornstarch import ArgumentError
from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel

# --- parts ------------------------------------------------------------------------------------------------------------

IMAGE, SOUND = 200, 201  # beyond every embedding table
VOCABULARY, FEATURES = 96, 5
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,  # tests that stop say where
}
_NO_DROP = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 2}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "gpt2": ("GPT2LMHeadModel", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "falcon-alibi": ("FalconForCausalLM", {"alibi": True, "multi_query": False}),
    "gpt-neox": ("GPTNeoXForCausalLM", {}),
    "roberta": ("RobertaForCausalLM", {"is_decoder": True, **_NO_DROP}),  # positions begin behind the padding id
    "xlm-roberta": ("XLMRobertaForCausalLM", {"is_decoder": True, "pad_token_id": 1, "bos_token_id": 2, **_NO_DROP}),
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


def vision(seed: int = 1) -> CLIPVisionModel:
    torch.manual_seed(seed)
    config = {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    return CLIPVisionModel(CLIPVisionConfig(hidden_size=16, **config, patch_size=4)).double()


def composed(lm: Any = None, encoders: Any = None) -> MultimodalModel:
    lm = language_model() if lm is None else lm
    encoders = {"vision": ModalEncoderModule(vision())} if encoders is None else encoders
    torch.manual_seed(3)
    model = MultimodalModel(encoders, lm).double()
    model.set_modality_token_ids(dict(zip(encoders, (IMAGE, SOUND), strict=False)))
    return model.eval()


def row(*parts: int) -> Tensor:
    return torch.tensor([i for part in parts for i in [part] * (FEATURES if part in (IMAGE, SOUND) else 1)])


def images(count: int, seed: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def left_padded(rows: list[Tensor], pad: int = 0) -> dict[str, Tensor]:
    length = max(map(len, rows))
    ids = torch.stack([nn.functional.pad(r, (length - len(r), 0), value=pad) for r in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(r), (length - len(r), 0)) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


ROWS = [row(5, IMAGE, 6, 7, 8, 9), row(3, IMAGE, 4), row(11, 12, IMAGE, 13)]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def merged(model: MultimodalModel, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    """The prompt's embeddings, made without the package's forward."""
    encoder = model.encoders["vision"]
    mask = input_ids == IMAGE
    embeds = model.get_input_embeddings()(input_ids.masked_fill(mask, 0)).detach().clone()
    embeds[mask] = encoder.projector(encoder.module(pixel_values).last_hidden_state).detach().flatten(0, 1)
    return embeds


def direct(model: MultimodalModel, input_ids: Tensor, pixel_values: Tensor, **arguments: Any) -> Any:
    """Hugging Face's `generate` of the language model on the merged embeddings: new tokens only."""
    mask = arguments.pop("attention_mask", torch.ones_like(input_ids))
    return model.language_model.generate(
        inputs_embeds=merged(model, input_ids, pixel_values), attention_mask=mask, **arguments
    )


@pytest.fixture(params=[False, True], ids=["plain", "peft"])
def peft(request: pytest.FixtureRequest) -> bool:
    return request.param


# --- the same tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_left_padded_batch_equals_single_prompts(name: str, use_cache: bool, peft: bool) -> None:
    """Token for token, prompt first: each row of a left-padded batch is the row generated alone without a mask."""
    model, pixels = composed(language_model(name, peft=peft)), images(3)
    together = model.generate(**left_padded(ROWS), pixel_values=pixels, use_cache=use_cache, **GREEDY)
    for index, ids in enumerate(ROWS):
        alone = model.generate(ids[None], pixel_values=pixels[index : index + 1], use_cache=use_cache, **GREEDY)
        assert alone[0, : len(ids)].tolist() == ids.tolist()
        assert alone.shape == (1, len(ids) + 6)
        assert together[index].tolist()[-len(ids) - 6 :] == alone[0].tolist()


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_greedy_tokens_are_the_arg_max_of_forward(name: str, use_cache: bool, peft: bool) -> None:
    """Each new token is the arg-max of this model's own forward on everything before it."""
    model, ids, pixels = composed(language_model(name, peft=peft)), ROWS[0][None], images(1)
    generated = model.generate(ids, pixel_values=pixels, use_cache=use_cache, **GREEDY)
    predicted = model(input_ids=generated[:, :-1], pixel_values=pixels).logits.argmax(-1)
    assert predicted[0, -6:].tolist() == generated[0, -6:].tolist()


def test_the_image_matters() -> None:
    """Another image gives other tokens."""
    model, ids = composed(), ROWS[0][None]
    first, second = (model.generate(ids, pixel_values=scale * images(1), **GREEDY) for scale in (1, -3))
    assert first.tolist() != second.tolist()


def test_prompt_is_returned_unchanged() -> None:
    """The caller's ids, modality ids beyond the vocabulary among them, come back in front and are not written to."""
    model, inputs = composed(), left_padded(ROWS)
    kept = inputs["input_ids"].clone()
    generated = model.generate(**inputs, pixel_values=images(3), **GREEDY)
    assert torch.equal(generated[:, : kept.shape[1]], kept)
    assert torch.equal(inputs["input_ids"], kept)
    assert int(generated[:, kept.shape[1] :].max()) < VOCABULARY


def test_encoder_runs_once() -> None:
    """The encoder runs for the prompt, not for every token, beams or not."""
    model, ran = composed(), []
    model.encoders["vision"].module.register_forward_hook(lambda *_: ran.append(1))
    model.generate(**left_padded(ROWS), pixel_values=images(3), **GREEDY)
    model.generate(**left_padded(ROWS), pixel_values=images(3), num_beams=3, **GREEDY)
    assert len(ran) == 2


def test_encoder_outputs_stand_for_inputs() -> None:
    """Ready hidden states give the same tokens."""
    model, pixels = composed(), images(3)
    hidden = model.encoders["vision"].module(pixels).last_hidden_state
    expected = model.generate(**left_padded(ROWS), pixel_values=pixels, **GREEDY)
    found = model.generate(**left_padded(ROWS), encoder_outputs={"vision": hidden}, **GREEDY)
    assert found.tolist() == expected.tolist()


def test_only_some_prompts_have_an_image() -> None:
    """A batch with a text-only row equals each row alone."""
    model, pixels = composed(), images(2)
    rows = [ROWS[0], row(3, 4, 5), row(6, IMAGE, 7)]
    together = model.generate(**left_padded(rows), pixel_values=pixels, **GREEDY)
    for index, own in enumerate((pixels[:1], None, pixels[1:])):
        alone = model.generate(rows[index][None], pixel_values=own, **GREEDY)
        assert together[index].tolist()[-alone.shape[1] :] == alone[0].tolist()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_training_mode_is_left_as_it_was(checkpointing: bool) -> None:
    """Tokens in training mode (no dropout here) are those of evaluation mode, and the mode stays."""
    model = composed().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    expected = composed().generate(ROWS[0][None], pixel_values=images(1), **GREEDY)
    found = model.generate(ROWS[0][None], pixel_values=images(1), **GREEDY)
    assert found.tolist() == expected.tolist()
    assert model.training
    assert model.language_model.training


# --- ways of decoding -------------------------------------------------------------------------------------------------


def test_beams() -> None:
    """Beam search over a padded batch equals Hugging Face's on merged embeddings, and each row alone."""
    model, pixels, inputs = composed(), images(3), left_padded(ROWS)
    options = {**GREEDY, "num_beams": 3}
    together = model.generate(**inputs, pixel_values=pixels, **options)
    assert (
        together[:, inputs["input_ids"].shape[1] :].tolist()
        == direct(model, **inputs, pixel_values=pixels, **options).tolist()
    )
    for index, ids in enumerate(ROWS):
        alone = model.generate(ids[None], pixel_values=pixels[index : index + 1], **options)
        assert together[index].tolist()[-alone.shape[1] :] == alone[0].tolist()


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"do_sample": True}], ids=["beams", "sampling"])
def test_num_return_sequences(options: dict[str, Any]) -> None:
    """Three sequences a prompt, in the prompts' order, each with its own prompt in front."""
    model, inputs = composed(), left_padded(ROWS)
    arguments = {**GREEDY, "num_return_sequences": 3, **options}
    torch.manual_seed(0)
    found = model.generate(**inputs, pixel_values=images(3), **arguments)
    length = inputs["input_ids"].shape[1]
    assert found.shape == (9, length + 6)
    assert torch.equal(found[:, :length], inputs["input_ids"].repeat_interleave(3, 0))
    torch.manual_seed(0)
    expected = direct(model, **inputs, pixel_values=images(3), **arguments)
    assert found[:, length:].tolist() == expected.tolist()


def test_sampling_follows_the_seed() -> None:
    """A seed gives the same tokens twice, another seed others."""
    model, inputs = composed(), left_padded(ROWS)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        options = {**GREEDY, "do_sample": True, "temperature": 2.0, "max_new_tokens": 12}
        drawn.append(model.generate(**inputs, pixel_values=images(3), **options).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("beams", [1, 2])
def test_return_dict_in_generate(beams: int) -> None:
    """Hugging Face's own output class, `sequences` with the prompt in front, one score per new token."""
    model, inputs = composed(), left_padded(ROWS)
    options = {**GREEDY, "num_beams": beams}
    expected = model.generate(**inputs, pixel_values=images(3), **options)
    output = model.generate(
        **inputs,
        pixel_values=images(3),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
    )
    assert type(output).__name__ == ("GenerateDecoderOnlyOutput" if beams == 1 else "GenerateBeamDecoderOnlyOutput")
    assert output.sequences.tolist() == expected.tolist()
    assert len(output.scores) == 6
    assert len(output.logits) == 6


@pytest.mark.parametrize(
    "option",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [6]]},
        {"min_new_tokens": 3},
    ],
    ids=lambda option: "-".join(f"{name}={value}" for name, value in option.items()),
)
@pytest.mark.parametrize("padded", [False, True], ids=["one", "padded"])
def test_processors_of_logits_with_modality_ids_beyond_the_vocabulary(option: dict[str, Any], padded: bool) -> None:
    """The same tokens as with a modality id inside a vocabulary one larger, whose extra logit is ruled out."""
    rows = ROWS if padded else ROWS[:1]
    found = composed().generate(**left_padded(rows), pixel_values=images(len(rows)), **GREEDY, **option)
    assert found.shape == (len(rows), len(rows[0]) + 6)

    larger = composed()
    larger.language_model.resize_token_embeddings(VOCABULARY + 1)
    larger.set_modality_token_ids({"vision": VOCABULARY})
    inside = [r.masked_fill(r == IMAGE, VOCABULARY) for r in rows]
    inputs = left_padded(inside)
    bad = {**option, "bad_words_ids": [*option.get("bad_words_ids", []), [VOCABULARY]]}
    expected = larger.generate(**inputs, pixel_values=images(len(rows)), **GREEDY, **bad)
    assert found[:, -6:].tolist() == expected[:, -6:].tolist()


def test_no_ngram_is_made_up_for_modality_positions() -> None:
    """A token wanted at every step comes twice with `no_repeat_ngram_size=2`, as no such pair stands in the prompt."""
    for wanted in (5, 6):  # the text before the image, and the text after it
        found = composed().generate(
            ROWS[0][None], pixel_values=images(1), no_repeat_ngram_size=2, sequence_bias={(wanted,): 1e4}, **GREEDY
        )
        new = found[0, -6:].tolist()
        assert new[:2] == [wanted, wanted]
        assert new[2] != wanted


@pytest.mark.parametrize("option", ["prompt_lookup_num_tokens", "assistant_model", "prefill_chunk_size"])
def test_what_reads_the_ids_of_the_prompt_is_refused(option: str) -> None:
    """transformers drops the tokens that are guessed behind embeddings, and gives other text than greedily."""
    model, ids, pixels = composed(), ROWS[0][None], images(1)
    value = language_model() if option == "assistant_model" else 2
    with pytest.raises(ArgumentError, match=option):
        model.generate(ids, pixel_values=pixels, **{option: value}, **GREEDY)
    if option != "assistant_model":
        config = GenerationConfig(max_new_tokens=2, **{option: value})
        with pytest.raises(ArgumentError, match=option):
            model.generate(ids, pixel_values=pixels, generation_config=config)


@pytest.mark.parametrize("penalty", [1e9, 1e-9], ids=["ruled-out", "alone-allowed"])
def test_repetition_penalty_sees_the_text_of_the_prompt(penalty: float) -> None:
    """A huge penalty keeps the prompt's tokens out of what is new; a tiny one lets nothing else in."""
    found = composed().generate(ROWS[0][None], pixel_values=images(1), repetition_penalty=penalty, **GREEDY)
    text, new = {5, 6, 7, 8, 9}, found[0, -6:].tolist()
    if penalty > 1:
        assert len(set(new)) == 6
        assert not text & set(new)
    else:
        assert set(new) <= text


# --- where it stops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", [False, True], ids=["number", "list"])
@pytest.mark.parametrize("place", ["argument", "generation_config", "config"])
def test_eos(as_list: bool, place: str) -> None:
    """Generation stops after the first end token, however and wherever it is given, and fills up with padding."""
    model, pixels, inputs = composed(), images(3), left_padded(ROWS)
    free = model.generate(**inputs, pixel_values=pixels, **GREEDY)
    length = inputs["input_ids"].shape[1]
    stop = int(free[0, length + 1])
    eos = [95 if stop != 95 else 94, stop] if as_list else stop
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    if place == "argument":
        options["eos_token_id"] = eos
    elif place == "generation_config":
        model.generation_config.eos_token_id = eos
    else:
        options["generation_config"] = GenerationConfig(pad_token_id=0, eos_token_id=eos)
    found = model.generate(**inputs, pixel_values=pixels, **options)
    for row_found, row_free in zip(found[:, length:].tolist(), free[:, length:].tolist(), strict=True):
        stops = set(eos) if as_list else {eos}
        end = next((i + 1 for i, token in enumerate(row_free) if token in stops), 6)
        assert row_found[:end] == row_free[:end]
        assert set(row_found[end:]) <= {0}


def test_no_eos_at_all() -> None:
    """A language model without an end token generates as many tokens as asked."""
    lm = language_model(pad_token_id=None, bos_token_id=None)
    found = composed(lm).generate(ROWS[0][None], pixel_values=images(1), max_new_tokens=5, do_sample=False)
    assert found.shape == (1, len(ROWS[0]) + 5)


def test_max_length_counts_the_prompt() -> None:
    """`max_length` is the length of what is returned, prompt included."""
    ids = ROWS[0][None]
    found = composed().generate(ids, pixel_values=images(1), max_length=ids.shape[1] + 3, do_sample=False)
    assert found.shape == (1, ids.shape[1] + 3)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_without_a_mask_a_full_prompt_is_seen_whole() -> None:
    """No mask and no padding equals a mask of ones."""
    model, pixels = composed(), images(2)
    ids = torch.stack([row(5, IMAGE, 6, 7), row(8, 9, IMAGE, 10)])
    expected = model.generate(ids, torch.ones_like(ids), pixel_values=pixels, **GREEDY)
    assert model.generate(ids, pixel_values=pixels, **GREEDY).tolist() == expected.tolist()
    assert model.generate(input_ids=ids, pixel_values=pixels, **GREEDY).tolist() == expected.tolist()


def test_without_a_mask_padding_in_the_prompt_is_found_as_hugging_face_finds_it() -> None:
    """With padding tokens and no mask: what a mask of the non-padding gives."""
    model, pixels, inputs = composed(), images(3), left_padded(ROWS)
    expected = model.generate(**inputs, pixel_values=pixels, **GREEDY)
    found = model.generate(inputs["input_ids"], pixel_values=pixels, **GREEDY)
    assert found.tolist() == expected.tolist()


def test_padding_id_equal_to_the_replacement_of_modality_ids() -> None:
    """The image's positions are not taken for padding, although ids are looked up with modality ids replaced by 0."""
    model, pixels = composed(language_model(pad_token_id=0)), images(1)
    ids = row(IMAGE, 6, 7)[None]
    expected = model.generate(ids, torch.ones_like(ids), pixel_values=pixels, **GREEDY)
    assert model.generate(ids, pixel_values=pixels, **GREEDY).tolist() == expected.tolist()
    only = row(IMAGE)[None]
    expected = model.generate(only, torch.ones_like(only), pixel_values=pixels, **GREEDY)
    assert model.generate(only, pixel_values=pixels, **GREEDY).tolist() == expected.tolist()


# --- streams, dtypes, wrappers ----------------------------------------------------------------------------------------


class _Recorder:
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert value.device.type == "cpu"
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamer(peft: bool) -> None:
    """The prompt once, as the caller wrote it, then every token, then the end: together what is returned."""
    model, recorder = composed(language_model(peft=peft)), _Recorder()
    found = model.generate(ROWS[0][None], pixel_values=images(1), streamer=recorder, **GREEDY)
    assert recorder.pieces[0] == ROWS[0].tolist()
    assert all(len(piece) == 1 for piece in recorder.pieces[1:])
    assert [token for piece in recorder.pieces for token in piece] == found[0].tolist()
    assert recorder.ended == 1


def test_text_only(peft: bool) -> None:
    """Without any modality the tokens are the language model's own, and no encoder runs."""
    model = composed(language_model(peft=peft))
    model.encoders["vision"].module.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    inputs = left_padded([row(5, 6, 7, 8), row(9, 10)])
    expected = model.language_model.generate(**inputs, **GREEDY)
    assert model.generate(**inputs, **GREEDY).tolist() == expected.tolist()
    assert model.generate(**inputs, pixel_values=None, **GREEDY).tolist() == expected.tolist()


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_mixed_dtypes(dtypes: tuple[str, str], peft: bool) -> None:
    """Encoder and language model in dtypes of their own: tokens of Hugging Face's generate on the same embeddings."""
    encoder_dtype, lm_dtype = (getattr(torch, name) for name in dtypes)
    encoder = ModalEncoderModule(vision().to(encoder_dtype))
    lm = language_model(peft=peft).to(lm_dtype)
    torch.manual_seed(3)
    model = MultimodalModel({"vision": encoder}, lm)
    model.set_modality_token_ids({"vision": IMAGE})
    model.eval()
    between = torch.promote_types(encoder_dtype, lm_dtype)
    assert encoder.projector.projection.weight.dtype == between
    pixels = images(1).float()
    ids = ROWS[0][None]
    found = model.generate(ids, pixel_values=pixels, **GREEDY)
    mask = ids == IMAGE
    embeds = lm.get_input_embeddings()(ids.masked_fill(mask, 0)).detach().clone()
    hidden = encoder.module(pixels.to(encoder_dtype)).last_hidden_state
    embeds[mask] = encoder.projector(hidden.to(between)).detach().flatten(0, 1).to(lm_dtype)
    expected = lm.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **GREEDY)
    assert found[0, -6:].tolist() == expected[0].tolist()


def test_inside_autocast(peft: bool) -> None:
    """Under bf16 autocast generation runs and its first token is the arg-max of forward under the same autocast."""
    model = composed(language_model(peft=peft)).float()
    ids, pixels = ROWS[0][None], images(1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.generate(ids, pixel_values=pixels, **GREEDY)
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    assert found.shape == (1, ids.shape[1] + 6)
    assert int(found[0, ids.shape[1]]) == int(logits.argmax())


def test_peft_generates_with_its_adapters() -> None:
    """Adapters change the tokens; switched off, the base's tokens come back."""
    plain, adapted = composed(language_model()), composed(language_model(peft=True))
    ids, pixels = ROWS[0][None], images(1)
    expected = plain.generate(ids, pixel_values=pixels, **GREEDY).tolist()
    assert adapted.generate(ids, pixel_values=pixels, **GREEDY).tolist() != expected
    with adapted.language_model.disable_adapter():
        assert adapted.generate(ids, pixel_values=pixels, **GREEDY).tolist() == expected


def test_two_encoders_run_on_one_name() -> None:
    """Two encoders that take `pixel_values` both run: tokens of Hugging Face's generate on both merged."""
    first, second = ModalEncoderModule(vision(1)), ModalEncoderModule(vision(7))
    model, pixels = composed(encoders={"first": first, "second": second}), images(1)
    ran: list[str] = []
    for key, encoder in model.encoders.items():
        encoder.module.register_forward_hook(lambda *_, key=key: ran.append(key))
    ids = row(5, IMAGE, 6, SOUND, 7)[None]
    found = model.generate(ids, pixel_values=pixels, **GREEDY)
    assert ran == ["first", "second"]
    embeds = model.get_input_embeddings()(ids.masked_fill(ids >= VOCABULARY, 0)).detach().clone()
    for token, encoder in ((IMAGE, first), (SOUND, second)):
        embeds[ids == token] = encoder.projector(encoder.module(pixels).last_hidden_state).detach().flatten(0, 1)
    expected = model.language_model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **GREEDY)
    assert found[0, -6:].tolist() == expected[0].tolist()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_mismatch_is_an_error_before_anything_is_generated() -> None:
    """Positions without an input, and an input without positions, are a ValueError naming the modality."""
    for ids, pixels in ((ROWS[0], None), (row(5, 6), images(1))):
        with pytest.raises(ValueError, match="'vision'"):
            composed().generate(ids[None], pixel_values=pixels, **GREEDY)


def test_misspelt_argument_is_an_error(peft: bool) -> None:
    """An argument that no part and no generation config takes is refused."""
    with pytest.raises((TypeError, ValueError), match="pixel_valeus"):
        composed(language_model(peft=peft)).generate(row(5, 6)[None], pixel_valeus=images(1), **GREEDY)


def test_no_prompt_is_an_error() -> None:
    """A ValueError naming `input_ids`."""
    with pytest.raises(ValueError, match="input_ids"):
        composed().generate(pixel_values=images(1))


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_prompt_learning_is_refused_with_the_reason(config: Any) -> None:
    lm = get_peft_model(language_model(), config(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))
    with pytest.raises(ArgumentError, match=r"prompt learning.*LoRA"):
        composed(lm).generate(ROWS[0][None], pixel_values=images(1), **GREEDY)


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("OpenAIGPTLMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("CTRLLMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 16}),
        ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}),
        ("XLMWithLMHeadModel", {"emb_dim": 16, "n_layers": 1, "n_heads": 2}),
    ],
)
def test_models_that_generate_from_ids_only_are_refused_with_the_reason(name: str, sizes: dict[str, Any]) -> None:
    cls = getattr(transformers, name)
    model = composed(cls(cls.config_class(vocab_size=VOCABULARY, **sizes)).double(), {})
    with pytest.raises(ArgumentError, match=f"{name}.*cannot start from embeddings"):
        model.generate(torch.tensor([[5, 6]]), **GREEDY)
