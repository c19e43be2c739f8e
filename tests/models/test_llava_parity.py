"""Parity with `LlavaForConditionalGeneration` on the same weights: logits, loss, every gradient, generated tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from cornstarch import ModalEncoderModule, MultimodalModel, MultimodalProjector, MultimodalProjectorConfig
from tests import tiny

INSIDE, BEYOND = 91, tiny.IMAGE  # an id of the table that no text uses, and one beyond it

# vision tower, language model, which hidden states, with or without the first row, and how many rows are left
PAIRS: dict[str, tuple[str, str, int, str, int]] = {
    "clip-llama": ("clip", "llama", -2, "default", 4),
    "clip-llama-last-layer": ("clip", "llama", -1, "full", 5),
    "siglip-qwen3": ("siglip", "qwen3", -1, "full", 4),
    "dinov2-mistral": ("dinov2", "mistral", -2, "default", 4),
    # language models for which it matters where a token stands, not only how far from others
    "clip-opt": ("clip", "opt", -2, "default", 4),
    "clip-gpt2": ("clip", "gpt2", -2, "default", 4),
    "clip-falcon-alibi": ("clip", "falcon-alibi", -2, "default", 4),
}
MAIN = ["clip-llama", "clip-llama-last-layer", "siglip-qwen3", "dinov2-mistral"]

# How many images each sample has.
BATCHES: dict[str, tuple[str, list[int]]] = {
    "no-padding": ("none", [1, 1]),
    "right": ("right", [1, 1]),
    "left": ("left", [1, 1]),
    "right-text-only-and-two-images": ("right", [1, 0, 2]),
    "left-text-only-and-two-images": ("left", [2, 0, 1]),
}


def pair(name: str, token_id: int, tie: bool = False) -> tuple[LlavaForConditionalGeneration, MultimodalModel]:
    """Hugging Face's LLaVA and ours with copies of its weights, in fp64 and evaluation mode."""
    vision, lm, layer, strategy, _ = PAIRS[name]
    torch.manual_seed(0)
    text_config = tiny.language_model_config(lm, tie_word_embeddings=tie)
    config = LlavaConfig(
        vision_config=tiny.encoder_config(vision),
        text_config=text_config,
        image_token_index=INSIDE,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=tie,
    )
    reference = tiny.loud(LlavaForConditionalGeneration(config), torch.float64).eval()

    tower = copied(tiny.encoder(vision, torch.float64), reference.model.vision_tower)
    causal = getattr(transformers, tiny.LANGUAGE_MODELS[lm][0])(text_config).double()
    copied(causal.base_model, reference.model.language_model)
    copied(causal.lm_head, reference.lm_head)
    projector_config = MultimodalProjectorConfig(tower.config, text_config, "mlp", config.projector_hidden_act)
    projector = MultimodalProjector(projector_config).double()
    copied(projector.projection[0], reference.model.multi_modal_projector.linear_1)
    copied(projector.projection[2], reference.model.multi_modal_projector.linear_2)
    skip = 1 if strategy == "default" else 0
    encoder = ModalEncoderModule(
        tower,
        projector,
        preprocess_callback=lambda inputs: {**inputs, "output_hidden_states": True},
        postprocess_module_callback=lambda inputs, output: output.hidden_states[layer][:, skip:],
    )
    model = MultimodalModel({"vision": encoder}, causal).eval()
    model.set_modality_token_ids({"vision": token_id})
    return reference, model


def copied(part: nn.Module, source: nn.Module) -> Any:
    part.load_state_dict(source.state_dict(), strict=True)
    return part


def batch(name: str, rows: int, token_id: int) -> dict[str, Tensor]:
    """Samples of different lengths with text around their images; every real position is labelled."""
    side, counts = BATCHES[name]
    samples = []
    for sample, count in enumerate(counts):
        length = 3 if side == "none" else 2 + 2 * sample
        ids = tiny.text(length, seed=10 + sample)
        for image in range(count):
            ids += [token_id] * rows + tiny.text(3, seed=20 + 5 * sample + image)
        samples.append(ids)
    made: dict[str, Tensor] = tiny.padded(samples, "left" if side == "left" else "right")
    made["labels"] = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    made["pixel_values"] = tiny.images(sum(counts), torch.float64)
    if side == "none":
        del made["attention_mask"]
    return made


