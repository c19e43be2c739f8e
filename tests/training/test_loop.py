"""The loop: what accumulation changes (nothing), what it does with numbers that are none, and its state."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import transformers
from torch import Tensor, nn

from cornstarch import ArgumentError, Batches, Callback, Loop, StepRecord, TrainingError, parameter_groups
from cornstarch.training import OptimizerConfig, TrainsConfig, make_optimizer, make_schedule
from cornstarch.training.loop import labelled_tokens, real_tokens
from cornstarch.training.random_state import random_state, set_random_state
from cornstarch.training.run import speed_up
from cornstarch.training.schedules import share_at
from tests.training import toy


def make(
    micro_batch_size: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    steps: int = 3,
    made: tuple[Any, Any] | None = None,
    optimizer: OptimizerConfig | None = None,
    **options: Any,
) -> Loop:
    model, collator = made or toy.model_and_collator(dtype)
    batches = Batches(toy.Colours(), collator, batch_size, micro_batch_size=micro_batch_size)
    config = optimizer or OptimizerConfig(learning_rate=1e-2)
    groups = parameter_groups(model, config)
    return Loop(model, make_optimizer(groups, config), batches, steps=steps, **options)


class Gradients(Callback):
    """Keeps every step's gradients."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_gradients(self, loop: Loop) -> None:
        parameters = loop.model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})


class Records(Callback):
    def __init__(self) -> None:
        self.all: list[StepRecord] = []

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        self.all.append(record)


def run(loop: Loop) -> list[StepRecord]:
    records = Records()
    loop.callbacks.append(records)
    assert loop.run() is None
    return records.all


# --- accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [4, 2, 3, 1])
def test_accumulation_changes_nothing(micro: int) -> None:
    """Loss, every gradient and the weights after 3 steps equal those of whole batches, fp64 1e-10.

    Samples differ in how many tokens are labelled, and some have no image.
    """
    whole, pieces = Gradients(), Gradients()
    first = make(dtype=torch.float64, callbacks=[whole])
    second = make(micro, dtype=torch.float64, callbacks=[pieces])
    losses, others = run(first), run(second)
    assert [r.loss for r in losses] == pytest.approx([r.loss for r in others], rel=1e-10)
    assert [r.labelled_tokens for r in losses] == [r.labelled_tokens for r in others]
    for expected, found in zip(whole.steps, pieces.steps, strict=True):
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            assert (gradient - found[name]).abs().max() <= 1e-10 * max(1, gradient.abs().max()), name
    for (name, one), (_, other) in zip(
        first.model.state_dict().items(), second.model.state_dict().items(), strict=True
    ):
        assert (one - other).abs().max() < 1e-9, name


def test_the_loss_is_the_mean_over_labelled_tokens() -> None:
    """Against log-probabilities of the labelled tokens, taken one by one from the logits of a whole batch, 1e-5."""
    loop = make(2)
    _, collator = toy.model_and_collator()
    batch = next(Batches(toy.Colours(), collator, 8)).micro_batches[0]
    with torch.no_grad():
        logits = loop.model(**batch, output_logits=True).logits.log_softmax(-1)
    scores = [
        -logits[row, place - 1, label].item()
        for row, labels in enumerate(batch["labels"].tolist())
        for place, label in enumerate(labels)
        if label != -100
    ]
    record = loop.take_step()
    assert record.loss == pytest.approx(sum(scores) / len(scores), rel=1e-5)
    assert record.labelled_tokens == len(scores)


