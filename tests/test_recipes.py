"""The recipes in examples/, as they stand: names on the hub, paths and rates are theirs, and every run goes through the
command. Small checkpoints lie in a cache like the hub's, small data where the recipes look for it, in the same formats."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from cornstarch import (
    Collator,
    LanguageModelConfig,
    MixtureSource,
    MultimodalModel,
    ProcessorConfig,
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
CHANCE = random.Random(0)
# Only what must be shrunk: length, samples at once, and processes and device of a machine that is none for training.
STEPS = 12
SHRUNK = (
    "--training.epochs", "null", "--training.steps", str(STEPS), "--training.micro_batch_size", "3",
    "--training.device", "cpu", "--data.workers", "0", "--run.log_every", "1",
)  # fmt: skip

CAPTIONED = [
    {
        "id": f"00{number}",
        "image": f"00453/{colour}-00{number}.jpg",
        "conversations": [
            {"from": "human", "value": ("Describe the image.\n<image>", "<image>\nWhat is this?")[number % 2]},
            {"from": "gpt", "value": f"a {colour} square"},
        ],
    }
    for number, colour in enumerate(["red", "green", "blue", "white"])
]
TALKS = [
    {
        "id": f"00{number}",
        "image": f"{folder}/{colour}-{number}.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhich colour is it?"},
            {"from": "gpt", "value": colour.title()},
            {"from": "human", "value": "Is it a square?"},
            {"from": "gpt", "value": "Yes"},
        ],
    }
    for number, (folder, colour) in enumerate([("coco/train2017", "red"), ("gqa/images", "green"), ("vg/VG_100K", "blue")])
]
TALKS.append(  # from ShareGPT, without an image
    {
        "id": "PO7",
        "model": "",
        "conversations": [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "I am Vicuna."}],
    }
)
SOUNDS = [(1.0, "MISTER QUILTER"), (2.5, "IS THE APOSTLE"), (0.5, "OF THE MIDDLE"), (1.5, "CLASSES")]
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
        recipes.write_llava(
            data / "llava-pretrain/blip_laion_cc_sbu_558k.json", data / "llava-pretrain/images", CAPTIONED
        )
        recipes.write_llava(data / "llava-finetune/llava_v1_5_mix665k.json", data / "llava-finetune", TALKS)
        for name in SETS:
            rows = [(["red"], [("What is\nit?", "Red."), ("Sure?", "Yes.")]), (["blue", "red"], [("Same?", "No.")])]
            recipes.write_cauldron(folder / "datasets", name, rows * (25 if name == "aokvqa" else 1))
        recipes.write_librispeech(data / "librispeech/clean/train.100/0000.parquet", SOUNDS[:2])
        recipes.write_librispeech(data / "librispeech/clean/train.100/0001.parquet", [*SOUNDS[2:], (31.0, "LONG")])
        recipes.write_librispeech(data / "librispeech/clean/validation/0000.parquet", SOUNDS[:1])
        yield recipes.fill_cache(folder / "hub", list(recipes.CHECKPOINTS))


def run(name: str, *more: str) -> tuple[MultimodalModel, Collator, TrainConfig, list[float]]:
    """Train as the recipe says. The model of the run, its collator, the config, and the loss of every step."""
    config = read_config(EXAMPLES / f"{name}.yaml", [*SHRUNK, *more])
    assert main(["train", str(EXAMPLES / f"{name}.yaml"), *SHRUNK, *more]) == 0
    model, processor = load_run(config.run.folder)
    losses = [line["loss"] for line in read_metrics(Path(config.run.folder) / "metrics.jsonl") if "loss" in line]
    assert len(losses) == STEPS
    return model, Collator(processor, config.data.max_length), config, losses


def weights(part: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[bool]:
    assert left.keys() == right.keys()
    return [left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left]


def modes(model: MultimodalModel) -> dict[str, str]:
    return {row["part"]: row["mode"] for row in part_rows(model)}


def learnt(collator: Collator, sample: Any) -> tuple[str, str, int]:
    """What a sample reads (a mark for each medium), what of it carries labels (`|` between runs), positions of media."""
    batch = collator([sample])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    (mark,) = collator.processor.token_ids.values()
    tokenizer = collator.processor.llm_tokenizer
    read = "".join(tokenizer.decode([token]) if token != mark else "" for token in ())
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    parts, text = [[]], []  # type: ignore[var-annotated]
    for place, token in enumerate(ids):
        if token != mark:
            parts[-1].append(token)
        elif place == 0 or ids[place - 1] != mark:
            parts.append([])
    text = [tokenizer.decode(part) for part in parts]
    return read + "<medium>".join(text), "|".join(tokenizer.decode(one) for one in runs if one), ids.count(mark)


def test_probe(hub, capsys):
    for name, more in (("llava-pretrain", ("--training.batch_size", "4")), ("llava-finetune", ("--training.batch_size", "4")), ("llava-finetune-lora", ("--training.batch_size", "4")),
       ("smolvlm", ("--training.batch_size", "12")), ("speech", ("--training.batch_size", "4"))):
        import time; t = time.time()
        model, collator, config, losses = run(name, *more)
        out = capsys.readouterr()
        with capsys.disabled():
            print(name, time.time() - t, [round(x, 4) for x in losses], modes(model))
            src = make_source(config.data.train)
            print(learnt(collator, src.sample(0, CHANCE)))
            print({p: (r["dtype"], r["parameters"], r["trainable"]) for r in part_rows(model) for p in [r["part"]]})
            print([l for l in out.err.splitlines() if "warn" in l or "bad" in l][:5])
