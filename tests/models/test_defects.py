"""Defects that systems of this kind had, one test each, by a name of its own; the table at the end lists them all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BatchFeature, CLIPVisionModel, LlamaForCausalLM, Trainer, TrainingArguments

from cornstarch import (
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
)
from tests import parts, tiny

MARK = parts.VOCABULARY  # the first id after the tokenizer's own, and the first beyond the embedding table
FEATURES = 5
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def adapted(module: nn.Module) -> Any:
    return get_peft_model(module, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def loud(model: MultimodalModel, scale: float = 0.2) -> MultimodalModel:
    """In fp64 and evaluation mode, with weights so large that every input shows in the logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.double().eval()


def composed(lm: Any = None, vision: Any = None) -> MultimodalModel:
    encoder = ModalEncoderModule(parts.clip() if vision is None else vision)
    model = MultimodalModel({"vision": encoder}, parts.llama() if lm is None else lm)
    model.set_modality_token_ids({"vision": MARK})
    model.generation_config.eos_token_id = None  # so that generation goes on
    return loud(model)


def pair() -> tuple[MultimodalModel, MultimodalProcessor]:
    model, processor = parts.vision_pair(padding_side="left")
    model.generation_config.eos_token_id = None
    return loud(model), processor


def letters(text: str) -> list[int]:
    return parts.tokenizer()(text)["input_ids"]


def row(*ids: int) -> Tensor:
    """Ids with `MARK`, written once, repeated for an image's features."""
    return torch.tensor([i for part in ids for i in [part] * (FEATURES if part == MARK else 1)])


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def batch() -> dict[str, Tensor]:
    ids = torch.stack([row(5, MARK, 6, 7, 8), row(9, 10, MARK, 11, 12)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels()}


def left_padded() -> dict[str, Tensor]:
    rows = [row(5, MARK, 6, 7, 8, 9), row(3, MARK, 4)]
    ids = torch.stack([rows[0], nn.functional.pad(rows[1], (3, 0), value=7)])
    mask = torch.stack([torch.ones(10, dtype=torch.long), (torch.arange(10) >= 3).long()])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels()}


def close(found: Tensor, expected: Tensor) -> None:
    """To 1e-10 in fp64; to 1e-6 for a loss, which Hugging Face computes in fp32."""
    tolerance = 1e-10 if found.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def trainable(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


# --- silent and wrong -------------------------------------------------------------------------------------------------


def mask_rebuilt_from_lengths(folder: Path) -> None:
    """The language model is given the caller's mask, of the length of the ids, modality positions counted once."""
    model, inputs, seen = composed(), left_padded(), []
    model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(**inputs)
    assert torch.equal(seen[0], inputs["attention_mask"])


def left_padding_visible(folder: Path) -> None:
    """A left-padded row has the logits (1e-10) and greedy tokens of the row alone, whatever the padding id."""
    model, inputs = composed(), left_padded()
    alone = {"input_ids": inputs["input_ids"][1:, 3:], "pixel_values": inputs["pixel_values"][1:]}
    close(model(**inputs).logits[1, 3:], model(**alone).logits[0])
    assert model.generate(**inputs, **GREEDY)[1, 3:].tolist() == model.generate(**alone, **GREEDY)[0].tolist()


def image_lost_behind_adapters_of_the_encoder(folder: Path) -> None:
    """With PEFT on the vision encoder another image gives other logits, and its adapters get a gradient."""
    model, inputs = composed(vision=adapted(parts.clip())), batch()
    first = model(**inputs, labels=inputs["input_ids"])
    assert (first.logits - model(**{**inputs, "pixel_values": -pixels()}).logits).abs().max() > 1e-3
    first.loss.backward()
    adapters = [p for name, p in model.vision_encoder.module.named_parameters() if "lora_" in name]
    assert adapters
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters)