def test_losses_of_a_mixture_of_experts_are_averaged() -> None:
    """What routers add is not added once for every micro-batch: equal samples have the loss of one batch, 1e-10."""

    class Always(toy.Colours):
        def sample(self, index: int, chance: Any) -> Any:
            return super().sample(1, chance)

    torch.manual_seed(0)
    made = toy.model_and_collator(torch.float64)
    config = transformers.Qwen3MoeConfig(
        vocab_size=259, hidden_size=24, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        output_router_logits=True, router_aux_loss_coef=0.5, experts_implementation="eager",
    )  # fmt: skip
    made[0].language_model = transformers.Qwen3MoeForCausalLM(config).double()
    made[0].language_model.loss_function = toy.exact_loss
    losses = []
    for micro in (8, 2, 1):
        batches = Batches(Always(), made[1], 8, micro_batch_size=micro)
        optimizer = torch.optim.SGD(made[0].parameters(), lr=0.0)
        losses.append(Loop(made[0], optimizer, batches, steps=1).take_step().loss)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-10)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_transformers_trainer_gives_the_same_losses(tmp_path: Any, accumulation: int) -> None:
    """5 steps of AdamW with a linear schedule, no warm-up, clipping at 1, the same samples in the same order: 1e-5."""
    rows = [toy.Colours().sample(index, None) for index in range(24)]
    model, collator = toy.model_and_collator()
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=5, per_device_train_batch_size=8 // accumulation, learning_rate=1e-2, weight_decay=0.1,
        gradient_accumulation_steps=accumulation, lr_scheduler_type="linear", warmup_steps=0, max_grad_norm=1.0,
        logging_steps=1, report_to="none", remove_unused_columns=False, train_sampling_strategy="sequential",
        use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    model, collator = toy.model_and_collator()
    batches = Batches(toy.Colours(), collator, 8, micro_batch_size=8 // accumulation, shuffle=False)
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    groups = parameter_groups(model, config)
    loop = Loop(model, make_optimizer(groups, config), batches, steps=5, schedule=make_schedule("linear", {}))
    found = [record.loss for record in run(loop)]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)  # Trainer rounds what it logs to four places


# --- numbers that are none --------------------------------------------------------------------------------------------


def _break_weight(model: Any) -> None:
    with torch.no_grad():
        model.vision_encoder.projector.projection.weight[0, 0] = math.nan


def _break_activation(model: Any) -> None:
    model.vision_encoder.module.encoder.layers[0].mlp.register_forward_hook(lambda m, a, output: output * math.inf)


def _break_gradient(model: Any) -> None:
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient * math.nan

    layer = model.language_model.model.layers[0].mlp.down_proj
    plain = layer.forward
    layer.forward = lambda value: plain(Poison.apply(value))


@pytest.mark.parametrize(
    "broken, expected",
    [
        (_break_weight, r"loss is nan.*weight vision_encoder.projector.projection.weight of vision_projector"),
        (_break_activation, r"loss is nan.*activation of vision_encoder went first.*encoder.layers.0"),
        (_break_gradient, r"gradient is not finite.*gradient of language_model went first.*layers.0.mlp"),
    ],
)
def test_numbers_that_are_none_stop_and_are_traced(broken: Callable[[Any], None], expected: str) -> None:
    """The message names step, part, module and samples; weights and optimizer are those before the step."""
    loop = make(4, steps=5)
    loop.take_step()
    broken(loop.model)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    with pytest.raises(TrainingError, match=f"(?s)at step 2: .*{expected.partition('.*')[2]}") as caught:
        loop.run()
    assert expected.partition(".*")[0] in str(caught.value)
    assert "colour " in str(caught.value)
    assert loop.step == 1
    assert loop.batches.state_dict()["step"] == 1, "the step can be taken again"
    assert all(
        torch.equal(value, before[name]) or value.isnan().any() for name, value in loop.model.state_dict().items()
    )


def test_a_frozen_language_model_is_named_when_the_gradient_fails_in_it() -> None:
    """Only the projector has gradients, yet the gradient went wrong in the language model."""
    made = toy.model_and_collator()
    made[0].train({"vision": (False, True)}, llm_mode=False)
    _break_gradient(made[0])
    with pytest.raises(
        TrainingError, match=r"gradient of language_model went first, at language_model\.model\.layers\.0"
    ):
        make(made=made).run()


def test_nothing_in_the_loss_trains() -> None:
    """Text only, and only the encoder trains: no gradient arises anywhere."""

    class TextOnly(toy.Colours):
        def sample(self, index: int, chance: Any) -> Any:
            return super().sample(2, chance)

    model, collator = toy.model_and_collator()
    model.train({"vision": (True, True)}, llm_mode=False)
    config = OptimizerConfig()
    optimizer = make_optimizer(parameter_groups(model, config), config)
    with pytest.raises(TrainingError, match="cannot fall"):
        Loop(model, optimizer, Batches(TextOnly(), collator, 4), steps=1).run()


