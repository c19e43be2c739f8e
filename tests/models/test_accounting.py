"""What a step costs: measured, and told from shapes alone, against the counters and hooks of `tests.costs`.

The whole zoo is run by a slow test.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cornstarch import ArgumentError, ModalEncoderModule, MultimodalModel, StepCost, forecast_step, measure_step
from cornstarch.models.multimodal_language_model import labelled_head
from tests import costs, tiny
from tests.zoo.making import KEY
from tests.zoo.table import ENCODERS, LANGUAGE_MODELS

# --- pairs and regimes ------------------------------------------------------------------------------------------------


def pair(encoder: str, language_model: str, regime: str) -> tuple[MultimodalModel, dict[str, Tensor]]:
    """With the kernels that Hugging Face takes by itself, in training mode."""
    return costs.made((encoder, language_model), regime, eager=False).train(), costs.batch((encoder, language_model))


def operations(cost: StepCost) -> dict[str, tuple[int, int, int]]:
    return {name: (part.forward_flops, part.backward_flops, part.recomputed_flops) for name, part in cost.parts.items()}


def kept(cost: StepCost) -> dict[str, tuple[int, int, int]]:
    return {name: (part.weight_bytes, part.gradient_bytes, part.saved_bytes) for name, part in cost.parts.items()}


@pytest.mark.parametrize("regime", costs.REGIMES)
@pytest.mark.parametrize("names", costs.PAIRS, ids=" with ".join)
def test_costs_are_those_of_the_counter_and_the_hooks(names: tuple[str, str], regime: str) -> None:
    """Operations equal the counter's, in all and by part and direction; saved bytes those of hooks to 1 %; whatever
    kernels are at hand, and from shapes alone, the same."""
    model, batch = pair(*names, regime)
    usual, told = measure_step(model, batch), forecast_step(model, batch)
    eager = costs.made(names, regime).train()
    expected = costs.counted(eager, batch)
    assert sum(expected.forward.values()) + sum(expected.backward.values()) == expected.total  # nothing is in no part
    assert usual.flops == expected.total
    for name, part in usual.parts.items():
        assert part.forward_flops == expected.forward[name], name
        assert part.backward_flops + part.recomputed_flops == expected.backward[name], name
    assert operations(told) == operations(usual) == operations(measure_step(eager, batch))
    assert operations(forecast_step(eager, batch)) == operations(usual)
    assert kept(told) == kept(usual)
    if regime != "checkpointed":  # what checkpoints hold, no hook is told
        found = sum(part.saved_bytes for part in usual.parts.values())
        assert found == pytest.approx(costs.saved_bytes(model, batch), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("clip", name) for name in LANGUAGE_MODELS] + [(name, "llama") for name in ENCODERS],
    ids=" with ".join,
)
def test_the_whole_zoo_is_told_from_shapes_alone(names: tuple[str, str]) -> None:
    """Each encoder and each language model: operations and bytes forecast equal those measured, exactly."""
    model, batch = pair(*names, "all train")
    usual, told = measure_step(model, batch), forecast_step(model, batch)
    assert operations(told) == operations(usual)
    assert kept(told) == kept(usual)
    assert told.peak_bytes == pytest.approx(usual.peak_bytes, rel=0.05)


# --- memory -----------------------------------------------------------------------------------------------------------


def alive(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes that a forward pass takes and does not give back, by the process's own allocator."""
    tiny.ask(model)
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = model(**batch).loss
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert loss.requires_grad
    return sum(event.nbytes() for event in events)


@pytest.mark.parametrize("regime", ["all train", "projector only", "checkpointed"])
def test_saved_bytes_are_those_that_the_allocator_gave(regime: str) -> None:
    """What is held after a forward pass, checkpoints included, by PyTorch's profiler of memory; within 5 %.

    The state of random numbers, of which checkpoints keep 5 KB each, is no activation, and left out.
    """
    model, batch = pair("clip", "llama", regime)
    if regime == "checkpointed":
        model.gradient_checkpointing_enable({"preserve_rng_state": False})
    usual = measure_step(model, batch)
    assert sum(part.saved_bytes for part in usual.parts.values()) == pytest.approx(alive(model, batch), rel=0.05)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "Adagrad", "NAdam", "ASGD"])
def test_optimizer_bytes(name: str) -> None:
    """Of the optimizer's state after a step; told before it, exactly."""
    model, batch = pair("clip", "llama", "encoder frozen")
    optimizer = getattr(torch.optim, name)(model.parameters())
    told = forecast_step(model, batch, optimizer)
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    measured = measure_step(model, batch, optimizer)
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert sum(part.optimizer_bytes or 0 for part in measured.parts.values()) == sum(state.nbytes for state in states)
    for part in told.parts:
        assert told.parts[part].optimizer_bytes == measured.parts[part].optimizer_bytes
    if name == "AdamW":
        assert told.parts[f"{KEY}_encoder"].optimizer_bytes == 0


def test_gradient_bytes_are_those_of_gradients() -> None:
    model, batch = pair("clip", "llama-tied", "all train")
    cost = measure_step(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**batch).loss.backward()
    grads = {id(p): p.grad.nbytes for p in model.parameters() if p.grad is not None}
    assert sum(part.gradient_bytes for part in cost.parts.values()) == sum(grads.values())


# --- odd batches and wrappers -----------------------------------------------------------------------------------------