def num_items_in_batch_dropped(folder: Path) -> None:
    """In `Trainer`, accumulation over 1, 2 and 4 passes logs the same loss, that of one pass by hand (1e-6)."""
    ids = torch.stack([row(5, MARK, 6 + i, 7, 8, 9, 10) for i in range(4)])
    labels = ids.masked_fill(ids == MARK, -100)
    for i in range(4):
        labels[i, 6 : 6 + i] = -100  # different numbers of labels, so that a mean of means is another number
    images = pixels(4)
    rows = [
        dict(zip(("input_ids", "labels", "pixel_values"), r, strict=True))
        for r in zip(ids, labels, images, strict=True)
    ]
    expected = composed()(input_ids=ids, labels=labels, pixel_values=images).loss.item()
    for steps in (1, 2, 4):
        arguments = TrainingArguments(
            str(folder),
            max_steps=1,
            logging_steps=1,
            gradient_accumulation_steps=steps,
            per_device_train_batch_size=4 // steps,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(composed(), arguments, train_dataset=rows)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-6), steps


def position_ids_ignored_with_adapters(folder: Path) -> None:
    """Through PEFT on the language model, given positions change the logits as in the same model merged (1e-10)."""
    inputs = batch()
    positions = torch.arange(9).mul(3).expand(2, -1)
    model = composed(adapted(parts.llama()))
    found = model(**inputs, position_ids=positions).logits
    assert (found - model(**inputs).logits).abs().max() > 1e-3
    model.language_model = model.language_model.merge_and_unload()
    close(found, model(**inputs, position_ids=positions).logits)


def image_tokens_without_an_image(folder: Path) -> None:
    """Modality tokens without `pixel_values` are a ValueError in forward and in generate, not the embedding of id 0."""
    ids = batch()["input_ids"]
    for run in (composed(), composed().generate):
        with pytest.raises(ValueError, match=r"'vision'.*10 positions.*0 features"):
            run(input_ids=ids)


def misspelt_argument(folder: Path) -> None:
    """`pixel_value` is a TypeError, with and without PEFT, with and without modality tokens."""
    for model in (composed(), composed(adapted(parts.llama()))):
        for ids in (batch()["input_ids"], torch.tensor([[3, 4, 5]])):
            with pytest.raises(TypeError, match=r"'pixel_value'.*'pixel_values'"):
                model(input_ids=ids, pixel_value=pixels())


def features_slid_between_samples(folder: Path) -> None:
    """Per-sample counts that disagree while the total agrees are a ValueError naming the first such sample."""
    ids = torch.tensor([[5, 6, 7, *[MARK] * 5, 8, 9], [5, *[MARK] * 4, 6, 7, 8, 9, 9], [*[MARK] * 6, 6, 7, 8, 9]])
    with pytest.raises(ValueError, match=r"'vision'.*sample\D*1\b"):
        composed()(input_ids=ids, pixel_values=pixels(3))


def second_encoder_skipped_in_generate(folder: Path) -> None:
    """Two encoders that share `pixel_values` both run in generate, once each, and both show in the tokens' logits."""
    encoders = {"left": ModalEncoderModule(parts.clip(seed=1)), "right": ModalEncoderModule(parts.clip(seed=2))}
    model, ran = MultimodalModel(encoders, parts.llama()), []
    model.set_modality_token_ids({"left": MARK, "right": MARK + 1})
    loud(model)
    for key, encoder in encoders.items():
        encoder.module.register_forward_hook(lambda *_, key=key: ran.append(key))
    ids = torch.tensor([[5, *[MARK] * 5, 6, *[MARK + 1] * 5, 7]])
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    first = model.generate(ids, pixel_values=pixels(1), **options).logits[0]
    assert ran == ["left", "right"]
    for name in ("left_pixel_values", "right_pixel_values"):
        other = {"left_pixel_values": pixels(1), "right_pixel_values": pixels(1), name: -pixels(1)}
        assert (model.generate(ids, **other, **options).logits[0] - first).abs().max() > 1e-6


def frozen_parts_left_in_train_mode(folder: Path) -> None:
    """Frozen parts are in evaluation mode, also after `train()`, and their dropout does nothing.

    Losses are bit-equal, and those of evaluation, where logits are of all positions, to rounding.
    """
    model, inputs = composed(), batch()
    for layer in (*model.language_model.model.layers, *model.vision_encoder.module.encoder.layers):
        layer.self_attn.dropout = layer.self_attn.attention_dropout = 0.5
    model.train({"vision": (False, True)}, llm_mode=False)
    model.train()
    for part in (model.language_model, model.vision_encoder.module):
        assert not any(module.training for module in part.modules())
    assert model.vision_encoder.projector.training
    losses = [model(**inputs, labels=inputs["input_ids"]).loss for _ in range(2)]
    assert torch.equal(*losses)
    torch.testing.assert_close(losses[0], model.eval()(**inputs, labels=inputs["input_ids"]).loss)


def projector_left_training_by_eval(folder: Path) -> None:
    """After `eval()` no module trains, whatever was frozen or thawed before."""
    for mode in ((True, True), (False, True), (True, False)):
        model = composed().train({"vision": mode}, llm_mode=True).eval()
        assert not [name for name, module in model.named_modules() if module.training]


def misspelt_encoder_key(folder: Path) -> None:
    """An unknown key is a ValueError that lists the known ones and changes nothing; so is a string in first place."""
    model = composed().train({"vision": (False, True)})
    before = trainable(model), [module.training for module in model.modules()]
    for arguments in (
        {"encoders_mode": {"vison": (True, True)}},
        {"encoders_mode": {"vision": (True, True), "x": (1, 1)}},
    ):
        with pytest.raises(ValueError, match="vision"):
            model.train(**arguments, llm_mode=False)
    for first in ("vison", {"vison": (True, True)}):
        with pytest.raises(ValueError, match="vision"):
            model.train(first)
    assert before == (trainable(model), [module.training for module in model.modules()])


def stale_encoders_after_a_replacement(folder: Path) -> None:
    """A submodule replaced by a wrapper is what `encoders` shows, what `train` freezes and what runs."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, **inputs: Any) -> Any:
            self.calls += 1
            return self.inner(**inputs)

    model = composed()
    model.vision_encoder = Wrapper(
        loud(MultimodalModel({"vision": ModalEncoderModule(parts.clip(seed=9))}, parts.llama())).vision_encoder
    )
    assert model.encoders["vision"] is model.vision_encoder
    model.train({"vision": (False, False)})
    assert not trainable(model.vision_encoder)
    model.train({"vision": (False, True)})
    assert trainable(model.vision_encoder) == {f"inner.projector.projection.{name}" for name in ("weight", "bias")}
    model(**batch())
    assert model.vision_encoder.calls == 1


def defaults_shared_between_processors(folder: Path) -> None:
    """Two processors made with default arguments share no dictionary, and the caller's own are not written to."""
    functions, tokens = {"vision": lambda inputs, outputs: FEATURES}, {"vision": "<picture>"}
    given = {"vision": parts.clip_processor()}
    first = MultimodalProcessor(given, parts.tokenizer(), parts.vision_model(), functions, tokens)
    second = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), parts.vision_model())
    third = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), parts.vision_model())
    second.tokens["vision"] = "<changed>"
    second.num_feature_calculation_funcs["vision"] = lambda inputs, outputs: 1
    second.encoder_processors["audio"] = object()
    assert third.tokens == {"vision": "<vision>"}
    assert third.num_feature_calculation_funcs == {}
    assert third.encoder_processors.keys() == {"vision"}
    assert first.tokens == tokens == {"vision": "<picture>"}
    assert functions.keys() == given.keys() == {"vision"}