def test_batches_without_labels_are_passed_over() -> None:
    """Counted, and no step; where nothing else comes, an error that names samples."""

    class Silent(toy.Colours):
        def __init__(self, size: int, silent: int) -> None:
            super().__init__(size)
            self.silent = silent

        def sample(self, index: int, chance: Any) -> Any:
            sample = super().sample(index, chance)
            return sample.prompt if index < self.silent else sample

    model, collator = toy.model_and_collator()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = Batches(Silent(6, 4), collator, 2, shuffle=False)
    records = run(Loop(model, optimizer, batches, steps=2))
    assert [(record.step, record.skipped) for record in records] == [(1, 2), (2, 2)]
    with pytest.raises(TrainingError, match=r"step 1: 100 batches in a row have nothing to learn from.*colour"):
        Loop(model, optimizer, Batches(Silent(6, 6), collator, 2), steps=1).run()
    first, second = (next(batches) for batches in [Batches(Silent(6, 1), collator, 3, shuffle=False)] for _ in range(2))
    assert (first.samples, first.unlabelled, first.names) == (2, ("colour 0",), ("colour 0", "colour 1", "colour 2"))
    assert (second.samples, second.unlabelled) == (3, ())
    assert first.micro_batches[0]["labels"].shape[0] == 2


def test_a_loss_term_that_is_no_number_is_named() -> None:
    def broken(model: nn.Module, batch: Any, output: Any) -> Tensor:
        return output.logits.mean() * math.nan

    with pytest.raises(TrainingError, match="the loss term 'mine' is nan"):
        make(loss_terms={"mine": broken}, steps=1).run()


# --- what can be added ------------------------------------------------------------------------------------------------


def test_loss_terms_and_metrics_are_functions() -> None:
    """A term is part of loss and gradient, a metric is not; both see logits and are logged, in micro-batches too."""

    def size(model: nn.Module, batch: Any, output: Any) -> Tensor:
        return output.logits.square().mean() * 0 + model.language_model.lm_head.weight.square().mean()

    def positions(batch: Any, output: Any) -> float:
        return float(output.logits.shape[-1])

    plain = run(make(dtype=torch.float64, steps=1))[0]
    for micro in (8, 2):
        loop = make(micro, dtype=torch.float64, steps=1, loss_terms={"size": size}, metrics={"vocabulary": positions})
        expected = loop.model.language_model.lm_head.weight.square().mean().item()
        record = run(loop)[0]
        assert record.loss == pytest.approx(plain.loss + expected, rel=1e-10)
        assert record.metrics["loss/size"] == pytest.approx(expected, rel=1e-10)
        assert record.metrics["vocabulary"] == pytest.approx(259)
        assert record.grad_norm != pytest.approx(plain.grad_norm, rel=1e-6)


def test_callbacks_are_called_at_their_moments() -> None:
    seen: list[Any] = []

    class Seen(Callback):
        def on_start(self, loop: Loop) -> None:
            seen.append("start")

        def on_gradients(self, loop: Loop) -> None:
            seen.append(("gradients", loop.step))

        def on_step(self, loop: Loop, record: StepRecord) -> None:
            seen.append(("step", loop.step, record.step))
            if loop.step == 2:
                loop.stop("enough")

        def on_end(self, loop: Loop) -> None:
            seen.append("end")

    assert make(callbacks=[Seen()], steps=9).run() == "enough"
    assert seen == ["start", ("gradients", 0), ("step", 1, 1), ("gradients", 1), ("step", 2, 2), "end"]


