"""How an optimizer's update is computed: fused where that can be, and the same numbers as PyTorch's plain one."""

import copy
from typing import Any

import pytest
import torch

from cornstarch import parameter_groups
from cornstarch.training import OptimizerConfig, make_optimizer
from tests.training import toy


def after_steps(name: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The optimizer and all weights after three steps with decay, on gradients from a generator."""
    model, _ = toy.model_and_collator()
    config = OptimizerConfig(name=name, learning_rate=1e-2, weight_decay=0.1, arguments=arguments)
    optimizer = make_optimizer(parameter_groups(model, config), config)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer, model.state_dict()


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_is_fused_and_computes_the_same(name: str) -> None:
    """Three steps against PyTorch's update tensor by tensor, float32: 1e-5."""
    fused, found = after_steps(name, {})
    plain, expected = after_steps(name, {"foreach": False})
    assert all(group["fused"] for group in fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("arguments", [{"foreach": True}, {"fused": False}, {"differentiable": False}])
def test_another_implementation_is_the_callers_choice(arguments: dict[str, Any]) -> None:
    """What the arguments say is not overruled."""
    optimizer, _ = after_steps("AdamW", arguments)
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_devices_without_a_fused_update_have_the_plain_one() -> None:
    """Parameters on the meta device."""
    config = OptimizerConfig()
    group = {"params": [torch.nn.Parameter(torch.ones(2, device="meta"))], "lr": 0.1}
    assert not any(found["fused"] for found in make_optimizer([group], config).param_groups)


def test_parameters_that_a_fused_update_refuses_have_the_plain_one() -> None:
    """Complex ones, beside ordinary ones."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2, dtype=dtype))]} for dtype in (torch.float32, torch.cfloat)]
    optimizer = make_optimizer(groups, OptimizerConfig())
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_a_plain_optimizers_state_goes_on_in_a_fused_one() -> None:
    """Three steps taken plainly, state handed on, one more step either way: 1e-5."""
    optimizer, _ = after_steps("AdamW", {"foreach": False})
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    twins = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    rest = iter(twins)
    groups = [{"params": [next(rest) for _ in range(size)], "lr": 1e-2} for size in sizes]
    other = make_optimizer(groups, OptimizerConfig(learning_rate=1e-2))
    state = copy.deepcopy(optimizer.state_dict())
    for mine, theirs in zip(state["param_groups"], other.state_dict()["param_groups"], strict=True):
        mine.update({name: theirs[name] for name in ("fused", "foreach")})
    other.load_state_dict(state)
    for weight, twin in zip(weights, twins, strict=True):
        weight.grad = torch.ones_like(weight)
        twin.grad = torch.ones_like(twin)
    optimizer.step()
    other.step()
    assert all(group["fused"] for group in other.param_groups)
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(twin, weight, rtol=1e-5, atol=1e-5)
