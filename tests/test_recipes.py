"""The recipes in examples/, as they stand: names on the hub, paths and rates are theirs; every run is the command's.

Small checkpoints lie in a cache like the hub's, small data where the recipes look for it, in the same formats.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaImageProcessorPil,
    SiglipVisionModel,
    WhisperModel,
)

from cornstarch import (
    Collator,
    EncoderConfig,
    LanguageModelConfig,
    MultimodalModel,
    ProcessorConfig,
    ProjectorConfig,
    TrainConfig,
    build_model,
    choose,
    load_run,
    make_source,
    part_rows,
    read_config,
    read_metrics,
)
from cornstarch.cli.main import main
from cornstarch.training import pictures
from tests import pages, recipes
from tests.recipes import CLIP, PROCESSORS, QWEN, REAL, SIGLIP, SMOLLM, VICUNA, WHISPER

EXAMPLES = pages.ROOT / "examples"
# Only what must be shrunk: length, samples at once, and processes and device of a machine that is none for training.
SHRUNK = (
    "--training.epochs", "null", "--training.micro_batch_size", "4", "--training.device", "cpu", "--data.workers", "0",
    "--run.log_every", "1",
)  # fmt: skip
COLOURS = ("red", "green", "blue")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def llava(number: int, image: str | None, *turns: tuple[str, str]) -> dict[str, Any]:
    said = [{"from": who, "value": value} for who, value in turns]
    return {"id": f"{number:09d}", **({"image": image} if image else {}), "conversations": said}


CAPTIONED = [
    llava(0, "00453/red-1.jpg", ("human", "Describe it concisely.\n<image>"), ("gpt", "a red square")),
    llava(1, "00453/green-2.jpg", ("human", "<image>\nWhat is this?"), ("gpt", "a green square")),
    llava(2, "00021/blue-3.jpg", ("human", "<image>\nRender a summary."), ("gpt", "a blue square")),
]
TALKS = [
    llava(
        0, "coco/train2017/red-1.jpg", ("human", "<image>\nWhich colour is it?"), ("gpt", "Red"), ("human", "Sure?"),
        ("gpt", "Yes"),
    ),
    llava(1, "gqa/images/green-2.jpg", ("human", "Which colour is it?\n<image>"), ("gpt", "Green")),
    llava(2, None, ("human", "Who are you?"), ("gpt", "I am Vicuna.")),  # from ShareGPT
]  # fmt: skip
TALKS[2]["model"] = ""
SOUNDS = [(1.0, "MISTER QUILTER"), (2.5, "IS THE APOSTLE"), (0.5, "OF THE MIDDLE")]
SETS = ("aokvqa", "chartqa", "cocoqa", "docvqa", "scienceqa", "textcaps", "textvqa", "vqav2")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A folder to run in, with all data, and what is in the caches of `huggingface_hub` and `datasets`."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        patch.setattr(pictures, "draw_losses", lambda path, *_: Image.new("RGB", (8, 8)).save(path))  # tested by itself
        data = Path("data")
        captions = data / "llava-pretrain"
        recipes.write_llava(captions / "blip_laion_cc_sbu_558k.json", captions / "images", CAPTIONED)
        recipes.write_llava(data / "llava-finetune/llava_v1_5_mix665k.json", data / "llava-finetune", TALKS)
        for name in SETS:
            one = (["red"], [("What is\nit?", "Red."), ("Sure?", "Yes.")])
            two = (["blue", "green"], [("The same?", "No.")])
            recipes.write_cauldron(folder / "datasets", name, [one] * 50 if name == "aokvqa" else [one, two])
        speech = data / "librispeech/clean"
        recipes.write_librispeech(speech / "train.100/0000.parquet", SOUNDS[:2])
        recipes.write_librispeech(speech / "train.100/0001.parquet", [*SOUNDS[2:], (30.5, "TOO LONG")])
        recipes.write_librispeech(speech / "validation/0000.parquet", SOUNDS[:1])
        yield recipes.fill_cache(folder / "hub", list(recipes.CHECKPOINTS))


class Ran(NamedTuple):
    """A run: its model, collator and config, and the loss of every step."""

    model: MultimodalModel
    collator: Collator
    config: TrainConfig
    losses: list[float]


def run(name: str, steps: int, batch_size: int) -> Ran:
    """Train as a recipe says."""
    shrunk = [*SHRUNK, "--training.steps", str(steps), "--training.batch_size", str(batch_size)]
    config = read_config(EXAMPLES / f"{name}.yaml", shrunk)
    assert main(["train", str(EXAMPLES / f"{name}.yaml"), *shrunk]) == 0
    model, processor = load_run(config.run.folder)
    losses = [line["loss"] for line in read_metrics(Path(config.run.folder) / "metrics.jsonl") if "loss" in line]
    assert len(losses) == steps
    return Ran(model, Collator(processor, config.data.max_length), config, losses)


@pytest.fixture(scope="module")
def stage_one(hub: dict[str, Path]) -> Ran:
    return run("llava-pretrain", steps=5, batch_size=3)


def modes(model: MultimodalModel) -> list[str]:
    return [f"{row['mode']} {row['dtype']}" for row in part_rows(model)]


def equal(part: nn.Module, other: nn.Module) -> set[bool]:
    """Whether weights are bit-identical, of the same dtype: all of them, none, or some."""
    left, right = part.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    return {left[name].dtype == value.dtype and torch.equal(left[name], value) for name, value in right.items()}


def learnt(ran: Ran, index: int) -> tuple[str, list[str], int]:
    """What a sample of the data reads (`<>` for a medium), what of it carries labels, and the positions of media."""
    assert ran.config.data.train is not None
    batch = ran.collator([make_source(ran.config.data.train).sample(index, random.Random(0))])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    (mark,) = ran.collator.processor.token_ids.values()
    places = [place for place, token in enumerate(ids) if token != mark or ids[place - 1] != mark]
    runs: list[list[int]] = [[]]
    for label in labels:
        runs[-1:] = [[*runs[-1], label]] if label != -100 else [runs[-1], *([[]] if runs[-1] else [])]
    read = "".join("<>" if ids[place] == mark else text(ran, [ids[place]]) for place in places)
    return read, [text(ran, labelled) for labelled in runs if labelled], ids.count(mark)


def text(ran: Ran, ids: list[int]) -> str:
    """Tokens as text, with every blank."""
    written = "".join(ran.collator.processor.llm_tokenizer.convert_ids_to_tokens(ids))
    return written.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n").replace("<0x0A>", "\n")


def asked(ran: Ran, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `cornstarch generate` answers."""
    capsys.readouterr()
    assert main(["generate", ran.config.run.folder, "--device", "cpu", "--max-new-tokens", "4", *words]) == 0
    return capsys.readouterr().out