def literal_placeholder_became_an_image(folder: Path) -> None:
    """Text that looks like a placeholder is the tokenizer's own ids; only the mark itself stands for the image."""
    _, processor = pair()
    plain = parts.tokenizer()
    text = "<image> <placeholder> <|image_pad|> <vision_0> <vision0> [IMG] <audio> < vision > <Vision> <0x00>\x00￼"
    found = processor(llm_inputs={"text": [text]})["input_ids"][0]
    assert found == plain(text)["input_ids"]
    inputs = {"vision": {"images": [parts.image()]}}
    found = processor(encoder_inputs=inputs, llm_inputs={"text": [f"{text}<vision>{text}"]})["input_ids"][0]
    assert found == [*plain(text)["input_ids"], *[MARK] * FEATURES, *plain(text)["input_ids"]]


def special_tokens_replaced(folder: Path) -> None:
    """Additional special tokens of the tokenizer keep their ids and stay special; the mark is added to them."""
    tokenizer = parts.tokenizer(extra_special_tokens=["<tool>", "<call>"])
    before = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, tokenizer, parts.vision_model())
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in before} == before
    assert {*before, "<vision>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer("a<tool>b")["input_ids"] == [*letters("a"), before["<tool>"], *letters("b")]
    assert processor.decode(tokenizer("a<tool>b")["input_ids"], skip_special_tokens=True) == "ab"


def base_thawed_under_adapters(folder: Path) -> None:
    """`llm_mode=True` on a wrapped language model trains exactly what PEFT trains; so does thawing a frozen one."""
    lm = get_peft_model(parts.llama(), LoraConfig(r=2))
    expected = trainable(lm)
    model = composed(lm)
    assert trainable(model.train(llm_mode=True).language_model) == expected
    model.train(llm_mode=False)
    assert not trainable(model.language_model)
    assert trainable(model.train(llm_mode=True).language_model) == expected


def weights_not_initialised(folder: Path) -> None:
    """Parts loaded by Hugging Face (on meta) get a finite projector; a loaded model has every weight and buffer."""
    parts.clip().save_pretrained(folder / "vision")
    parts.llama().save_pretrained(folder / "lm")
    vision, lm = CLIPVisionModel.from_pretrained(folder / "vision"), LlamaForCausalLM.from_pretrained(folder / "lm")
    model = MultimodalModel({"vision": ModalEncoderModule(vision)}, lm).eval()
    model.set_modality_token_ids({"vision": MARK})
    model.save_pretrained(folder / "whole")
    loaded = MultimodalModel.from_pretrained(folder / "whole")
    for first, second in (
        (model.named_parameters(), loaded.named_parameters()),
        (model.named_buffers(), loaded.named_buffers()),
    ):
        found = dict(second)
        for name, tensor in first:
            assert tensor.device.type == "cpu"
            assert torch.isfinite(tensor.float()).all(), name
            assert torch.equal(found[name], tensor), name
    inputs = {**batch(), "pixel_values": pixels().float()}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def weight_missing_from_a_save(folder: Path) -> None:
    """A file without one of the weights is an error that names it, not a model with made-up values."""
    composed().save_pretrained(folder)
    name = "vision_encoder.projector.projection.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(OSError, match=name.replace(".", r"\.")):
        MultimodalModel.from_pretrained(folder)


def image_tokens_trained_on(folder: Path) -> None:
    """No gradient reaches the logits that predict an image's position, whatever the labels there."""
    model, inputs, logits = composed(), batch(), []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        logits.append(output)

    model.language_model.lm_head.register_forward_hook(keep)
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == MARK, 17)).loss.backward()
    predicts_image = torch.cat([inputs["input_ids"][:, 1:] == MARK, torch.ones(2, 1, dtype=torch.bool)], dim=1)
    gradient = logits[0].grad.abs().sum(-1)
    assert not gradient[predicts_image].any()
    assert gradient[~predicts_image].all()


