"""Gradients of chunks of logits, taken in the forward pass: against the plain forward's backward pass."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cornstarch.models.multimodal_language_model import freezing, labelled_head
from tests.models.test_labelled_head import Rows, assert_same, batch, gradients, language_model
from tests.tiny import assert_near
from tests.zoo import making
from tests.zoo.table import LANGUAGE_MODELS

CHUNKS = 200  # logits: two rows of 96


def in_chunks(part: Any, given: dict[str, Any]) -> Any:
    return labelled_head.run(part, given, CHUNKS)


def regimes(part: nn.Module) -> Iterator[str]:
    """The head frozen, then all else."""
    head = set(freezing.unwrap(part).get_output_embeddings().parameters())  # type: ignore[operator]
    for frozen in ("head", "body"):
        for parameter in part.parameters():
            parameter.requires_grad_((parameter in head) == (frozen == "body"))
        yield frozen


def scaled(part: nn.Module, given: dict[str, Any], loss: Tensor) -> dict[str, Tensor]:
    """Gradients of two backward passes through one graph, and of a third through another."""
    part.zero_grad()
    given["inputs_embeds"].grad = None
    (loss * 0.5).backward(retain_graph=True)
    (loss * 0.25).backward()  # powers of two: parts in float32 (Mamba) round the same
    (part(**given).loss / 7).backward()
    found = {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}
    return {**found, "inputs_embeds": given["inputs_embeds"].grad.clone()}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_frozen_head_or_body_and_scaled_losses(name: str) -> None:
    """fp64, 1e-10 (experts 1e-7): what GradScaler, a retained graph and accumulation do to the loss."""
    part = language_model(name)
    given = batch(part)
    row = LANGUAGE_MODELS[name]
    tolerance = max(row.tolerance, 1e-7 if "experts" in row.traits else 1e-10)
    for regime in regimes(part):
        expected = scaled(part, given, part(**given).loss)
        found = scaled(part, given, in_chunks(part, given).loss)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_near(found[key], value, tolerance, f"{regime}: {key}")


def test_the_head_is_computed_once_and_logits_of_one_chunk_are_there() -> None:
    """Three chunks of two, two and one row, each with a row more; none in the backward pass."""
    part = language_model("llama")
    given = batch(part)
    in_chunks(part, given)  # which asks first
    rows, made = Rows(part), list[weakref.ref[Tensor]]()

    def watch(_: nn.Module, __: Any, logits: Tensor) -> None:
        assert all(before() is None for before in made)
        made.append(weakref.ref(logits))

    part.lm_head.register_forward_hook(watch)
    output = in_chunks(part, given)
    assert made[-1]() is None
    output.loss.backward()
    assert rows.seen == [3, 3, 2]


def test_hooks_of_parameters_are_called_once_with_the_whole_gradient() -> None:
    """Also those that wait for a gradient to be there, as wrappers that share gradients do."""
    part = language_model("gpt2-tied")
    given = batch(part)
    seen: dict[str, int] = {}
    for name, parameter in part.named_parameters():
        parameter.register_hook(lambda gradient: gradient * gradient.abs().sum())
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.__setitem__(name, seen.get(name, 0) + 1))
    assert_same(part, given, CHUNKS)
    assert set(seen.values()) == {2}


def test_a_loss_can_be_differentiated_once() -> None:
    """A second backward pass needs a retained graph, and there are no gradients of gradients; both say so."""
    part = language_model("llama")
    given = batch(part)
    loss = in_chunks(part, given).loss
    loss.backward()
    with pytest.raises(RuntimeError, match="second"):
        loss.backward()
    weight = part.lm_head.weight
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(in_chunks(part, given).loss, weight, create_graph=True)


@pytest.mark.parametrize("how", ["no_grad", "frozen"])
def test_without_gradients_there_is_only_a_loss(how: str) -> None:
    part = language_model("llama")
    given = batch(part)
    given["inputs_embeds"] = given["inputs_embeds"].detach()
    part.requires_grad_(how == "no_grad")
    expected = part(**given).loss
    with torch.set_grad_enabled(how != "no_grad"):
        loss = in_chunks(part, given).loss
    assert not loss.requires_grad
    assert_near(loss, expected.detach(), 1e-10)


def test_only_the_head_trains_and_nothing_below_has_a_graph() -> None:
    part = language_model("llama").requires_grad_(False)
    part.lm_head.weight.requires_grad_(True)
    given = batch(part)
    given["inputs_embeds"] = given["inputs_embeds"].detach()
    (expected,) = torch.autograd.grad(part(**given).loss, part.lm_head.weight)
    (found,) = torch.autograd.grad(in_chunks(part, given).loss, part.lm_head.weight)
    assert_near(found, expected, 1e-10)


def test_what_else_is_returned_stays_differentiable() -> None:
    """Hidden states, and the balance of experts, which the loss holds already."""
    part = language_model("mixtral")
    given = {**batch(part), "output_router_logits": True, "output_hidden_states": True}
    plain = part(**given)
    expected = gradients(part, given, plain.loss + plain.aux_loss + plain.hidden_states[-1].square().sum())
    output = in_chunks(part, given)
    found = gradients(part, given, output.loss + output.aux_loss + output.hidden_states[-1].square().sum())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(found[name], value, 1e-7, name)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-tied", "mixtral"])
def test_a_tied_weight_below_adds_up(name: str) -> None:
    """The embeddings of ids are in the graph, so the head's weight is reached through the body as well."""
    part = language_model(name)
    given = batch(part)
    ids = torch.randint(3, 90, given["labels"].shape)
    leaf = given["inputs_embeds"]

    def loss_by(run: Any) -> Tensor:
        return run({**given, "inputs_embeds": part.get_input_embeddings()(ids) + leaf}).loss  # type: ignore[no-any-return]

    expected = gradients(part, given, loss_by(lambda given: part(**given)))
    found = gradients(part, given, loss_by(lambda given: in_chunks(part, given)))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_near(found[key], value, 1e-7 if name == "mixtral" else 1e-10, key)


