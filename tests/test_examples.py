"""Everything in examples/: configs of digits are trained for a few steps (recipes for models off the hub are in
test_recipes.py), the notebook's cells run in order."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cornstarch import load_run, parse_config, part_rows, read_metrics, train
from tests import pages

EXAMPLES = pages.ROOT / "examples"
CONFIGS = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
QUICK = ("--training.steps", "3", "--training.batch_size", "6", "--evaluation.samples", "6", "--training.device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of three steps in runs/digits."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(parse_config((EXAMPLES / "digits.yaml").read_text(encoding="utf-8"), QUICK))
    return folder


def quick(name: str) -> Any:
    result = train(parse_config((EXAMPLES / name).read_text(encoding="utf-8"), [*QUICK, "--run.overwrite", "true"]))
    assert [line["step"] for line in read_metrics(result.folder / "metrics.jsonl") if "loss" in line] == [1, 2, 3]
    return {row["part"]: row["mode"] for row in part_rows(load_run(result.folder)[0])}


def test_all_examples_are_known() -> None:
    """An example that no test here names would be one that nobody runs."""
    assert {path.name for path in EXAMPLES.iterdir() if not path.name.startswith(".")} == {
        *("digits.yaml", "digits-lora.yaml", "digits-partial.yaml", "digits-qlora.yaml", "digits.ipynb"),
        *("llava-pretrain.yaml", "llava-finetune.yaml", "llava-finetune-lora.yaml", "smolvlm.yaml", "speech.yaml"),
        "omni.yaml",
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_each_says_what_it_is_and_how_to_start_it(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    assert f"#   cornstarch train examples/{name}\n" in comment
    assert parse_config(text).run.folder == f"runs/{name.removesuffix('.yaml')}"


def test_adapters_from_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert quick("digits-lora.yaml") == {
        "vision_encoder": "frozen",
        "vision_projector": "full",
        "language_model": "lora",
    }


def test_parts_of_parts_from_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert quick("digits-partial.yaml") == {
        "vision_encoder": "partial",
        "vision_projector": "full",
        "language_model": "partial",
    }


def test_four_bits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checkpoint made by the command in its comment."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(place)
    command = re.search(r'python -c "(.*)"', (EXAMPLES / "digits-qlora.yaml").read_text(encoding="utf-8"))
    assert command is not None
    exec(command[1], {})
    assert quick("digits-qlora.yaml")["language_model"] == "lora"


def test_seeing_and_hearing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the data prepared in another process, as the config says."""
    monkeypatch.chdir(tmp_path)
    names = ("vision_encoder", "vision_projector", "audio_encoder", "audio_projector", "language_model")
    assert quick("omni.yaml") == dict.fromkeys(names, "full")


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code cells in one namespace, in a copy of the folder; no outputs are kept in the file."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads(Path("digits.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    for number, cell in enumerate(cells):
        assert not cell["outputs"]
        exec(compile("".join(cell["source"]), f"digits.ipynb, code cell {number}", "exec"), namespace)
    records = namespace["keep"].records
    assert len(records) == 60
    assert records[-1].loss < records[0].loss / 2
    assert 0 <= records[-1].metrics["accuracy"] <= 1
    assert len(namespace["answers"]) == 1
    load_run(tmp_path / "runs" / "notebook")