def test_learning_rates_are_the_schedules() -> None:
    """What every group is stepped with, warm-ups of their own included, and what is recorded: 1e-12."""
    trains = {"vision_projector": TrainsConfig(learning_rate=3e-2, warmup=0.5)}
    model, collator = toy.model_and_collator()
    config = OptimizerConfig(name="SGD", learning_rate=1e-2)
    groups = parameter_groups(model, config, trains, warmup=0.2)
    decay = make_schedule("linear", {})
    used: list[dict[str, float]] = []

    class Used(Callback):
        def on_gradients(self, loop: Loop) -> None:
            used.append({group["part"]: group["lr"] for group in loop.optimizer.param_groups})

    optimizer = make_optimizer(groups, config)
    batches = Batches(toy.Colours(), collator, 4)
    records = run(Loop(model, optimizer, batches, steps=10, schedule=decay, callbacks=[Used()]))
    for step, (record, rates) in enumerate(zip(records, used, strict=True), 1):
        expected = {
            "vision_encoder": 1e-2 * share_at(step, 10, 0.2, decay),
            "vision_projector": 3e-2 * share_at(step, 10, 0.5, decay),
            "language_model": 1e-2 * share_at(step, 10, 0.2, decay),
        }
        assert rates == record.learning_rates == pytest.approx(expected, rel=1e-12)


def test_callbacks_may_change_gradients() -> None:
    """Before they are measured and clipped: made a thousand times longer, the step is no longer than the limit."""

    class Longer(Callback):
        def on_gradients(self, loop: Loop) -> None:
            for parameter in loop.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= 1000

    config = OptimizerConfig(name="SGD", learning_rate=1.0)
    plain = run(make(dtype=torch.float64, optimizer=config, steps=1))[0]
    loop = make(dtype=torch.float64, optimizer=config, max_grad_norm=1e-3, callbacks=[Longer()], steps=1)
    before = torch.cat([p.detach().flatten().clone() for p in loop.model.parameters()])
    assert run(loop)[0].grad_norm == pytest.approx(1000 * plain.grad_norm, rel=1e-9)
    moved = (torch.cat([p.detach().flatten() for p in loop.model.parameters()]) - before).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_callbacks_have_a_state() -> None:
    """A callback's own is in the loop's, and another of its class goes on with it."""

    class Average(Callback):
        def __init__(self) -> None:
            self.value = torch.zeros(())

        def on_step(self, loop: Loop, record: StepRecord) -> None:
            self.value = 0.5 * self.value + 0.5 * record.loss

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: Any) -> None:
            self.value = state["value"]

    first, second = Average(), Average()
    loop = make(steps=3, callbacks=[Gradients(), first])
    run(loop)
    make(steps=3, callbacks=[second]).load_state_dict(loop.state_dict())
    assert second.value == first.value != 0


