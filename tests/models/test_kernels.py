"""Liger's kernels: who gets them, what they may not touch, and whether they compute the same.

The kernels themselves run on a GPU, or under Triton's interpreter (TRITON_INTERPRET=1). What is around them is tested
with a package of the same shape whose "kernels" are PyTorch.
"""

import copy
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers.models.llama.modeling_llama as modeling_llama
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cornstarch import ArgumentError
from cornstarch.models.multimodal_language_model import kernels
from cornstarch.training.run import use_liger
from tests import tiny
from tests.tiny import assert_near

IDS = torch.tensor([[1, 2, 3, 4, 5]])


def _norm(self: Any, hidden: Tensor) -> Tensor:
    return (nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], None, 1e-6) * self.weight).to(hidden.dtype)


def _feed_forward(self: Any, hidden: Tensor) -> Tensor:
    return self.down_proj(nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _apply_to_llama(
    rope: bool = True, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True, model: Any = None
) -> None:
    """Changes the model as Liger does, and what all models share as well."""
    modeling_llama.LlamaRMSNorm = object  # type: ignore[misc, assignment]
    modeling_llama.nn.LayerNorm = object
    if rope or cross_entropy or fused_linear_cross_entropy:
        raise AssertionError("not asked for")
    for module in model.modules():
        if type(module).__name__ in ("LlamaRMSNorm", "LlamaMLP"):
            function = _norm if "Norm" in type(module).__name__ else _feed_forward
            module.__dict__["forward"] = types.MethodType(function, module)
            module.__dict__["_get_name"] = types.MethodType(lambda _: "Liger", module)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A package that knows Llama, and that a CPU can run."""
    module: Any = types.ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": _apply_to_llama}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        package = types.ModuleType(name)
        package.__spec__ = importlib.machinery.ModuleSpec(name, None)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for function in (_norm, _feed_forward):
        monkeypatch.setattr(function, "__module__", "liger_kernel.ops")
    monkeypatch.setattr(kernels, "_interprets", lambda: True)
    shared = modeling_llama.LlamaRMSNorm, nn.LayerNorm
    yield module
    assert (modeling_llama.LlamaRMSNorm, nn.LayerNorm) == shared, "what all models share is changed"


@pytest.mark.parametrize("peft", [False, True], ids=["plain", "lora"])
def test_loss_and_gradients_are_the_same(liger: Any, peft: bool) -> None:
    """fp32, 1e-5, with head and loss on labelled rows; wrapped by PEFT too; then put back."""
    found = []
    for replaced in (False, True):
        lm = tiny.language_model()
        lm = get_peft_model(lm, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)) if peft else lm
        model = tiny.model(lm=lm).train()
        if replaced:
            use_liger(model, True)
            names = {type(module).__name__ for module in kernels.replaced(lm).values()}
            assert names == {"LlamaRMSNorm", "LlamaMLP"}
        loss = model(**tiny.vision_batch()).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        assert list(model.state_dict()) == list(tiny.model(lm=copy.deepcopy(lm)).state_dict())
    kernels.disable(lm)
    assert not kernels.is_enabled(lm)
    assert_near(found[1][0], found[0][0], 1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert_near(found[1][1][name], gradient, 1e-5, name)


def test_a_kernel_that_computes_something_else_is_not_used(liger: Any) -> None:
    """Liger puts SwiGLU into a Llama of another activation: that stays plain, the norms do not."""
    lm = tiny.language_model(hidden_act="gelu")
    kept = kernels.enable(lm)
    assert list(kept) == ["LlamaMLP"]
    assert "is off by" in kept["LlamaMLP"]
    assert {type(module).__name__ for module in kernels.replaced(lm).values()} == {"LlamaRMSNorm"}


def test_a_kernel_that_fails_is_not_used(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel runs, the error says so, and the model is as before."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such GPU")

    lm = tiny.language_model()
    before = lm(input_ids=IDS).logits
    monkeypatch.setattr(kernels, "_output_and_gradient", fail)
    with pytest.raises(ArgumentError, match=r"LlamaForCausalLM: LlamaMLP: its kernel fails .*no such GPU"):
        kernels.enable(lm)
    assert lm(input_ids=IDS).logits.equal(before)
    liger.MODEL_TYPE_TO_APPLY_LIGER_FN["llama"] = lambda model: fail()
    with pytest.raises(ArgumentError, match="no Liger kernels in LlamaForCausalLM: no such GPU"):
        kernels.enable(lm)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package; true is an error that says it, left out is nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = tiny.model()
    with pytest.raises(ArgumentError, match=r"training.liger: .*pip install liger-kernel"):
        use_liger(model, True)
    use_liger(model, None)
    use_liger(model, False)
    assert not kernels.is_enabled(model)


def test_devices_and_types(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, a CPU has none; true is an error for a type that Liger does not know; encoders need not be known."""
    model = tiny.model()
    use_liger(model, None)
    assert not kernels.is_enabled(model)
    with pytest.raises(ArgumentError, match="Liger knows no model of type 'gpt2'"):
        use_liger(tiny.model(lm=tiny.language_model("gpt2")), True)
    monkeypatch.setattr(kernels, "_interprets", lambda: False)
    with pytest.raises(ArgumentError, match="its kernels run on a GPU, and the model is on cpu"):
        use_liger(model, True)


def test_copies_for_counting_are_plain(liger: Any) -> None:
    """A copy has kernels of its own, which act on its weights."""
    lm = tiny.language_model()
    kernels.enable(lm)
    twin = copy.deepcopy(lm)
    expected = lm(input_ids=IDS).logits
    for parameter in lm.parameters():
        parameter.data.zero_()
    assert_near(twin(input_ids=IDS).logits, expected, 1e-5)


def _runs_kernels() -> bool:
    if importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or kernels._interprets()


@pytest.mark.skipif(not _runs_kernels(), reason="needs liger-kernel, and a CUDA device or TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_errors_of_the_kernels(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float32: at most twice the error of the plain module in the same dtype.

    Triton's interpreter fails on some kernels that GPUs run; there, those that run are compared.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter computes with NumPy, which has no bfloat16")
    if device == "cpu":
        _let_kernels_have_numbers(monkeypatch)
    lm = tiny.language_model(family, dtype).to(device)
    kept = kernels.enable(lm)
    assert not kept or (device == "cpu" and "its kernel fails" in " ".join(kept.values()))
    for name, module in kernels.replaced(lm).items():
        found, allowed = kernels.errors(module)
        assert found <= allowed, name


def _let_kernels_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter gives kernels a float as Python's, compiled kernels as a scalar with a dtype."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    own = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return own(value)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