def for_reference(inputs: dict[str, Tensor], token_id: int, positions: bool) -> dict[str, Tensor]:
    """The same batch for Hugging Face's model: its image id, no labels at images, positions from the mask."""
    made = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == token_id, INSIDE)}
    if "labels" in inputs:
        made["labels"] = inputs["labels"].masked_fill(inputs["input_ids"] == token_id, -100)
    if positions and "attention_mask" in inputs:
        made["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return made


def gradients(model: MultimodalModel) -> dict[str, Tensor | None]:
    """Gradients by the name that Hugging Face's LLaVA gives the weight."""
    base = model.language_model.base_model_prefix
    renamed = {
        "vision_encoder.module.": "model.vision_tower.",
        "vision_encoder.projector.projection.0.": "model.multi_modal_projector.linear_1.",
        "vision_encoder.projector.projection.2.": "model.multi_modal_projector.linear_2.",
        f"language_model.{base}.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
    }
    found = {}
    for name, parameter in model.named_parameters():
        prefix = next(prefix for prefix in renamed if name.startswith(prefix))
        found[renamed[prefix] + name.removeprefix(prefix)] = parameter.grad
    return found


def assert_same_gradients(model: MultimodalModel, reference: LlavaForConditionalGeneration) -> None:
    found = gradients(model)
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:  # layers behind the one whose hidden states are taken
            assert found[name] is None, name
        else:
            tiny.assert_near(found[name], gradient, what=name)
    arrived = found["model.multi_modal_projector.linear_1.weight"]
    assert arrived.abs().max() > 1e-4, "the images do not reach the loss"


def check_forward_and_backward(name: str, batch_name: str, token_id: int, tie: bool = False) -> None:
    reference, model = pair(name, token_id, tie)
    inputs = batch(batch_name, PAIRS[name][4], token_id)
    takes_positions = PAIRS[name][1] not in ("falcon-alibi",)
    expected = reference(**for_reference(inputs, token_id, takes_positions))
    output = model(**inputs)

    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    tiny.assert_near(output.logits[real], expected.logits[real], what="logits")
    tiny.assert_near(output.loss, expected.loss, what="loss")
    expected.loss.backward()
    output.loss.backward()
    assert_same_gradients(model, reference)


@pytest.mark.parametrize("token_id", [INSIDE, BEYOND], ids=["inside", "beyond"])
@pytest.mark.parametrize("batch_name", BATCHES)
@pytest.mark.parametrize("name", MAIN)
def test_forward_and_backward(name: str, batch_name: str, token_id: int) -> None:
    """Logits at real positions, loss and every gradient equal Hugging Face's LLaVA, 1e-10 in fp64."""
    check_forward_and_backward(name, batch_name, token_id)


@pytest.mark.parametrize("batch_name", BATCHES)
@pytest.mark.parametrize("name", [name for name in PAIRS if name not in MAIN])
def test_language_models_that_count_positions(name: str, batch_name: str) -> None:
    """Logits, loss and every gradient equal LLaVA around an absolute-position or ALiBi model, 1e-10 in fp64."""
    check_forward_and_backward(name, batch_name, BEYOND)


def test_tied_head() -> None:
    """Gradients of a table shared by embedding and head equal Hugging Face's LLaVA, 1e-10 in fp64."""
    check_forward_and_backward("clip-llama", "left-text-only-and-two-images", BEYOND, tie=True)


def test_positions_only_differ_by_a_shift() -> None:
    """With left padding, LLaVA without our positions (it counts padding too) gives the same logits, 1e-5 in fp32."""
    reference, model = pair("clip-llama", BEYOND)
    inputs = batch("left", 4, BEYOND)
    with torch.no_grad():
        expected = reference(**for_reference(inputs, BEYOND, positions=False)).logits
        found = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    tiny.assert_near(found[real], expected[real], 1e-5)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_without_labels_on_images(mode: bool) -> None:
    """The loss is the same in training mode as LLaVA's, whether or not image positions carry labels, 1e-10 in fp64."""
    reference, model = pair("clip-llama", BEYOND)
    inputs = batch("left-text-only-and-two-images", 4, BEYOND)
    expected = reference(**for_reference(inputs, BEYOND, positions=True)).loss
    model.train(mode)
    unlabelled = {**inputs, "labels": inputs["labels"].masked_fill(inputs["input_ids"] == BEYOND, -100)}
    tiny.assert_near(model(**inputs).loss, expected)
    tiny.assert_near(model(**unlabelled).loss, expected)


# --- generate ---------------------------------------------------------------------------------------------------------

GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-no-cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams-returned": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "repetition-penalty": {"repetition_penalty": 1.3},
}


def generated(generate: Callable[..., Tensor], inputs: dict[str, Tensor], **options: Any) -> Tensor:
    inputs = {name: value for name, value in inputs.items() if name not in ("labels", "position_ids")}
    return generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=tiny.PAD, **options)


def check_generate(name: str, options: dict[str, Any], token_id: int = BEYOND) -> None:
    reference, model = pair(name, token_id)
    inputs = batch("left-text-only-and-two-images", PAIRS[name][4], token_id)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)  # the mask alone says it
    theirs = for_reference(inputs, token_id, positions=False)
    prompt = inputs["input_ids"].shape[1]
    eos = int(generated(reference.generate, theirs, eos_token_id=None)[0, prompt + 2])  # one sample ends early
    expected = generated(reference.generate, theirs, eos_token_id=eos, **options)
    found = generated(model.generate, inputs, eos_token_id=eos, **options)
    assert torch.equal(found[:, prompt:], expected[:, prompt:])
    copies = options.get("num_return_sequences", 1)
    assert torch.equal(found[:, :prompt], inputs["input_ids"].repeat_interleave(copies, 0))

    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0) * 3}
    blind = generated(model.generate, other, eos_token_id=eos, **options)
    assert found.shape != blind.shape or not torch.equal(found, blind), "the images do not reach the tokens"


@pytest.mark.parametrize("options", GENERATION.values(), ids=list(GENERATION))
def test_generate(options: dict[str, Any]) -> None:
    """Tokens of a left-padded batch equal Hugging Face's LLaVA, one by one; prompts come back as they went in."""
    token_id = INSIDE if "repetition_penalty" in options else BEYOND  # it penalises the image's id, as LLaVA does
    check_generate("clip-llama", options, token_id)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith("clip-llama")])
def test_generate_of_other_families(name: str, options: dict[str, Any]) -> None:
    """Tokens of a left-padded batch equal Hugging Face's LLaVA around other towers and language models."""
    check_generate(name, options)
