"""`cornstarch inspect`: what a config's steps cost, as a person and a program get it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from cornstarch import read_config
from cornstarch.cli.main import main
from cornstarch.training.inspection import inspect_config
from tests.training.test_run import config

FLOPS = ("forward_flops", "backward_flops", "recomputed_flops")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The digits model's config, its encoder frozen, in a file."""
    from cornstarch import to_yaml

    (tmp_path / "config.yaml").write_text(to_yaml(config(tmp_path / "run", "--trains.vision_encoder.mode", "frozen")))
    return tmp_path / "config.yaml"


def shown(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> tuple[str, str]:
    assert main([str(word) for word in words]) == code
    found = capsys.readouterr()
    return found.out, found.err


def test_measured_and_forecast_stand_side_by_side(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: every figure of every part, twice and the same; the frozen encoder saves and learns nothing."""
    values = json.loads(shown(capsys, "inspect", written, "--format", "json")[0])
    assert list(values["parts"]) == ["vision_encoder", "vision_projector", "language_model"]
    for part in values["parts"].values():
        assert part["measured"] == part["forecast"]
    encoder = values["parts"]["vision_encoder"]
    assert encoder["mode"] == "frozen"
    for name in ("saved_bytes", "gradient_bytes", "optimizer_bytes", "backward_flops"):
        assert encoder["measured"][name] == 0
    assert encoder["measured"]["forward_flops"] > 0
    together = values["together"]["measured"]
    assert together["saved_bytes"] == sum(part["measured"]["saved_bytes"] for part in values["parts"].values())
    assert together["optimizer_bytes"] > 2 * together["gradient_bytes"]  # two moments, and a step
    assert values["micro_batch"]["samples"] == read_config(written).training.batch_size


def test_operations_are_those_of_a_step_of_training(written: Path) -> None:
    """Against PyTorch's counter, with eager attention, on the batch that training takes first."""
    from cornstarch import build_model, choose
    from cornstarch.training import sourcing

    values = read_config(written)
    found = inspect_config(values)
    torch.manual_seed(values.training.seed)
    model, processor = build_model(values.model)
    choose(model, values.trains)
    batches = sourcing.make_batches(
        values, sourcing.training_source(values.data), sourcing.make_collator(processor, values.data)
    )
    micro = next(batches).micro_batches[0]
    for part in (model.language_model, model.vision_encoder.module):
        part.set_attn_implementation("eager")
    model(**micro)
    with FlopCounterMode(display=False) as counter:
        model(**micro).loss.backward()
    assert found.measured is not None
    assert found.measured.flops == counter.get_total_flops()


def test_a_forecast_reads_no_weights(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures from shapes alone, with what is computed again; a person sees one line a part."""
    whole = json.loads(shown(capsys, "inspect", written, "--format", "json")[0])
    words = ("inspect", written, "--forecast")
    alone = json.loads(shown(capsys, *words, "--format", "json")[0])
    assert alone["together"]["measured"] is None
    for name, part in alone["parts"].items():
        assert part["forecast"] == whole["parts"][name]["forecast"]
    text = shown(capsys, *words, "--training.gradient_checkpointing", "true")[0]
    assert "vision_encoder (frozen: 0 of" in text
    assert text.count("forecast ") >= 4
    assert "measured " not in text
    again = json.loads(shown(capsys, *words, "--training.gradient_checkpointing", "true", "--format", "json")[0])
    assert again["together"]["forecast"]["recomputed_flops"] > 0
    assert again["together"]["forecast"]["saved_bytes"] < 0.5 * alone["together"]["forecast"]["saved_bytes"]
    assert [again["together"]["forecast"][name] for name in FLOPS[:2]] == [
        alone["together"]["forecast"][name] for name in FLOPS[:2]
    ]


def test_what_cannot_be_inspected_is_said(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(written.read_text())
    values["data"]["train"] = None
    written.write_text(yaml.safe_dump(values))
    assert "data.train must be given" in shown(capsys, "inspect", written, code=1)[1]
    assert "error: " in shown(capsys, "inspect", written.parent / "none.yaml", code=1)[1]
