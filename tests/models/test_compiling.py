"""Compiled layers against the same model as it is: numbers, what is saved for the backward, and how often is compiled.

Most tests compile with backends that keep PyTorch's own kernels (`aot_eager` traces the backward too), since writing
kernels takes long; `inductor` has tests of its own.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.graph import saved_tensors_hooks

from cornstarch import MultimodalModel
from cornstarch.models.multimodal_language_model import checkpointing as checkpointing_module
from cornstarch.models.multimodal_language_model import compiling
from tests import tiny
from tests.models.test_frozen_is_free import keeping
from tests.tiny import IMAGE, assert_near
from tests.zoo import making

REGIMES = ["all", "frozen encoder", "projector", "lora"]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(regime: str, dtype: torch.dtype = torch.float64, checkpointing: bool = False, **vision: Any) -> Any:
    """A model in training mode; what is frozen is at the beginning of the chain or in the middle of it."""
    lm = tiny.language_model(dtype=dtype)
    if regime == "lora":
        lm = get_peft_model(lm, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).to(dtype)
    model = tiny.model(tiny.encoder(dtype=dtype, **vision), lm, dtype, init_projector_type="mlp").train()
    if regime != "all":
        model.train({"vision": (False, True)}, llm_mode=regime == "frozen encoder" if regime != "lora" else None)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model


def compiled(model: Any, backend: Any = "aot_eager", **options: Any) -> Any:
    model.compile(backend=backend, **options)
    return model


def batch(length: int = 0, samples: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Samples with an image each, the last of them shorter than the others by 3 + `length`."""
    rows = [[*tiny.text(3 + length), *[IMAGE] * 5, *tiny.text(4, 6)]] * (samples - 1)
    given = tiny.padded([*rows, [*tiny.text(1, 7), *[IMAGE] * 5, *tiny.text(3, 8)]], "left")
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    return {**given, "labels": labels, "pixel_values": tiny.images(samples, dtype)}


