"""Checks of a model: the loss by hand, the mode and the precision they are made in, and the best checkpoint."""

import json
import math
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cornstarch import ArgumentError, Collator, EvaluationConfig, evaluate, first_samples
from cornstarch.training import checkpoints
from cornstarch.training.evaluation import end_of_turn, exact_match, in_evaluation_mode
from tests.training import toy

SAMPLES = first_samples(toy.Colours(7))


def by_hand(model: Any, collator: Collator) -> float:
    """Over every labelled token of every sample alone, its log-probability."""
    scores = []
    for sample in SAMPLES:
        batch = collator([sample])
        with torch.no_grad():
            logits = model.eval()(**batch).logits.log_softmax(-1)
        labels = batch["labels"][0].tolist()
        scores += [-logits[0, place - 1, label].item() for place, label in enumerate(labels) if label != -100]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_loss_is_per_labelled_token(size: int) -> None:
    """Whatever the batches: those of 3, 3 and 1 samples have different numbers of labels; 1e-5, with dropout off."""
    model, collator = toy.model_and_collator(attention_dropout=0.5)
    expected = by_hand(model, collator)
    config = EvaluationConfig(batch_size=size, generate=False)
    found = evaluate(model.train(), collator, SAMPLES, config)
    assert found.figures == {"eval_loss": pytest.approx(expected, rel=1e-5)}
    assert found.answers == []


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_put_back(mode: bool) -> None:
    """Also where the check fails; what is frozen stays in evaluation mode."""
    model, collator = toy.model_and_collator()
    model.train({"vision": (False, True)}).train(mode)
    evaluate(model, collator, SAMPLES, EvaluationConfig(max_new_tokens=1))
    assert model.training is mode
    assert not model.vision_encoder.module.training
    with suppress(ZeroDivisionError), in_evaluation_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training is mode


def test_the_precision_is_the_callers() -> None:
    """Under autocast the loss is rounded; without it is not."""
    model, collator = toy.model_and_collator()
    config = EvaluationConfig(generate=False)
    exact, rounded = (
        evaluate(model, collator, SAMPLES, config, autocast=context).figures["eval_loss"]
        for context in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16))
    )
    assert 0 < abs(exact - rounded) < 1e-2 * exact


def test_answers_are_counted_and_measured() -> None:
    """Exactly right but for white space around; metrics of the caller's see samples and answers, as `eval_{name}`."""
    answers = [sample.answer for sample in SAMPLES]
    assert exact_match(SAMPLES, answers) == 1
    assert exact_match(SAMPLES, [answers[0].upper(), *answers[1:]]) == pytest.approx(6 / 7)
    model, collator = toy.model_and_collator()
    seen: list[Any] = []

    def length(samples: Any, texts: Any) -> float:
        seen.append((len(samples), len(texts)))
        return 3.0

    found = evaluate(model, collator, SAMPLES, EvaluationConfig(max_new_tokens=2), {"length": length})
    assert found.figures["eval_length"] == 3.0
    assert seen == [(7, 7)]
    assert set(found.figures) == {"eval_loss", "eval_exact_match", "eval_length"}


def test_answers_end_where_a_turn_ends() -> None:
    model, collator = toy.model_and_collator()
    model.generation_config.eos_token_id = [7, 9]
    assert end_of_turn(model, collator) == {"eos_token_id": [7, 9, 258], "pad_token_id": 256}
    model.generation_config.eos_token_id = None
    assert end_of_turn(model, collator)["eos_token_id"] == [258]


def test_nothing_to_check_on_is_said() -> None:
    model, collator = toy.model_and_collator()
    with pytest.raises(ArgumentError, match="no samples"):
        evaluate(model, collator, [])
    with pytest.raises(ArgumentError, match="no sample has a labelled token"):
        evaluate(model, collator, [SAMPLES[0].prompt])


# --- the best checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by, best", [("eval_loss", 20), ("eval_exact_match", 10)])
def test_the_best_checkpoint(tmp_path: Path, by: str, best: int) -> None:
    """The lowest loss, the highest of anything else, the earlier of equals; those without figures do not count."""
    figures = {5: {}, 10: {"eval_loss": 2.0, "eval_exact_match": 0.9}, 20: {"eval_loss": 1.0, "eval_exact_match": 0.5}}
    figures |= {30: {"eval_loss": 1.0, "eval_exact_match": 0.9}, 40: {"eval_loss": 3.0, "eval_exact_match": 0.1}}
    for step, found in figures.items():
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "state.json").write_text(json.dumps({"state": {}, "figures": found}))
    assert checkpoints.best(tmp_path, by) == tmp_path / f"step-{best}"
    checkpoints.keep(tmp_path, 2, by)
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{best}", "step-30", "step-40"}
    assert checkpoints.last(tmp_path) == tmp_path / "step-40"


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    """Tensors bit for bit, keys that are numbers, infinities, nested lists; and no pickle."""
    from tests import parts

    model, processor = parts.vision_pair()
    state = {"step": 3, "a": {0: torch.randn(2), 1: {"x": [1, None, math.inf, "text"]}}, "scalar": torch.tensor(5.0)}
    path = checkpoints.save(tmp_path, model, processor, state)
    found = checkpoints.load(path)
    assert torch.equal(found["a"][0], state["a"][0])
    assert found["a"][1] == state["a"][1]
    assert found["scalar"] == 5.0
    assert {file.suffix for file in path.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".jinja"}


def test_leftovers_are_swept_away(tmp_path: Path) -> None:
    """Half of a checkpoint that was being written or removed is gone with the next."""
    from tests import parts

    model, processor = parts.vision_pair()
    for name in (".writing-x", ".removing-step-1-7"):
        (tmp_path / name).mkdir()
    checkpoints.save(tmp_path, model, processor, {"step": 1})
    checkpoints.save(tmp_path, model, processor, {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
