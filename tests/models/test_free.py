"""`assert_frozen_is_free`: it passes whatever wraps the model, and fails where a frozen part costs something."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from cornstarch import ArgumentError, FrozenCostError, MultimodalModel, assert_frozen_is_free
from tests import tiny
from tests.zoo import making
from tests.zoo.making import KEY

F32 = torch.float32


def frozen(language_model: str = "llama", *, llm: bool = True, encoder: str = "clip") -> MultimodalModel:
    """A frozen encoder; the language model trains, or is frozen and passes a gradient on to the projector."""
    made = making.compose(tiny.encoder(encoder, F32, drop=0.5), tiny.language_model(language_model, F32))
    return made.train({KEY: (False, True)}, llm_mode=llm)


def lora(model: MultimodalModel) -> MultimodalModel:
    model.language_model = get_peft_model(model.language_model, LoraConfig(r=2, lora_dropout=0.1))
    return model.train({KEY: (False, True)})


def everywhere(model: MultimodalModel) -> None:
    for part in (model, model.encoders[KEY].module, model.language_model):
        part.enable_input_require_grads()


def compiled(model: MultimodalModel) -> None:
    model.compile(backend="aot_eager")


AROUND: dict[str, Callable[[MultimodalModel], Any]] = {
    "nothing": lambda model: None,
    "checkpointing": lambda model: model.gradient_checkpointing_enable(),
    "adapters": lora,
    "adapters and checkpointing": lambda model: [lora(model), model.gradient_checkpointing_enable()],
    "input gradients": everywhere,
    "all of it": lambda model: [lora(model), model.gradient_checkpointing_enable(), everywhere(model)],
    "compiled": compiled,
    "compiled and checkpointing": lambda model: [compiled(model), model.gradient_checkpointing_enable()],
}


@pytest.mark.parametrize("llm", [True, False], ids=["language-model-trains", "language-model-frozen"])
@pytest.mark.parametrize(
    "around",
    [pytest.param(name, marks=[pytest.mark.slow] if " and " in name and "comp" in name else []) for name in AROUND],
)
def test_it_passes_whatever_is_around_the_parts(around: str, llm: bool) -> None:
    model = frozen(llm=llm)
    AROUND[around](model)
    model.zero_grad()
    assert_frozen_is_free(model, making.batch("clip", F32))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_passes_in_trainer(tmp_path: Path, checkpointing: bool) -> None:
    """In the middle of training, on the model as `Trainer` has it."""
    model, batch = frozen(), making.batch("clip", F32)
    looked: list[int] = []

    class Looks(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            plain = {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
            assert_frozen_is_free(model, plain)
            looked.append(1)
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return {name: value[index] for name, value in batch.items()}

    options = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        gradient_checkpointing=checkpointing, save_strategy="no",
    )  # fmt: skip
    Looks(model=model, args=options, train_dataset=Rows()).train()
    assert len(looked) == 2


# --- where it fails ---------------------------------------------------------------------------------------------------


def test_inputs_that_require_a_gradient_start_a_graph() -> None:
    model, batch = frozen(), making.batch("clip", F32)
    batch[f"{KEY}_pixel_values"].requires_grad_(True)
    with pytest.raises(
        FrozenCostError, match=r"media_encoder is frozen.* save 0 bytes.*found [\d,]+ bytes.*requires_grad"
    ):
        assert_frozen_is_free(model, batch)


def test_it_looks_where_gradients_are_off() -> None:
    """In `torch.no_grad`, in which nothing would be saved anyway."""
    model, batch = frozen(), making.batch("clip", F32)
    batch[f"{KEY}_pixel_values"].requires_grad_(True)
    with torch.no_grad(), pytest.raises(FrozenCostError, match="media_encoder is frozen"):
        assert_frozen_is_free(model, batch)


def test_a_part_in_training_mode_drops_out() -> None:
    """Somebody's hook puts the encoder into training mode whenever the model is."""
    model, batch = frozen(), making.batch("clip", F32)
    encoder = model.encoders[KEY].module
    plain = encoder.train
    encoder.train = lambda mode=True: plain(True)
    with pytest.raises(FrozenCostError, match=r"media_encoder is frozen, but .* is in training mode"):
        assert_frozen_is_free(model, batch)


class _Greedy(torch.autograd.Function):
    """A product that computes the gradient of its weight whether or not anybody asks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows @ weight.T

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        (gradient,) = given
        return gradient @ weight, gradient.flatten(0, -2).T @ rows.flatten(0, -2)


def test_gradients_of_frozen_weights_are_noticed() -> None:
    """In a frozen language model that passes a gradient on, one layer computes its weights' all the same."""
    model, batch = frozen(llm=False), making.batch("clip", F32)
    assert_frozen_is_free(model, batch)
    layer = model.language_model.model.layers[0].mlp.down_proj

    class Greedy(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, rows: Tensor) -> Tensor:
            return _Greedy.apply(rows, self.weight)  # type: ignore[no-any-return]

    model.language_model.model.layers[0].mlp.down_proj = Greedy(layer.weight)
    model.train()
    with pytest.raises(FrozenCostError, match=r"language_model is frozen and passes a gradient on.*took"):
        assert_frozen_is_free(model, batch)


def test_experts_of_transformers_that_compute_too_much_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products that transformers falls back to have a backward pass that computes the weights' gradient always."""
    model, batch = frozen("mixtral", llm=False), making.batch("clip", F32)
    assert_frozen_is_free(model, batch)
    monkeypatch.setattr("transformers.integrations.moe._can_use_grouped_mm", lambda *_: False)
    with pytest.raises(FrozenCostError, match="something computes gradients of its weights"):
        assert_frozen_is_free(model, batch)


def test_what_cannot_be_looked_at_is_said() -> None:
    model, batch = frozen(), making.batch("clip", F32)
    with pytest.raises(ArgumentError, match="needs labels"):
        assert_frozen_is_free(model, {name: value for name, value in batch.items() if name != "labels"})
    with pytest.raises(ArgumentError, match="no part of the model is frozen, of media_encoder"):
        assert_frozen_is_free(model.train(llm_mode=True), batch)
    with pytest.raises(ArgumentError, match="expected a MultimodalModel"):
        assert_frozen_is_free(nn.Linear(1, 1), batch)