def prompts_trained_on(folder: Path) -> None:
    """Labels of -100 (a prompt) stay out of the loss: it is the mean over the others alone (1e-6)."""
    model, inputs = composed(), batch()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    output = model(**inputs, labels=labels)
    expected = nn.functional.cross_entropy(output.logits[:, -3:-1].flatten(0, 1).float(), labels[:, -2:].flatten())
    close(output.loss, expected)


def other_embedding_rows_in_generate(folder: Path) -> None:
    """The ids that the embedding looks up for a prompt with special tokens are the same in forward and in generate."""
    model, processor = pair()
    seen: list[list[int]] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten().tolist()))
    given = {"vision": {"images": [parts.image()]}}
    inputs = processor(encoder_inputs=given, llm_inputs={"text": ["<bos>a<vision><pad>b<eos>"]}, return_tensors="pt")
    model(**inputs)
    model.generate(**inputs, **GREEDY)
    assert seen[0] == [257, *letters("a"), *[0] * FEATURES, 256, *letters("b"), 258]
    assert seen[1] == seen[0]


# --- crashes ----------------------------------------------------------------------------------------------------------


def train_with_a_bool(folder: Path) -> None:
    """`train(True)`, `train(False)`, `train(mode=...)` and `eval()` switch the mode, thaw nothing and return self."""
    model = composed().train({"vision": (False, True)})
    expected = trainable(model)
    for call, mode in (
        (lambda: model.train(True), True),
        (lambda: model.train(False), False),
        (lambda: model.train(mode=True), True),
        (lambda: model.train(mode=False), False),
        (lambda: model.train(), True),
        (lambda: model.eval(), False),
    ):
        assert call() is model
        assert model.training is model.language_model.training is mode
        assert trainable(model) == expected


