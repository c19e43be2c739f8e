"""From a finished model to a finished model: import, adapters on new data, export, and plain transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from cornstarch import export_to_hf, load_run, set_template
from cornstarch.cli.main import main
from tests.models.original_processors import MADE

COLOURS = ["red", "green", "blue", "white", "black", "orange"]
QUESTION = "Which colour is it?"
# What somebody runs who has the exported folder and transformers.
READER = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, images = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
answers = []
for name in images:
    content = [{"type": "image"}, {"type": "text", "text": "Which colour is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.open(name), text=text, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answers.append(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
assert not any(name.partition(".")[0] == "cornstarch" for name in sys.modules)
print(json.dumps(answers))
"""


def write_data(folder: Path) -> list[str]:
    """LLaVA JSON and its images; the names of the images."""
    folder.mkdir()
    entries = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + number, 24), colour).save(folder / f"{colour}.png")
        turns = [("human", f"<image>\n{QUESTION}"), ("gpt", colour)]
        said = [{"from": who, "value": value} for who, value in turns]
        entries.append({"id": colour, "image": f"{colour}.png", "conversations": said})
    (folder / "train.json").write_text(json.dumps(entries), encoding="utf-8")
    return [str(folder / f"{colour}.png") for colour in COLOURS]


def write_config(folder: Path, original: Path, mode: str) -> Path:
    config = {
        "model": {"path": str(original)},
        "trains": {
            "vision_encoder": "frozen",
            "vision_projector": "full",
            "language_model": {"mode": mode, **({"lora": {"r": 8, "lora_alpha": 16}} if mode == "lora" else {})},
        },
        "data": {"train": {"source": "llava", "path": str(folder / "data/train.json"), "media": str(folder / "data")}},
        "optimizer": {"learning_rate": 0.005},
        "training": {"steps": 40, "batch_size": 6, "device": "cpu"},
        "run": {"folder": str(folder / "run")},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


def answers(model: Path, images: list[str]) -> list[str]:
    """What `cornstarch generate` answers about each image."""
    asked, answered = model.parent / "asked.jsonl", model.parent / "answered.jsonl"
    lines = [json.dumps({"prompt": QUESTION, "image": image}) for image in images]
    asked.write_text("\n".join(lines), encoding="utf-8")
    words = ["--input", str(asked), "--output", str(answered), "--max-new-tokens", "8", "--device", "cpu"]
    assert main(["generate", str(model), *words]) == 0
    return [json.loads(line)["answer"] for line in answered.read_text(encoding="utf-8").splitlines()]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llava-next", "gemma3", "idefics3")]


@pytest.mark.parametrize("name", ["llava", *SLOW])
def test_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greedy answers of the export in a fresh process that does not know this package are those of
    `cornstarch generate` on the run; adapters changed them; and the manifest says where all of it came from."""
    original = MADE[name](tmp_path / "original").folder
    images = write_data(tmp_path / "data")
    before = answers(original, images)
    assert main(["train", str(write_config(tmp_path, original, "lora"))]) == 0
    after = answers(tmp_path / "run", images)
    assert after != before
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--merge-adapters"]) == 0
    command = [sys.executable, "-c", READER, str(tmp_path / "out"), json.dumps(images)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert [text.strip() for text in json.loads(done.stdout)] == after  # the command prints them so
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")).__name__ in _architectures(original)
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")) is type(AutoProcessor.from_pretrained(original))
    capsys.readouterr()
    assert main(["info", str(tmp_path / "run"), "--format", "json"]) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert {entry["path"] for entry in manifest.values()} == {str(original)}
    assert main(["info", str(tmp_path / "run")]) == 0
    assert f"language_model: from {original}, part of a " in capsys.readouterr().out


def _architectures(folder: Path) -> list[str]:
    return list(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"])


def test_another_template_goes_out(tmp_path: Path) -> None:
    """A template that was chosen for training is the export's, and takes content in parts there."""
    original = MADE["llava"](tmp_path / "original").folder
    model, processor = load_run(original)
    set_template(processor.llm_tokenizer, "vicuna")
    export_to_hf(model, processor, tmp_path / "out")
    exported = AutoProcessor.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    expected = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert expected == f"USER: <image>{QUESTION} ASSISTANT:"
    assert exported.apply_chat_template(chat, add_generation_prompt=True) == expected