def step(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients."""
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    assert_near(found[0], expected[0], tolerance, "loss")
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert_near(found[1][name], gradient, tolerance, name)


class Graphs:
    """A backend like `aot_eager` that keeps the graphs it is given.

    Attributes:
        forward: of each compiled frame.
        backward: of those that have one, in the order in which they first run.
    """

    def __init__(self) -> None:
        self.forward: list[torch.fx.GraphModule] = []
        self.backward: list[torch.fx.GraphModule] = []
        self.calls = aot_autograd(
            fw_compiler=self._keep(self.forward),
            bw_compiler=self._keep(self.backward),
            inference_compiler=self._keep(self.forward),
        )

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        return self.calls(graph, inputs, **options)

    @staticmethod
    def _keep(kept: list[torch.fx.GraphModule]) -> Any:
        def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
            kept.append(graph)
            return make_boxed_func(graph.forward)

        return keep


def products(graph: torch.fx.GraphModule) -> int:
    """How many matrix products with weights are in a graph."""
    return sum(node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) for node in graph.graph.nodes)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("regime", REGIMES)
def test_loss_and_gradients(regime: str, checkpointing: bool) -> None:
    """fp64, 1e-10: loss and every gradient. Of frozen weights no gradient is kept, nor is one computed.

    A layer of Llama has 7 linear layers: 7 products for the gradient that goes on, 7 for the weights'; with LoRA each
    has two more linear layers that train beside it. The first layer that is given no gradient to go on has less.
    """
    expected = step(made(regime), batch())
    graphs = Graphs()
    model = compiled(made(regime, checkpointing=checkpointing), graphs, dynamic=False)
    assert_same(step(model, batch()), expected, 1e-10)
    assert len(graphs.forward) == 2, "one for the layers of each part"
    of_encoder = 1 if regime == "all" else 0
    assert len(graphs.backward) == 1 + of_encoder
    assert products(graphs.backward[0]) == {"all": 14, "frozen encoder": 14, "projector": 7, "lora": 35}[regime]


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["projector", "lora"])
def test_inductor(regime: str) -> None:
    """fp32, 1e-5, with kernels that PyTorch writes, and another length behind the first."""
    plain, model = (made(regime, torch.float32) for _ in range(2))
    compiled(model, "inductor")
    for length in (0, 6):
        given = batch(length, dtype=torch.float32)
        assert_same(step(model, given), step(plain, given), 1e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_bfloat16_is_autocast(checkpointing: bool) -> None:
    """bf16 products: the loss of the plain model under autocast, within its rounding; weights and gradients fp32."""
    given = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = step(made("frozen encoder", torch.float32), given)
        loss, gradients = step(compiled(made("frozen encoder", torch.float32, checkpointing), dynamic=False), given)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_a_frozen_encoder_saves_nothing(checkpointing: bool) -> None:
    """0 bytes for the backward and no graph, also with input gradients asked for, as trainers do."""
    model = compiled(made("projector", checkpointing=checkpointing), dynamic=False)
    model.enable_input_require_grads()
    model.encoders["vision"].module.enable_input_require_grads()
    with keeping(model.encoders["vision"].module) as kept:
        step(model, batch())
    assert (kept.runs, kept.packed, kept.graph) == (1, 0, False)


def test_checkpoints_keep_the_input_of_each_layer() -> None:
    """Bytes saved by a step: those of the plain model with checkpointing, and less than without."""

    def saved(model: Any) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        tiny.ask(model)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            step(model, batch())
        return sum(sizes)

    plain = [saved(made("projector", checkpointing=checkpointing)) for checkpointing in (False, True)]
    found = saved(compiled(made("projector", checkpointing=True), dynamic=False))
    assert found <= plain[1] < plain[0]


# --- how often is compiled --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_number_of_graphs_is_bounded() -> None:
    """20 lengths in batches of one to four, then evaluation: no more graphs than kinds of batches.

    For the layers of the language model these are one sample or several, and with a mask or without (no padding); in
    evaluation they have a cache. For the encoder's: the first batch, one image, any number.
    """
    counter = CompileCounterWithBackend("eager")
    model = compiled(made("frozen encoder", torch.float32), counter)
    for length in range(20):
        step(model, batch(length, 1 + length % 4, torch.float32))
    trained = counter.frame_count
    assert trained <= 3 + 3
    model.eval()
    with torch.no_grad():
        for length in range(20):
            model(**batch(length, 1 + length % 4, torch.float32))
    assert counter.frame_count <= trained + 3
    model.train()
    step(model, batch(5, 3, torch.float32))
    assert counter.frame_count <= trained + 3


def test_questions_and_generation_compile_nothing() -> None:
    """What a language model is asked once, and layers with a cache, run as they are; the tokens are the same."""
    plain, counter = made("projector"), CompileCounterWithBackend("eager")
    model = compiled(made("projector"), counter, dynamic=False)
    given = batch()
    step(model, given)
    assert counter.frame_count == 2
    prompt = {name: value for name, value in given.items() if name != "labels"}
    expected = plain.eval().generate(**prompt, max_new_tokens=6, do_sample=False)
    assert model.eval().generate(**prompt, max_new_tokens=6, do_sample=False).tolist() == expected.tolist()
    assert counter.frame_count == 2
    ready = torch.ones(2, 1, *given["attention_mask"].shape[-1:] * 2, dtype=torch.bool).tril()
    with torch.no_grad():
        model(**{**prompt, "attention_mask": ready})
    assert counter.frame_count == 2, "nor is the question whether ready masks are heeded"
    model.train()
    assert_same(step(model, given), step(plain.train(), given), 1e-10)
    assert counter.frame_count == 2


def test_layers_of_one_structure_share_what_is_compiled() -> None:
    """Eight layers compile one graph; sixteen layers whose widths differ compile each, more than PyTorch's limit."""
    counter = CompileCounterWithBackend("eager")
    lm = tiny.language_model(num_hidden_layers=8)
    compiling.enable(lm, backend=counter)
    lm(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert counter.frame_count == 1
    stack = torch.nn.Sequential(torch.nn.ModuleList(_block(width) for width in range(2, 18)))
    compiling.enable(stack, backend=counter)
    for width, layer in zip(range(2, 18), stack[0], strict=True):
        layer(torch.ones(3, width))
    assert counter.frame_count == 17


def _block(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU())


# --- what stands around layers ----------------------------------------------------------------------------------------


def test_hidden_states_of_layers_are_captured() -> None:
    """Hooks on layers, by which transformers collects hidden states, run as they are: the same values.

    It puts hooks on modules inside of layers too, around which layers are compiled in three pieces, however many
    layers there are.
    """
    plain, model = (made("projector", num_hidden_layers=9) for _ in range(2))
    counter = CompileCounterWithBackend("eager")
    compiled(model, counter, dynamic=False)
    with torch.no_grad():
        found, expected = (
            m.encoders["vision"].module(pixel_values=tiny.images(2, torch.float64), output_hidden_states=True)
            for m in (model, plain)
        )
    assert counter.frame_count <= 3
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_near(one, other, 1e-10)


@pytest.mark.parametrize("first", ["compile", "checkpointing"])
def test_order_does_not_matter(first: str) -> None:
    """Compiled and checkpointed in either order, each taken back, with a forward of somebody else's below."""
    part = tiny.language_model()
    layer = part.model.layers[0]
    calls = []
    own = layer.forward
    layer.forward = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    other = layer.forward
    switches = [
        lambda: compiling.enable(part, backend="eager"),
        lambda: checkpointing_module.enable(part),
    ]
    for switch in switches if first == "compile" else switches[::-1]:
        switch()
    assert compiling.is_enabled(part)
    assert checkpointing_module.is_enabled(part)
    part(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits.sum().backward()
    assert calls
    undo = [compiling.disable, checkpointing_module.disable]
    for switch in undo if first == "compile" else undo[::-1]:
        switch(part)
    assert layer.forward is other
    assert "forward" not in vars(part.model.layers[1])
    assert not compiling.is_enabled(part)
    assert not checkpointing_module.is_enabled(part)


def test_the_model_is_saved_copied_and_gone_on_with(tmp_path: Path) -> None:
    """Names of weights, saved weights and a deep copy are those of the plain model; a copy trains by itself."""
    model, plain = compiled(made("lora"), "eager", dynamic=False), made("lora")
    assert list(model.state_dict()) == list(plain.state_dict())
    expected = step(model, batch())
    model.save_pretrained(tmp_path)
    loaded = compiled(MultimodalModel.from_pretrained(tmp_path).train(), "eager", dynamic=False)
    assert_same(step(loaded, batch()), expected, 1e-10)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(step(twin, batch()), expected, 1e-10)


def test_what_trains_may_change_afterwards() -> None:
    """Frozen and thawed after compiling: gradients of what trains now, and of nothing else."""
    model, plain = compiled(made("projector"), "eager", dynamic=False), made("projector")
    step(model, batch())
    for one in (model, plain):
        one.train({"vision": (True, True)}, llm_mode=True)
    assert_same(step(model, batch()), step(plain, batch()), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "gpt2", "mixtral"])
def test_other_language_models(family: str) -> None:
    """Learned positions, dropout that is a function, experts: loss and gradients, fp64, 1e-10."""
    plain, model = (
        tiny.model(lm=making.language_model(family), dtype=torch.float64).train({"vision": (False, True)})
        for _ in range(2)
    )
    compiled(model, "eager", dynamic=False)
    assert_same(step(model, batch()), step(plain, batch()), 1e-10)