def text_only(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    rows = tiny.padded([tiny.text(9), tiny.text(6)])
    return {**rows, "labels": rows["input_ids"]}


def test_text_only_and_a_model_of_which_nothing_is_reached() -> None:
    model, batch = pair("clip", "llama", "projector only")
    cost = measure_step(model, text_only(batch))
    assert cost.parts[f"{KEY}_encoder"].flops == cost.parts[f"{KEY}_projector"].flops == 0
    assert cost.parts["language_model"].backward_flops == 0
    assert cost.parts["language_model"].saved_bytes == 0
    assert operations(forecast_step(model, text_only(batch))) == operations(cost)


@pytest.mark.parametrize("how", [measure_step, forecast_step])
def test_a_step_is_one_of_training_where_gradients_are_off(how: Any) -> None:
    """In `torch.no_grad`, what it costs is what it costs outside."""
    model, batch = pair("clip", "llama", "all train")
    expected = how(model, batch)
    with torch.no_grad():
        assert how(model, batch) == expected


@pytest.mark.parametrize("how", ["chunks", "logits", "bfloat16", "autocast", "outputs"])
def test_other_ways(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits in chunks, all logits, parts in bfloat16, autocast, an encoder's output given: as the counter says."""
    model, batch = pair("clip", "llama", "encoder frozen")
    given: dict[str, Any] = {}
    if how == "chunks":
        run = labelled_head.run
        monkeypatch.setattr(labelled_head, "run", lambda *args: run(*args, most_logits=96 * 5))
    if how == "logits":
        batch["output_logits"] = True  # type: ignore[assignment]
    if how == "bfloat16":
        model.to(torch.bfloat16)
    if how == "outputs":
        pixels = batch.pop(f"{KEY}_pixel_values")
        with torch.no_grad():
            batch["encoder_outputs"] = {KEY: model.encoders[KEY].module(pixels).last_hidden_state}  # type: ignore[assignment]
    if how == "autocast":
        given["autocast"] = torch.autocast("cpu", torch.bfloat16)
    usual, told = measure_step(model, batch, **given), forecast_step(model, batch, **given)
    assert operations(told) == operations(usual)
    assert kept(told) == kept(usual)
    for part in (model.language_model, model.encoders[KEY].module):
        part.set_attn_implementation("eager")
    assert usual.flops == costs.counted(model, batch, **given).total


def test_wrapped_models() -> None:
    """Inside PEFT's model of the whole, and inside a wrapper that calls it: the same figures."""

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **batch: Any) -> Any:
            return self.module(**batch)

    model, batch = pair("clip", "llama", "encoder frozen")
    usual = measure_step(model, batch)
    assert operations(measure_step(Wrapper(model), batch)) == operations(usual)
    assert operations(forecast_step(Wrapper(model), batch)) == operations(usual)
    with pytest.raises(ArgumentError, match="expected a MultimodalModel"):
        measure_step(nn.Linear(2, 2), batch)
    with pytest.raises(ArgumentError, match="needs labels"):
        measure_step(model, {name: value for name, value in batch.items() if name != "labels"})


def test_compiled_layers_are_measured_uncompiled_and_stay_compiled() -> None:
    model, batch = pair("clip", "llama", "all train")
    usual = measure_step(model, batch)
    layers = model.language_model.model.layers
    for layer in layers:
        layer.compile(backend="aot_eager")
    assert operations(measure_step(model, batch)) == operations(forecast_step(model, batch)) == operations(usual)
    assert all(layer._compiled_call_impl is not None for layer in layers)
    assert model(**batch).loss.requires_grad


# --- nothing changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", [measure_step, forecast_step])
def test_nothing_changes(how: Any, fails: bool) -> None:
    """Weights, gradients, running statistics, modes, hooks, random numbers; also where the forward pass fails."""
    model = tiny.model(ModalEncoderModule(tiny.Normed())).train(llm_mode=True)
    batch = tiny.vision_batch(4)
    model(**batch).loss.backward()
    model.eval()
    model.language_model.train()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy([*model.state_dict().values()])
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ArgumentError):
            how(model, {**batch, "pixel_values": batch["pixel_values"][:1]})
    else:
        how(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert all(torch.equal(grads[name], p.grad) for name, p in model.named_parameters() if p.grad is not None)
    assert modes == [module.training for module in model.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


# --- from shapes alone ------------------------------------------------------------------------------------------------


def test_weights_may_be_on_the_meta_device() -> None:
    """No values, no memory: the figures of the model with weights."""
    model, batch = pair("clip", "llama", "projector only")
    usual = measure_step(model, batch)
    assert kept(forecast_step(copy.deepcopy(model).to("meta"), batch)) == kept(usual)
    assert operations(forecast_step(copy.deepcopy(model).to("meta"), batch)) == operations(usual)


def test_code_that_needs_values_is_an_error_that_says_so() -> None:
    class Needy(nn.Module):
        hidden_size = 24

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 24)

        def forward(self, pixel_values: Tensor) -> Tensor:
            rows = self.layer(pixel_values.flatten(2).transpose(1, 2))
            return rows if float(rows.sum()) > 0 else -rows

    model = tiny.model(ModalEncoderModule(Needy()))
    batch = tiny.vision_batch(64)
    measure_step(model, batch)
    with pytest.raises(ArgumentError, match=r"needs values.*measure_step"):
        forecast_step(model, batch)


def test_rows_that_a_mask_keeps_are_counted_by_the_mask() -> None:
    """Masks have values where nothing else has: an encoder that keeps the rows of whole pictures alone."""

    class Keeps(nn.Module):
        hidden_size = 24

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 64, 24)

        def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[Tensor]:
            rows = self.layer(pixel_values.flatten(1)).unsqueeze(1).expand(-1, 5, -1)
            return [one[mask] for one, mask in zip(rows, pixel_mask, strict=True)]

    model = tiny.model(ModalEncoderModule(Keeps())).train(llm_mode=True)
    batch = tiny.vision_batch(3)
    mask = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    usual, told = (how(model, {**batch, "pixel_mask": mask}) for how in (measure_step, forecast_step))
    assert operations(told) == operations(usual)
    assert kept(told) == kept(usual)