@pytest.mark.parametrize("name", ["loss", "step", "grad_norm", "loss/mine"])
def test_metrics_cannot_take_names_that_lines_have(name: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be called"):
        make(metrics={name: lambda batch, output: 0.0})


def test_gradients_are_clipped_and_their_length_is_that_before() -> None:
    """With SGD at rate 1 the change of the weights is the gradient: no longer than the limit, fp64 1e-10."""
    config = OptimizerConfig(name="SGD", learning_rate=1.0)
    kept = Gradients()
    loop = make(dtype=torch.float64, optimizer=config, max_grad_norm=1e-3, callbacks=[kept], steps=1)
    before = {name: parameter.detach().clone() for name, parameter in loop.model.named_parameters()}
    record = run(loop)[0]
    whole = torch.cat([gradient.flatten() for gradient in kept.steps[0].values()]).norm().item()
    moved = torch.cat([(p - before[name]).flatten() for name, p in loop.model.named_parameters()]).norm().item()
    assert record.grad_norm == pytest.approx(whole, rel=1e-10)
    assert moved == pytest.approx(1e-3, rel=1e-3)  # PyTorch adds 1e-6 to the length it divides by
    assert math.hypot(*record.grad_norms.values()) == pytest.approx(whole, rel=1e-10)
    assert set(record.grad_norms) == {"vision_encoder", "vision_projector", "language_model"}


@pytest.mark.parametrize("how", ["checkpointing", pytest.param("compiled", marks=pytest.mark.slow)])
def test_saving_memory_or_time_changes_no_number(how: str) -> None:
    """Losses and gradients as without, 1e-5: layers recomputed, or each compiled; language model frozen in one run."""
    for frozen in (False, True):
        plain, other = Gradients(), Gradients()
        losses = []
        for kept in (plain, other):
            made = toy.model_and_collator()
            if frozen:
                made[0].train({"vision": (True, True)}, llm_mode=False)
            if kept is other:
                speed_up(made[0], gradient_checkpointing=how == "checkpointing", compile=how == "compiled")
            losses.append([record.loss for record in run(make(made=made, callbacks=[kept], steps=2))])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for expected, found in zip(plain.steps, other.steps, strict=True):
            assert expected.keys() == found.keys()
            for name, gradient in expected.items():
                assert (gradient - found[name]).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name


def test_bfloat16_is_autocast() -> None:
    """Weights stay float32, products are rounded: the loss differs, by less than a hundredth."""
    plain, rounded = make(steps=1), make(steps=1, precision="bfloat16")
    exact, loss = run(plain)[0].loss, run(rounded)[0].loss
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}
    assert 0 < abs(loss - exact) < 1e-2 * exact


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adafactor"])
def test_state_is_all_there_is(name: str) -> None:
    """Stopped after 4 of 9 steps and gone on in other objects, with dropout: bit-equal losses and weights."""
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2)

    def dropped() -> tuple[Any, Any]:
        return toy.model_and_collator(attention_dropout=0.3)

    def whole_run(made: tuple[Any, Any]) -> Loop:
        return make(2, made=made, optimizer=optimizer, steps=9, schedule=make_schedule("cosine", {}))

    torch.manual_seed(7)
    straight = whole_run(dropped())
    expected = [record.loss for record in run(straight)]

    torch.manual_seed(7)
    first = whole_run(dropped())
    losses = [first.take_step().loss for _ in range(4)]
    state = {"model": {k: v.clone() for k, v in first.model.state_dict().items()}, "loop": first.state_dict()}
    torch.manual_seed(99)
    second = whole_run(dropped())
    second.model.load_state_dict(state["model"])
    second.load_state_dict(state["loop"])
    losses += [record.loss for record in run(second)]
    assert losses == expected
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_labels_that_carry_loss_are_counted() -> None:
    """Not that of the first position, which nothing before it can predict; nor those of inputs, whatever they say."""
    labels = torch.tensor([[5, 6, -100], [-100, -100, 7]])
    assert labelled_tokens({"labels": labels}) == 2
    assert labelled_tokens({"labels": labels, "input_ids": torch.tensor([[5, 99, 6], [6, 6, 7]])}, [99]) == 1


def test_padding_is_no_token() -> None:
    batch = {"labels": torch.zeros(2, 3), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    assert real_tokens(batch) == 5
    assert run(make(steps=1))[0].tokens < 8 * 40


def test_random_numbers_of_python_and_numpy_go_on(tmp_path: Any) -> None:
    """As PyTorch's do: through a checkpoint's files too."""
    state = random_state(torch.device("cpu"))
    expected = (random.random(), float(numpy.random.rand()), torch.rand(()).item())
    random.seed(5)
    numpy.random.seed(5)
    set_random_state(state, torch.device("cpu"))
    assert (random.random(), float(numpy.random.rand()), torch.rand(()).item()) == expected


def test_another_loop_must_train_the_same() -> None:
    """Other parameters, or other data, are refused by name; other rates are the new loop's."""
    loop = make(steps=2)
    loop.take_step()
    state = loop.state_dict()
    other, collator = toy.model_and_collator()
    other.train({"vision": (False, True)}, llm_mode=True)
    with pytest.raises(ArgumentError, match=r"other parameters train than did, among them vision_encoder"):
        make(made=(other, collator)).load_state_dict(state)
    with pytest.raises(ArgumentError, match=r"cannot go on in the data: batch_size was 8 and is 4"):
        make(batch_size=4).load_state_dict(state)
    slower = make(optimizer=OptimizerConfig(learning_rate=1e-5), steps=2)
    slower.load_state_dict(state)
    assert slower.take_step().learning_rates["language_model"] == pytest.approx(1e-5)
