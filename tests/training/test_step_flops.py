"""The operations of steps, told from those of others: exact, whatever shape comes next."""

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cornstarch import Loop
from cornstarch.models.multimodal_language_model import labelled_head
from cornstarch.training.step_flops import FlopsOfSteps
from tests import tiny
from tests.zoo import making
from tests.zoo.making import KEY, MARK


def counted(model: Any, micro: dict[str, Tensor]) -> int:
    """By PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter:
        loss = model(**micro).loss
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def micro_batches(encoder: str, number: int) -> list[dict[str, Tensor]]:
    """Text of any length, in batches of one to three samples with an input each; every fourth has none."""
    chance = random.Random(0)
    made = []
    for index in range(number):
        media = making.media(encoder, torch.float32)
        features = 0 if index % 4 == 3 else tiny.ROWS[encoder]
        samples = chance.randint(1, 2)
        rows = [[MARK] * features + tiny.text(chance.randint(3, 40), index) for _ in range(samples)]
        micro = tiny.padded(rows)
        micro["labels"] = micro["input_ids"].masked_fill(micro["attention_mask"] == 0, -100)
        micro["labels"][:, : chance.randint(features, features + 2)] = -100
        if features:
            micro |= {f"{KEY}_{name}": value[:samples] for name, value in media.items()}
        made.append(micro)
    return made


REGIMES = {"all": (True, True), "encoder frozen": (False, True), "projector only": (False, False)}
CASES = [
    *(("llama", regime, recomputed) for regime in REGIMES for recomputed in (False, True)),
    ("mixtral", "projector only", True),
    ("mamba2", "all", False),
]


@pytest.mark.parametrize("language_model, regime, checkpointing", CASES)
def test_told_is_what_the_counter_counts(language_model: str, regime: str, checkpointing: bool) -> None:
    """Micro-batches of other shapes against `FlopCounterMode` with eager attention and experts; exact."""
    model = making.compose(tiny.encoder("clip"), tiny.language_model(language_model))
    model.train({KEY: (REGIMES[regime][0], True)}, llm_mode=REGIMES[regime][1])
    for part in (model.language_model, model.encoders[KEY].module):
        if part._can_set_attn_implementation():
            part.set_attn_implementation("eager")
        if part._can_set_experts_implementation():
            part.set_experts_implementation("eager")
    if checkpointing:
        model.gradient_checkpointing_enable()
    tiny.ask(model)
    flops = FlopsOfSteps(model)
    for micro in micro_batches("clip", 24):
        labelled = int((micro["labels"][:, 1:] != -100).sum())
        with flops.counting(micro, labelled) as work:
            counter = counted(model, micro)
        assert work[0].total == counter
    scans = language_model == "mamba2"  # works on whole chunks of positions, so it is linear in nothing
    assert flops.measured < (25 if scans else 18)


def test_chunks_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled rows in chunks that are computed again: exact, too."""
    model = making.compose(tiny.encoder("clip"), tiny.language_model("llama")).train(llm_mode=True)
    tiny.ask(model)
    run, rows = labelled_head.run, labelled_head.rows_of
    monkeypatch.setattr(labelled_head, "run", lambda *given: run(*given, most_logits=96 * 7))
    monkeypatch.setattr(labelled_head, "rows_of", lambda *given: rows(*given, most_logits=96 * 7))
    for part in (model.language_model, model.encoders[KEY].module):
        part.set_attn_implementation("eager")
    flops = FlopsOfSteps(model)
    for micro in micro_batches("clip", 24):
        with flops.counting(micro, int((micro["labels"][:, 1:] != -100).sum())) as work:
            counter = counted(model, micro)
        assert work[0].total == counter
    assert flops.measured < 24


