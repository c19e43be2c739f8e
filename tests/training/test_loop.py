"""The training loop on tiny problems, and how it shows where it is."""

import io
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cornstarch.errors import ArgumentError, CornstarchError, TrainingError
from cornstarch.training.loop import LoopConfig, StepRecord, fit, learning_rate_at, make_optimizer, mean_loss
from cornstarch.training.progress import Progress


class Line(nn.Module):
    """Fits labels = 2 x + 1, with a loss like a model's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, x: Tensor, labels: Tensor) -> SimpleNamespace:
        self.modes.append(self.training)
        return SimpleNamespace(loss=(self.layer(x) - labels).square().mean())


def line(seed: int = 0) -> Line:
    torch.manual_seed(seed)
    return Line()


def batches(seed: int = 0, broken_from: int | None = None) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    number = 0
    while True:
        number += 1
        x = torch.randn(8, 1, generator=generator)
        labels = 2 * x + 1
        yield {"x": x, "labels": labels * math.nan if number == broken_from else labels}


CONFIG = LoopConfig(steps=200, learning_rate=0.1, weight_decay=0.0)


# --- fit --------------------------------------------------------------------------------------------------------------


def test_loss_falls() -> None:
    """From order one to less than a thousandth, on a line without noise."""
    records = fit(line(), batches(), CONFIG)
    assert [record.step for record in records] == list(range(1, 201))
    assert records[0].loss > 0.5
    assert records[-1].loss < 1e-3


def test_same_seed_same_losses() -> None:
    """Bit-equal on one machine; another seed differs."""
    first, second, other = (fit(line(seed), batches(seed), CONFIG) for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_on_step_sees_every_record_in_order() -> None:
    seen: list[StepRecord] = []
    assert fit(line(), batches(), LoopConfig(steps=5), seen.append) == seen


@pytest.mark.parametrize("step", [1, 4])
def test_non_finite_loss_stops_and_names_the_step(step: int) -> None:
    """The weights stay those before the step."""
    model, reference = line(), line()
    with pytest.raises(TrainingError, match=rf"loss is nan at step {step}\b"):
        fit(model, batches(broken_from=step), CONFIG)
    if step > 1:
        with pytest.raises(TrainingError, match="ran out after step 3 of 200"):
            fit(reference, [batch for batch, _ in zip(batches(), range(3), strict=False)], CONFIG)
    assert torch.equal(model.layer.weight, reference.layer.weight)


def test_infinite_gradient_stops_and_names_the_step() -> None:
    """A finite loss whose gradient is infinite: the square root at 0."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, labels: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=self.weight.sqrt())

    model = Root()
    with pytest.raises(CornstarchError, match="gradient norm is inf at step 1"):
        fit(model, [{"labels": torch.zeros(1)}], LoopConfig(steps=1))
    assert model.weight == 0


def test_batches_that_run_out_are_an_error() -> None:
    with pytest.raises(TrainingError, match="ran out after step 0 of 200"):
        fit(line(), [], CONFIG)


def test_no_batch_is_taken_beyond_the_last_step() -> None:
    source = batches()
    fit(line(), source, LoopConfig(steps=2))
    fresh = batches()
    for _ in range(2):
        next(fresh)
    assert torch.equal(next(source)["x"], next(fresh)["x"])


def test_gradients_are_clipped() -> None:
    """With plain data far away, the gradient used is no longer than the limit."""
    model, norms = line(), []
    config = LoopConfig(steps=3, max_grad_norm=0.25)
    far = ({"x": batch["x"] * 100, "labels": batch["labels"] * 100} for batch in batches())
    fit(
        model,
        far,
        config,
        lambda _: norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())),
    )
    assert all(norm == pytest.approx(0.25, rel=1e-4) for norm in norms)


def test_tokens_are_positions_that_are_no_padding() -> None:
    class Masked(Line):
        def forward(self, x: Tensor, labels: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            return super().forward(x, labels)

    batch = {**next(batches()), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    assert fit(Masked(), [batch], LoopConfig(steps=1))[0].tokens == 5


# --- the optimizer ----------------------------------------------------------------------------------------------------


def test_frozen_parameters_have_no_optimizer_state() -> None:
    model = line()
    model.layer.bias.requires_grad_(False)
    before = model.layer.bias.clone()
    held = [p for group in make_optimizer(model, CONFIG).param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(model.layer.weight)]
    fit(model, batches(), LoopConfig(steps=3))
    assert torch.equal(model.layer.bias, before)


def test_only_matrices_are_decayed() -> None:
    groups = make_optimizer(line(), LoopConfig(steps=1, weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], [p.dim() for p in group["params"]]) for group in groups] == [(0.3, [2]), (0.0, [1])]


def test_nothing_to_train() -> None:
    model = line().requires_grad_(False)
    with pytest.raises(TrainingError, match="frozen"):
        fit(model, batches(), CONFIG)


def test_schedule() -> None:
    """Up in a straight line to the peak, then down, never 0 within the run."""
    config = LoopConfig(steps=100, learning_rate=2.0, warmup=0.1)
    rates = [learning_rate_at(step, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == 2.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert 0 < rates[-1] < 0.01
    assert learning_rate_at(1, LoopConfig(steps=1, learning_rate=2.0)) == 2.0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0.0}, {"warmup": 1.5}, {"max_grad_norm": -1.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        LoopConfig(**{"steps": 1, **wrong})


# --- mean_loss --------------------------------------------------------------------------------------------------------


def test_mean_loss_weighs_by_labelled_positions_and_puts_the_mode_back() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, labels: Tensor) -> SimpleNamespace:
            assert not self.training
            return SimpleNamespace(loss=self.weight * labels[labels != -100].float().mean())

    model = Given()
    rows = [{"labels": torch.tensor([[4, -100, -100]])}, {"labels": torch.tensor([[1, 2, 3]])}]
    assert mean_loss(model, rows) == pytest.approx((4 + 1 + 2 + 3) / 4)
    assert model.training
    mean_loss(model.eval(), rows)
    assert not model.training


# --- progress ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, steps: int) -> str:
    with Progress(steps, stream) as progress:
        for step in range(1, steps + 1):
            progress.update(StepRecord(step=step, loss=1.5, tokens=100))
    return stream.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    """Some twenty whole lines, whatever the number of steps, the last for the last step."""
    lines = shown(io.StringIO(), 205).splitlines()
    assert 20 <= len(lines) <= 22
    assert lines[-1].startswith("step 205/205  loss 1.500  ")
    assert all("tokens/s" in line and line.endswith("left") for line in lines)
    assert "\r" not in "".join(lines)
    assert len(shown(io.StringIO(), 3).splitlines()) == 3


def test_bar_on_a_terminal() -> None:
    text = shown(Terminal(), 4)
    assert "\r" in text
    assert "loss 1.500" in text
    assert "tokens/s" in text
    assert text.endswith("\n")