def no_labels(folder: Path) -> None:
    """Without labels there is no loss and there are logits, in both modes."""
    for mode in (True, False):
        output = composed().train(mode)(**batch(), labels=None)
        assert output.loss is None
        assert output.logits.shape == (2, 9, parts.VOCABULARY)


def no_attention_mask(folder: Path) -> None:
    """Without a mask everything is seen: logits and tokens of a mask of ones (1e-10)."""
    model, inputs = composed(), batch()
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    close(model(**without).logits, model(**inputs).logits)
    assert torch.equal(model.generate(**without, **GREEDY), model.generate(**inputs, **GREEDY))


def pixel_values_none(folder: Path) -> None:
    """`pixel_values=None` is a text-only batch."""
    model, ids = composed(), torch.tensor([[3, 4, 5]])
    close(model(input_ids=ids, pixel_values=None).logits, model.language_model(ids).logits)
    assert model.generate(ids, pixel_values=None, **GREEDY).shape == (1, 9)


def zero_images(folder: Path) -> None:
    """No images, as an empty tensor for the model and as an empty list for the processor, is a text-only batch."""
    model, ids = composed(), torch.tensor([[3, 4, 5]])
    close(model(input_ids=ids, pixel_values=pixels(0)).logits, model.language_model(ids).logits)
    model, processor = pair()
    for given in ({}, None, {"vision": None}, {"vision": {"images": []}}, {"vision": {"images": [[]]}}):
        inputs = processor(encoder_inputs=given, llm_inputs={"text": ["abc"]}, return_tensors="pt")
        close(model(**inputs).logits, model.language_model(inputs["input_ids"]).logits)


def mask_of_four_dimensions(folder: Path) -> None:
    """A ready causal (B, 1, S, S) mask gives the logits of the 2-D one (1e-10), in training mode too."""
    model, inputs = composed(), batch()
    ready = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    for mode in (False, True):
        model.train(mode)
        close(model(**{**inputs, "attention_mask": ready}).logits, model(**inputs).logits)


def embeddings_given(folder: Path) -> None:
    """`inputs_embeds` without ids run as they are; with ids features are merged into them (1e-10)."""
    model, ids = composed(), torch.tensor([[3, 4, 5]])
    embeds = model.get_input_embeddings()(ids)
    close(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)
    inputs = batch()
    text = model.get_input_embeddings()(inputs["input_ids"].masked_fill(inputs["input_ids"] == MARK, 0))
    close(model(**inputs, inputs_embeds=text).logits, model(**inputs).logits)