def test_what_trains_and_what_is_recomputed_may_change_in_a_run() -> None:
    """Frozen after eight micro-batches, checkpointed after sixteen, it is measured anew; exact throughout."""
    model = making.compose(tiny.encoder("clip"), tiny.language_model("llama")).train(llm_mode=True)
    for part in (model.language_model, model.encoders[KEY].module):
        part.set_attn_implementation("eager")
    tiny.ask(model)
    flops = FlopsOfSteps(model)
    for number, micro in enumerate(micro_batches("clip", 24)):
        if number == 8:
            model.train({KEY: (False, True)}, llm_mode=False)
        if number == 16:
            model.gradient_checkpointing_enable()
        with flops.counting(micro, int((micro["labels"][:, 1:] != -100).sum())) as work:
            counter = counted(model, micro)
        assert work[0].total == counter


def clip_and_llama() -> tuple[Any, dict[str, Tensor], int]:
    """A model all of which trains, asked before, a micro-batch and its labelled tokens."""
    model = making.compose(tiny.encoder("clip"), tiny.language_model("llama")).train(llm_mode=True)
    for part in (model.language_model, model.encoders[KEY].module):
        part.set_attn_implementation("eager")
    tiny.ask(model)
    micro = micro_batches("clip", 1)[0]
    return model, micro, int((micro["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize("place", ["flops.of_operator", "accounting._storages"])
def test_what_cannot_be_counted_stops_no_step(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator whose count fails: a warning, once, and the gradients that there are without counting."""
    model, micro, labelled = clip_and_llama()
    model(**micro).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}
    model.zero_grad(set_to_none=True)

    def fail(*_: Any) -> int:
        raise IndexError("an argument is missing")

    flops = FlopsOfSteps(model)
    monkeypatch.setattr(f"cornstarch.models.multimodal_language_model.{place}", fail)
    warned = pytest.warns(UserWarning, match="not counted any more.*IndexError: an argument is missing")
    with warned, flops.counting(micro, labelled) as work:
        model(**micro).loss.backward()
    assert work == []
    for name, gradient in expected.items():
        assert torch.equal(model.get_parameter(name).grad, gradient)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with flops.counting(micro, labelled) as work:
            model(**micro).loss.backward()
    assert work == []


def test_gradients_of_embeddings_may_be_sparse() -> None:
    """Tensors without a storage of their own; operations are those of the counter."""
    model, micro, labelled = clip_and_llama()
    model.get_input_embeddings().sparse = True
    with FlopsOfSteps(model).counting(micro, labelled) as work:
        counter = counted(model, micro)
    assert work[0].total == counter


def test_numbers_beside_inputs() -> None:
    """A tensor without axes among the inputs (a temperature)."""
    model, micro, labelled = clip_and_llama()
    with FlopsOfSteps(model).counting({**micro, "temperature": torch.tensor(2.0)}, labelled) as work:
        counter = counted(model, micro)
    assert work[0].total == counter


def test_layers_are_compiled_all_the_same() -> None:
    """Micro-batches that are measured run uncompiled; those behind them run compiled, with the same figures."""
    calls: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        def run(*given: Any) -> Any:
            calls.append(1)
            return graph(*given)

        return run

    model = making.compose(tiny.encoder("clip"), tiny.language_model("llama")).train(llm_mode=True)
    micro = micro_batches("clip", 1)[0]
    labelled = int((micro["labels"][:, 1:] != -100).sum())
    flops, plain = FlopsOfSteps(model), FlopsOfSteps(model)
    with plain.counting(micro, labelled) as expected:
        model(**micro).loss.backward()
    model.compile(backend=backend)
    for number in range(2):
        assert not calls, number
        with flops.counting(micro, labelled) as work:
            model(**micro).loss.backward()
        assert work[0] == expected[0]
    assert flops.measured == 1
    assert calls


def test_a_model_without_parts_has_no_figures() -> None:
    """The loop trains any module; there is no work then, and no line with it."""
    model = tiny.language_model("llama")
    rows = tiny.padded([tiny.text(8), tiny.text(6)])
    step = type("Step", (), {"micro_batches": [{**rows, "labels": rows["input_ids"]}], "names": [], "bad": (), "samples": 2, "unlabelled": ()})  # fmt: skip  # noqa: E501

    class Steps:
        def __next__(self) -> Any:
            return step

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    loop = Loop(model, torch.optim.SGD(model.parameters()), Steps(), steps=2)
    assert loop.take_step().work is None