class _Closed:
    """Hidden states inside of something that nobody can look into."""

    def __init__(self, output: Any) -> None:
        self.last_hidden_state, self.cache, self.past_key_values = output.last_hidden_state, None, None
        self.hidden_states = self.attentions = None


def test_hidden_states_that_are_not_found_are_taken_in_one_piece() -> None:
    part = language_model("llama")
    given = batch(part)
    part.model.register_forward_hook(lambda _, __, output: _Closed(output))
    assert_same(part, given, CHUNKS)
    rows = Rows(part)
    in_chunks(part, given)
    assert rows.seen == [6]


def test_adapters_checkpoints_and_accumulation() -> None:
    """Adapters on body and head, checkpointed layers; two micro-batches add up."""
    adapters = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    part = get_peft_model(language_model("llama"), adapters).train()
    part.base_model.model.gradient_checkpointing_enable()
    given = batch(part)
    expected = gradients(part, given, part(**given).loss)
    part.zero_grad()
    for _ in range(2):
        (in_chunks(part, given).loss * 0.5).backward()
    trained = {name: p.grad for name, p in part.named_parameters() if p.requires_grad}
    assert len(trained) > 2
    for name, value in trained.items():
        assert_near(value, expected[name], 1e-10, name)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_half_precision_is_no_further_from_double_than_the_plain_forward(how: str) -> None:
    """Of the head's gradient, over 64 chunks of a row; sums are in float32, so they are rounded once."""
    torch.manual_seed(0)
    exact = making.language_model("llama", torch.float64).train()
    rows = {"inputs_embeds": torch.randn(4, 33, exact.config.hidden_size), "labels": torch.randint(0, 96, (4, 33))}
    kind = torch.bfloat16 if how == "bfloat16" else torch.float32
    part = making.language_model("llama", kind).train()
    exact.load_state_dict(part.state_dict())

    def gradient(model: Any, dtype: torch.dtype, most_logits: int | None) -> Tensor:
        given = {**rows, "inputs_embeds": rows["inputs_embeds"].to(dtype)}
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast" and model is part):
            output = model(**given) if most_logits is None else labelled_head.run(model, given, most_logits)
        (found,) = torch.autograd.grad(output.loss, model.lm_head.weight)
        return found.double()

    expected = gradient(exact, torch.float64, None)
    apart = [(gradient(part, kind, most) - expected).norm() / expected.norm() for most in (None, 96 * 2)]
    assert apart[1] <= 1.1 * apart[0]


def test_float16_is_computed_again_with_the_scale_of_the_loss() -> None:
    """Small gradients would be zero without it; so they are taken in the backward pass, as plain ones are."""
    part = making.language_model("llama", torch.float16).train()
    given = {**batch(part), "num_items_in_batch": torch.tensor(10**7)}
    given["inputs_embeds"] = given["inputs_embeds"].detach().half().requires_grad_()
    expected = gradients(part, given, part(**given).loss * 2.0**20)
    found = gradients(part, given, in_chunks(part, given).loss * 2.0**20)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.02, atol=0.02 * float(value.abs().max()))