def parts_of_two_dtypes(folder: Path) -> None:
    """Encoders, projectors and language model in fp32 and bf16, both ways: forward, backward and generate run."""
    for encoder_dtype, lm_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        projector = MultimodalProjector(None, nn.Linear(16, 24).to(lm_dtype))
        encoders = {
            "vision": ModalEncoderModule(parts.clip().to(encoder_dtype), projector),
            "words": ModalEncoderModule(parts.PerWordEncoder().to(encoder_dtype)),
        }
        model = MultimodalModel(encoders, parts.llama().to(lm_dtype))
        model.generation_config.eos_token_id = None
        model.set_modality_token_ids({"vision": MARK, "words": MARK + 1})
        ids = torch.tensor([[5, *[MARK] * FEATURES, 6, *[MARK + 1] * 4, 7]])
        inputs = {"input_ids": ids, "pixel_values": pixels(1).float(), "readings": torch.randn(1, 12)}
        output = model(**inputs, labels=ids, output_logits=True)
        output.loss.backward()
        assert output.logits.dtype == lm_dtype
        for weight, dtype in (
            (projector.projection.weight, lm_dtype),
            (encoders["words"].projector.projection.weight, torch.float32),  # the more precise of the two
        ):
            assert weight.grad.dtype == weight.dtype == dtype
            assert weight.grad.abs().max() > 0
        assert model.generate(**inputs, **GREEDY).shape == (1, 18)


def end_token_list_or_none(folder: Path) -> None:
    """`eos_token_id` as a number, a list or None, in the config or the call: generation stops where one occurs."""
    model, inputs = composed(), batch()
    model.generation_config.eos_token_id = None
    free = model.generate(**inputs, **GREEDY, eos_token_id=None)
    assert free.shape == (2, 15)
    stop = int(free[0, 10])
    for eos in (stop, [stop], [0, stop]):
        first = model.generate(**{name: value[:1] for name, value in inputs.items()}, **GREEDY, eos_token_id=eos)
        assert first[0].tolist() == free[0, : first.shape[1]].tolist()
        assert first.shape[1] <= 11
    model.generation_config.eos_token_id = [0, stop]
    model.config.text_config.eos_token_id = [0, stop]
    assert model.generate(**{name: value[:1] for name, value in inputs.items()}, **GREEDY).shape[1] <= 11


def repetition_penalty_in_generate(folder: Path) -> None:
    """Modality ids beyond the vocabulary do not fail: tokens equal a loop by hand over text and new tokens."""
    model, inputs = composed(), {name: value[:1] for name, value in batch().items()}
    model.set_modality_token_ids({"vision": 1000})
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == MARK, 1000)
    free = model.generate(**inputs, **GREEDY)
    for penalty in (1e9, 1e-9):
        ids = inputs["input_ids"]
        for _ in range(6):
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].detach()
            for token in set(ids[0].tolist()) - {1000}:
                logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        assert not torch.equal(ids, free)
        assert torch.equal(model.generate(**inputs, **GREEDY, repetition_penalty=penalty), ids)


def more_marks_than_images(folder: Path) -> None:
    """Marks without an image, and images without a mark, are a ValueError naming the sample."""
    _, processor = pair()
    texts = ["a<vision>", "b<vision><vision>"]
    for images, sample in (
        ([parts.image()] * 2, 1),
        ([[parts.image()], [parts.image()]], 1),
        ([[], [parts.image()] * 2], 0),
        ([parts.image()] * 4, 1),
    ):
        with pytest.raises(ValueError, match=rf"'vision'.*sample {sample} "):
            processor(encoder_inputs={"vision": {"images": images}}, llm_inputs={"text": texts})


def fast_image_processors(folder: Path) -> None:
    """A processor that makes PyTorch tensors only, takes images first and refuses foreign keywords, as fast ones do."""

    class Fast:
        def __call__(self, images: Any, return_tensors: str | None = None, do_resize: bool = True) -> BatchFeature:
            if return_tensors != "pt":
                raise ValueError("Only returning PyTorch tensors is currently supported.")
            return parts.clip_processor()(images, return_tensors=return_tensors, do_resize=do_resize)

    model = loud(parts.vision_model())
    processor = MultimodalProcessor({"vision": Fast()}, parts.tokenizer(), model)
    _, usual = pair()
    given = {"vision": {"images": [parts.image()]}}
    for kind in ("pt", "np", None):
        arguments = {"llm_inputs": {"text": ["a<vision>"]}, "return_tensors": kind, "do_resize": True, "padding": True}
        found, expected = processor(given, **arguments), usual(given, **arguments)
        assert found.keys() == expected.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert torch.equal(torch.as_tensor(found["pixel_values"][0]), torch.as_tensor(expected["pixel_values"][0]))