# --- LLaVA-1.5 --------------------------------------------------------------------------------------------------------


def test_llava_stage_one(stage_one: Ran, hub: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The projector alone, from captions alone."""
    model, _, _, losses = stage_one
    assert modes(model) == ["frozen float32", "full float32", "frozen bfloat16"]
    assert equal(model.vision_encoder.module, CLIPVisionModel.from_pretrained(hub[CLIP])) == {True}
    assert equal(model.language_model, AutoModelForCausalLM.from_pretrained(hub[VICUNA], dtype="bfloat16")) == {True}
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    assert learnt(stage_one, 0) == ("<s><>\na red square</s>", ["a red square</s>"], 576)
    assert learnt(stage_one, 1) == ("<s><>\na green square</s>", ["a green square</s>"], 576)
    assert asked(stage_one, capsys, "--image", "data/llava-pretrain/images/00453/red-1.jpg", "--prompt", "")


def test_llava_stage_two(stage_one: Ran, hub: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Projector, from where stage 1 left it, and all of the language model, on talks with Vicuna's system message."""
    ran = run("llava-finetune", steps=4, batch_size=3)
    start, _ = build_model(ran.config.model)
    assert equal(start.vision_encoder.projector, stage_one.model.vision_encoder.projector) == {True}
    assert modes(ran.model) == ["frozen float32", "full float32", "full float32"]
    assert equal(ran.model.vision_encoder.module, CLIPVisionModel.from_pretrained(hub[CLIP])) == {True}
    assert equal(ran.model.vision_encoder.projector, start.vision_encoder.projector) == {False}
    assert equal(ran.model.language_model, AutoModelForCausalLM.from_pretrained(hub[VICUNA])) == {False}
    assert ran.losses == sorted(ran.losses, reverse=True)
    assert ran.losses[-1] < ran.losses[0]
    talk = f"<s>{SYSTEM} USER: <>Which colour is it? ASSISTANT: Red</s>USER: Sure? ASSISTANT: Yes</s>"
    assert learnt(ran, 0) == (talk, [" Red</s>", " Yes</s>"], 576)
    assert learnt(ran, 1)[0] == f"<s>{SYSTEM} USER: Which colour is it?<> ASSISTANT: Green</s>"
    assert learnt(ran, 2) == (f"<s>{SYSTEM} USER: Who are you? ASSISTANT: I am Vicuna.</s>", [" I am Vicuna.</s>"], 0)
    prompt = ran.collator.processor.apply_chat_template(
        [{"role": "user", "content": "Hm?"}], add_generation_prompt=True
    )
    assert prompt == f"<s>{SYSTEM} USER: Hm? ASSISTANT:"
    assert asked(
        ran, capsys, "--image", "data/llava-finetune/gqa/images/green-2.jpg", "--prompt", "Which colour is it?"
    )


def test_llava_stage_two_with_adapters(stage_one: Ran, hub: dict[str, Path]) -> None:
    """On every linear layer but the head, in float32, beside weights that stay as they are."""
    ran = run("llava-finetune-lora", steps=3, batch_size=3)
    assert modes(ran.model) == ["frozen float32", "full float32", "lora bfloat16"]
    original = AutoModelForCausalLM.from_pretrained(hub[VICUNA], dtype="bfloat16").state_dict()
    found = ran.model.language_model.state_dict()
    kept = {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in found.items()}
    assert all(torch.equal(kept[name], value) for name, value in original.items())
    added = {name: value for name, value in found.items() if "lora" in name}
    assert len(added) == 2 * 2 * 7  # two matrices, two layers, seven linear layers in each
    assert all(value.dtype == torch.float32 and value.any() for value in added.values())
    assert equal(ran.model.vision_encoder.projector, stage_one.model.vision_encoder.projector) == {False}
    assert ran.losses[-1] < ran.losses[0] - 0.1


def test_llava_pads_to_a_square(stage_one: Ran) -> None:
    """In stage 2, with the mean colour (zero when normalised), as transformers' own processor for LLaVA does; in stage
    1 the sides are cut off."""
    wide = recipes.picture("red", 40, 30)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    cut, padded = stage_one.collator.processor, build_model(read_config(EXAMPLES / "llava-finetune.yaml").model)[1]
    pixels = [used({"vision": {"images": [wide]}}, {"text": "<vision>"}, return_tensors="pt") for used in (cut, padded)]
    first, second = (batch["pixel_values"][0] for batch in pixels)
    assert first.shape == second.shape == (3, 336, 336)
    assert isinstance(padded.encoder_processors["vision"], LlavaImageProcessorPil)
    assert torch.allclose(first, red[:, None, None].expand(3, 336, 336), atol=1e-5)
    assert torch.allclose(second[:, 60:-60], red[:, None, None].expand(3, 216, 336), atol=0.02)
    assert all(edge.abs().max() < 0.02 for edge in (second[:, :30], second[:, -30:]))


# --- SmolVLM ----------------------------------------------------------------------------------------------------------


def test_smolvlm(hub: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """All of it, on eight sets in one mixture, with images in Parquet and questions that bring none."""
    ran = run("smolvlm", steps=7, batch_size=6)
    assert modes(ran.model) == ["full float32"] * 3
    start = SiglipVisionModel.from_pretrained(hub[SIGLIP])
    # All but the pooling head, whose output no language model reads.
    for name, value in ran.model.vision_encoder.module.state_dict().items():
        assert torch.equal(value, start.state_dict()[name]) == ("head" in name), name
    original = AutoModelForCausalLM.from_pretrained(hub[SMOLLM])
    assert equal(ran.model.language_model, original) == {False}
    assert sum(ran.losses[-2:]) < sum(ran.losses[:2]) - 0.5
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    talk = (
        "<|im_start|>user\n<>What is\nit?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert learnt(ran, 0) == (system + talk, ["Red.<|im_end|>", "Yes.<|im_end|>"], 64)
    assert learnt(ran, 50)[1:] == (["No.<|im_end|>"], 128)  # two images
    assert ran.config.data.validation is not None
    assert len(make_source(ran.config.data.validation)) == 1
    recipes.picture("red").save("red.png")
    assert asked(ran, capsys, "--image", "red.png", "--prompt", "What is it?")


# --- speech -----------------------------------------------------------------------------------------------------------


def test_speech(hub: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The projector alone, on FLAC in Parquet; what is longer than Whisper hears is left out and named."""
    ran = run("speech", steps=8, batch_size=4)
    assert (
        capsys.readouterr().err.count("it lasts 30.5 seconds, the limit audio_seconds is 30.0") == 9
    )  # 8 and the first
    assert modes(ran.model) == ["frozen float32", "full float32", "frozen bfloat16"]
    assert equal(ran.model.audio_encoder.module, WhisperModel.from_pretrained(hub[WHISPER]).get_encoder()) == {True}
    original = AutoModelForCausalLM.from_pretrained(hub[QWEN], dtype="bfloat16")
    assert equal(ran.model.language_model, original) == {True}
    assert ran.losses == sorted(ran.losses, reverse=True)
    assert ran.losses[-1] < ran.losses[0]
    system = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    asks = "<|im_start|>user\n<>Transcribe the speech.<|im_end|>\n<|im_start|>assistant\n"
    assert learnt(ran, 0) == (f"{system}{asks}MISTER QUILTER<|im_end|>\n", ["MISTER QUILTER<|im_end|>"], 300)
    assert learnt(ran, 2)[1:] == (["OF THE MIDDLE<|im_end|>"], 300)  # half a second is as long
    Path("speech.flac").write_bytes(recipes.flac(1.0, 200))
    assert asked(ran, capsys, "--audio", "speech.flac", "--prompt", "Transcribe the speech.")
    assert main(["eval", "runs/speech", "--output", "answers.jsonl", "--evaluation.max_new_tokens", "2"]) == 0
    assert '"expected": "MISTER QUILTER"' in Path("answers.jsonl").read_text(encoding="utf-8")


# --- true sizes -------------------------------------------------------------------------------------------------------

# positions of an input, millions of weights, and of those that train
TRUE = {
    "llava-pretrain": (torch.Size([1, 3, 336, 336]), 576, 7063, 21),
    "llava-finetune": (torch.Size([1, 3, 336, 336]), 576, 7063, 6759),
    "llava-finetune-lora": (torch.Size([1, 3, 336, 336]), 576, 7383, 341),
    "smolvlm": (torch.Size([1, 3, 512, 512]), 64, 235, 235),
    "speech": (torch.Size([1, 80, 3000]), 300, 586, 4),
}


@pytest.mark.parametrize("name", TRUE)
def test_true_sizes(name: str) -> None:
    """What a recipe becomes with the sizes of the checkpoints that it names, without weights: positions of an input,
    and weights in millions. The documentation's table says the same."""
    shape, positions, weights, training = TRUE[name]
    config = read_config(EXAMPLES / f"{name}.yaml")
    assert config.model.language_model is not None
    encoders = {key: _from_scratch(encoder) for key, encoder in config.model.encoders.items()}
    language = LanguageModelConfig(config=REAL[str(config.model.language_model.path)], tokenizer="bytes")
    with torch.device("meta"):
        model, _ = build_model(replace(config.model, encoders=encoders, language_model=language))
        choose(model, config.trains)
        (encoder,) = model.encoders.values()
        features = encoder(**{encoder.module.main_input_name: torch.empty(shape)})
    width = model.language_model.config.get_text_config().hidden_size
    assert [tuple(one.shape) for one in features] == [(positions, width)]
    found = [sum(row[kind] for row in part_rows(model)) / 1e6 for kind in ("parameters", "trainable")]
    assert [round(number) for number in found] == [weights, training]
    page = (pages.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
    assert f"| {positions} |" in row
    assert f"| {training:,} of {weights:,} million |" in row


def _from_scratch(encoder: EncoderConfig) -> EncoderConfig:
    """An encoder of random weights, of the size of the checkpoint that it would be loaded from."""
    name = str(encoder.path)
    cls, arguments = PROCESSORS[name]
    kind = encoder.projector.type if encoder.projector.path is None else "mlp"
    return replace(
        encoder,
        path=None,
        config=REAL[name],
        processor=ProcessorConfig(class_name=cls, arguments=arguments),
        projector=ProjectorConfig(type=kind),
    )
