"""`cornstarch generate`, `eval` and `info`, on a run of the digits model, as a person types them."""

import json
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from cornstarch import (
    Collator,
    EvaluationConfig,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    Sample,
    answer,
    set_template,
    train,
)
from cornstarch.cli.main import main
from cornstarch.data import digit_questions
from tests import parts
from tests.models.test_exporting import came_with
from tests.training.test_run import config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "run"
    train(config(folder))
    for index in range(2):
        digit_questions("test")[3 * index].image.save(folder.parent / f"{index}.png")
    return folder


def shown(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> tuple[str, str]:
    assert main([str(word) for word in words]) == code
    found = capsys.readouterr()
    return found.out, found.err


# --- generate ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_generates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Streamed, from the run, its model and its checkpoint alike; equal to `generate` on the same prompt."""
    model = MultimodalModel.from_pretrained(run / "model")
    processor = MultimodalProcessor.from_pretrained(run / "model", model)
    inputs = processor(
        {"vision": {"images": [str(run.parent / "0.png")]}}, {"text": ["<vision>Which digit?\n"]}, return_tensors="pt"
    )
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    for place in (run, run / "model", run / "checkpoints" / "step-6"):
        options = ["--prompt", "Which digit?", "--image", run.parent / "0.png", "--max-new-tokens", 8]
        assert shown(capsys, "generate", place, *options)[0].strip() == expected


def test_files_of_prompts(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every line comes back with its answer or its error, in order; answers are those of single prompts."""
    images = [str(run.parent / f"{index}.png") for index in range(2)]
    lines = [
        {"prompt": "Which digit?", "image": images[0], "id": 1},
        {"prompt": "<image> or <image>?", "image": images},
        {"prompt": "<image>?", "image": images},
        {"prompt": "No image"},
        {"image": images[0]},
        {"prompt": "x", "image": "nowhere.png"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": images[1]}, {"type": "text", "text": "?"}]}
            ]
        },
    ]
    odd = ["no json", '{"prompt": "x", "image": 5}', '{"messages": [1]}', "5", '{"prompt": "\\ud800"}']
    (tmp_path / "in.jsonl").write_text("\n".join([*map(json.dumps, lines), *odd, ""]))
    options = [
        "--input",
        tmp_path / "in.jsonl",
        "--output",
        tmp_path / "out.jsonl",
        "--max-new-tokens",
        4,
        "--batch-size",
        3,
    ]
    _, errors = shown(capsys, "generate", run, *options, code=1)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [entry.get("id") for entry in found][:2] == [1, None]
    assert ["answer" in entry for entry in found] == [True, True, False, True, False, False, True] + [False] * 5
    assert "1 marks <image> in the prompt but 2 files" in found[2]["error"]
    assert "expected `prompt`" in found[4]["error"]
    assert "nowhere.png" in found[5]["error"]
    assert "line 8: this is no JSON object" in found[7]["error"]
    assert "8 lines could not be answered" in errors
    single, _ = shown(capsys, "generate", run, "--prompt", "Which digit?", "--image", images[0], "--max-new-tokens", 4)
    assert single.strip() == found[0]["answer"]


def test_sampling_depends_on_the_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--prompt",
        "Which digit?",
        "--image",
        run.parent / "0.png",
        "--temperature",
        "3",
        "--max-new-tokens",
        12,
    ]
    first, again, other = (shown(capsys, "generate", run, *options, "--seed", seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    assert shown(capsys, "generate", run, *options[:-4], "--beams", 2, "--max-new-tokens", 4)[0].strip()


def test_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is heard at the rate that the encoder wants: the answer is that of its samples, given as an array."""
    torch.manual_seed(0)
    model = MultimodalModel({"audio": ModalEncoderModule(parts.whisper())}, parts.llama())
    processor = MultimodalProcessor({"audio": parts.whisper_processor()}, parts.tokenizer(), model)
    set_template(processor.llm_tokenizer)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    sound = (parts.sound(1600).clip(-1, 1) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(sound.tobytes())
    content = [{"type": "audio", "audio": sound.astype("f4") / 32768}, {"type": "text", "text": "What?"}]
    sample = Sample(messages=({"role": "user", "content": content},), name="a sound")
    expected = answer(model.eval(), Collator(processor), [sample], EvaluationConfig(max_new_tokens=5))
    options = ["--prompt", "What?", "--audio", tmp_path / "a.wav", "--max-new-tokens", 5]
    assert shown(capsys, "generate", tmp_path / "model", *options)[0].strip() == expected[0]
    _, errors = shown(capsys, "generate", tmp_path / "model", "--prompt", "x", "--audio", "nowhere.wav", code=1)
    assert "nowhere.wav cannot be read" in errors


# --- eval and info ----------------------------------------------------------------------------------------------------


def test_eval(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the test data of the run's own config; answers in a file; keys can be changed."""
    out, _ = shown(capsys, "eval", run, "--output", tmp_path / "answers.jsonl")
    assert out.startswith("samples 9  eval_loss ")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert all(row["right"] == (row["answer"] == row["expected"]) for row in rows)
    assert f"eval_exact_match {sum(row['right'] for row in rows) / 9:.4f}" in out
    out, _ = shown(capsys, "eval", run / "checkpoints" / "step-6", "--evaluation.samples", 3)
    assert out.startswith("samples 3  ")
    _, errors = shown(capsys, "eval", tmp_path, code=1)
    assert "belongs to no run" in errors


def test_info(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "info", run)
    assert "LlamaForCausalLM" in out
    assert "vision: <vision> (id 259) stands for one of: vision, image" in out
    found = json.loads(shown(capsys, "info", run, "--format", "json")[0])
    model = MultimodalModel.from_pretrained(run / "model")
    assert sum(row["parameters"] for row in found["parts"]) == sum(p.numel() for p in model.parameters())
    assert found["bytes"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert found["marks"] == {"vision": {"mark": "<vision>", "id": 259}}


# --- export -----------------------------------------------------------------------------------------------------------


def test_export(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """From the run, its model and its checkpoint alike; the answer of plain transformers is that of `generate`."""
    question = ["--prompt", "Which digit?", "--image", run.parent / "0.png", "--max-new-tokens", 8]
    expected = shown(capsys, "generate", run, *question)[0].strip()
    for number, place in enumerate((run, run / "model", run / "checkpoints" / "step-6")):
        folder = tmp_path / str(number)
        out, _ = shown(capsys, "export", place, folder, "--license", "mit", "--base-model", "a/b", "--dataset", "c/d")
        assert out.startswith(f"{folder}: format llava, logits differ by ")
        assert "never generated" in out
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        content = [{"type": "image", "image": str(run.parent / "0.png")}, {"type": "text", "text": "Which digit?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.strip() == expected
        card = (folder / "README.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert (front["license"], front["base_model"], front["datasets"]) == ("mit", ["a/b"], ["c/d"])
        assert "- 6 steps of " in card
        assert "the handwritten digits of scikit-learn" in card
        assert "eval_loss" in card
    out, _ = shown(capsys, "export", run, tmp_path / "0", "--no-verify", "--dtype", "bfloat16", "--format", "llava")
    assert "not compared with the model" in out
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "0").dtype is torch.bfloat16


def test_export_of_an_import(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the processor that came with the original, in the original's format."""
    model, theirs = came_with("llava")
    theirs.save_pretrained(tmp_path / "came")
    sees = {"vision": theirs.image_processor}
    processor = MultimodalProcessor(sees, theirs.tokenizer, model, predefined_tokens={"vision": "<mark>"})
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    words = ["export", tmp_path / "saved", tmp_path / "out", "--processor"]
    assert "format original, logits differ by" in shown(capsys, *words, tmp_path / "came")[0]
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").config.model_type == "llava"
    assert "--processor" in shown(capsys, *words, tmp_path / "saved", code=1)[1]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["generate", "nowhere", "--prompt", "x"], "error: there is no folder nowhere"),
        (["generate", "RUN"], "error: give --prompt, or --input"),
        (["generate", "RUN", "--prompt", "x", "--image", "nowhere.png"], "nowhere.png"),
        (
            ["generate", "RUN", "--prompt", "x", "--audio", "nowhere.wav"],
            "no modality, or more than one, of this model takes sounds",
        ),
        (["generate", "RUN", "--input", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["generate", "RUN", "--input", "a", "--output", "./a"], "is the file of --input"),
        (["generate", "RUN", "--prompt", "x", "--temperature", "-1"], "must not be negative"),
        (["generate", "RUN", "--prompt", "x", "--temperature", "1", "--beams", "2"], "without a --temperature"),
        (["generate", "RUN", "--input", "a", "--image", "b"], "go with --prompt"),
        (["eval", "RUN", "--output", "a", "--evaluation.generate", "false"], "there are none"),
        (["info", "."], "holds no model"),
        (["export", "nowhere", "out"], "there is no folder nowhere"),
        (["export", "RUN", "RUN/model"], "would be lost: config.json"),
        (["train", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _, errors = shown(capsys, *[word.replace("RUN", str(run)) for word in words], code=1)
    assert message in errors
    assert errors.startswith("error: ")


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, "--help")
    assert all(f"cornstarch {command}" in out for command in ("train", "eval", "generate", "info", "export"))
    assert "usage" in shown(capsys, code=2)[1]
    assert "usage" in shown(capsys, "fly", code=2)[1]
    assert shown(capsys, "--version")[0].startswith("cornstarch 0.")
    for command in ("eval", "generate", "info", "export"):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
    torch.set_num_threads(1)


def test_errors_command_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a name holds is written by its number; lines of a message stay lines."""
    assert main(["train", str(tmp_path / "a\x1b[31mb\u202e.yaml")]) == 1
    said = capsys.readouterr().err
    assert "a⟨U+001B⟩[31mb⟨U+202E⟩.yaml" in said
    assert not {"\x1b", "\u202e"} & set(said)