def return_tensors_none(folder: Path) -> None:
    """Lists come back, ragged where text is, with the values of `return_tensors="pt"`."""
    _, processor = pair()
    given = {"vision": {"images": [parts.image(), parts.image(seed=1)]}}
    found = processor(encoder_inputs=given, llm_inputs={"text": ["a<vision>", "abc<vision>"]}, return_tensors=None)
    assert [len(ids) for ids in found["input_ids"]] == [1 + FEATURES, 3 + FEATURES]
    assert found["input_ids"][0] == [*letters("a"), *[MARK] * FEATURES]
    padded = processor(given, {"text": ["a<vision>", "abc<vision>"], "padding": True}, return_tensors="pt")
    assert torch.equal(torch.as_tensor(found["pixel_values"][1]), padded["pixel_values"][1])


def logits_to_keep(folder: Path) -> None:
    """`logits_to_keep=1` gives the last position's logits (1e-10), through PEFT too."""
    for lm in (parts.llama(), adapted(parts.llama())):
        model, inputs = composed(lm), batch()
        close(model(**inputs, logits_to_keep=1).logits, model(**inputs).logits[:, -1:])


# --- missing ----------------------------------------------------------------------------------------------------------


def save_and_load(folder: Path) -> None:
    """A saved model comes back bit-equal, with token ids and what is frozen, and the folder holds no pickle."""
    model = composed(adapted(parts.llama())).train({"vision": (False, True)}).eval()
    model.save_pretrained(folder)
    loaded = MultimodalModel.from_pretrained(folder)
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert trainable(loaded) == trainable(model)
    assert loaded.modality_token_ids == {"vision": MARK}
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}
    assert json.loads((folder / "config.json").read_text())["modality_token_ids"] == {"vision": MARK}


def config_attribute(folder: Path) -> None:
    """`config` holds the parts' own configs and answers what trainers and trackers ask: `to_dict`, JSON, diffs."""
    model = composed()
    assert model.config.text_config is model.language_model.config
    assert model.config.encoders["vision"] is model.vision_encoder.module.config
    assert model.config.get_text_config() is model.language_model.config
    assert json.loads(model.config.to_json_string(use_diff=False))["text_config"]["hidden_size"] == 24
    assert model.config.to_dict()["encoders"]["vision"]["hidden_size"] == 16


def device_attribute(folder: Path) -> None:
    """`device` is where the weights are, before and after a move."""
    model = composed()
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == torch.device("meta")


def dtype_attribute(folder: Path) -> None:
    """`dtype` is the language model's, before and after a cast."""
    model = composed()
    assert model.dtype == torch.float64
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    model.vision_encoder.float()
    assert model.dtype == torch.bfloat16


def checkpointing_disable(folder: Path) -> None:
    """After enable and disable layers run once a step again, and the gradients are the same all along (1e-10)."""
    model, inputs, calls = tiny.ask(composed()), batch(), []
    model.language_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for switch, expected in (("enable", 2), ("disable", 1), ("disable", 1)):
        getattr(model, f"gradient_checkpointing_{switch}")()
        assert model.is_gradient_checkpointing is (switch == "enable")
        calls.clear()
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        gradients.append(torch.autograd.grad(loss, model.vision_encoder.projector.projection.weight)[0])
        assert len(calls) == expected
    close(gradients[0], gradients[1])
    close(gradients[0], gradients[2])


# --- accepted and not implemented -------------------------------------------------------------------------------------


def qformer_accepted(folder: Path) -> None:
    """An unknown projection type or activation is a ValueError that lists the known ones, wherever it is given."""
    with pytest.raises(ValueError, match=r"qformer.*linear.*mlp"):
        MultimodalProjectorConfig({"hidden_size": 4}, {"hidden_size": 4}, "qformer")
    with pytest.raises(ValueError, match=r"qformer.*linear.*mlp"):
        MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, parts.llama(), init_projector_type="qformer")
    with pytest.raises(ValueError, match=r"jelu.*gelu"):
        MultimodalProjector(MultimodalProjectorConfig({"hidden_size": 4}, {"hidden_size": 4}, "mlp", "jelu"))


def return_dict_false(folder: Path) -> None:
    """`return_dict=False` is refused, not ignored; True is the default."""
    model, inputs = composed(), batch()
    with pytest.raises(ValueError, match="return_dict"):
        model(**inputs, return_dict=False)
    close(model(**inputs, return_dict=True).logits, model(**inputs).logits)


def columns_of_encoders_dropped(folder: Path) -> None:
    """`Trainer` with default arguments keeps `pixel_values`, which no signature of Hugging Face's names."""
    rows = [{"input_ids": [5, *[MARK] * 5, 6], "labels": [5, *[-100] * 5, 6], "pixel_values": pixels(1)[0].tolist()}]
    arguments = TrainingArguments(
        str(folder), max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(composed().float(), arguments, train_dataset=Dataset.from_list(rows))
    assert trainer.args.remove_unused_columns
    assert trainer.train().training_loss > 0


DEFECTS: dict[str, Callable[[Path], None]] = {
    # silent and wrong
    "attention-mask-rebuilt-from-lengths": mask_rebuilt_from_lengths,
    "left-padding-gives-other-tokens": left_padding_visible,
    "peft-on-the-encoder-loses-the-image": image_lost_behind_adapters_of_the_encoder,
    "num_items_in_batch-dropped": num_items_in_batch_dropped,
    "position_ids-ignored-with-peft": position_ids_ignored_with_adapters,
    "image-tokens-without-pixel_values-run-on": image_tokens_without_an_image,
    "misspelt-argument-runs-on": misspelt_argument,
    "features-slide-between-samples": features_slid_between_samples,
    "shared-pixel_values-generate-runs-the-first": second_encoder_skipped_in_generate,
    "frozen-parts-in-train-mode": frozen_parts_left_in_train_mode,
    "eval-leaves-the-projector-training": projector_left_training_by_eval,
    "misspelt-encoder-key-ignored": misspelt_encoder_key,
    "stale-encoders-dict": stale_encoders_after_a_replacement,
    "mutable-defaults-shared": defaults_shared_between_processors,
    "literal-placeholder-becomes-an-image": literal_placeholder_became_an_image,
    "special-tokens-replaced": special_tokens_replaced,
    "llm_mode-thaws-the-base-under-lora": base_thawed_under_adapters,
    "weights-not-initialised-on-meta": weights_not_initialised,
    "missing-weight-made-up": weight_missing_from_a_save,
    "image-tokens-trained-on": image_tokens_trained_on,
    "prompts-trained-on": prompts_trained_on,
    "other-embedding-rows-in-generate": other_embedding_rows_in_generate,
    "trainer-drops-pixel_values": columns_of_encoders_dropped,
    # crashes
    "train-true-false": train_with_a_bool,
    "labels-none": no_labels,
    "no-attention-mask": no_attention_mask,
    "pixel_values-none": pixel_values_none,
    "zero-images": zero_images,
    "mask-4d": mask_of_four_dimensions,
    "inputs_embeds": embeddings_given,
    "encoder-fp32-lm-bf16": parts_of_two_dtypes,
    "eos_token_id-list-or-none": end_token_list_or_none,
    "repetition_penalty": repetition_penalty_in_generate,
    "more-marks-than-images": more_marks_than_images,
    "fast-image-processors": fast_image_processors,
    "return_tensors-none": return_tensors_none,
    "logits_to_keep": logits_to_keep,
    # missing
    "save-and-load": save_and_load,
    "config": config_attribute,
    "device": device_attribute,
    "dtype": dtype_attribute,
    "gradient_checkpointing_disable": checkpointing_disable,
    # accepted and not implemented
    "qformer": qformer_accepted,
    "return_dict-false": return_dict_false,
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_absent(defect: str, tmp_path: Path) -> None:
    """Reference and tolerance stand with each function of the table."""
    DEFECTS[defect](tmp_path)
