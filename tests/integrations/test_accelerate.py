"""`accelerate`: prepare, backward, clip, unwrap, save and mixed precision."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel

# --- parts ------------------------------------------------------------------------------------------------------------

IMAGE = 200  # beyond every embedding table
FEATURES = 5


def composed(peft: bool = False, dtype: torch.dtype = torch.float32) -> MultimodalModel:
    torch.manual_seed(0)
    lm: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )
    if peft:
        lm = get_peft_model(lm, LoraConfig(r=2, init_lora_weights=False))
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
    model = MultimodalModel({"vision": ModalEncoderModule(vision)}, lm).to(dtype)
    model.set_modality_token_ids({"vision": IMAGE})
    return model.train()


def samples(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        text = torch.randint(3, 64, (8,), generator=generator)
        ids = torch.cat([text[:2], torch.full((FEATURES,), IMAGE), text[2:]])
        pixels = torch.randn(3, 8, 8, generator=generator)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "pixel_values": pixels})
    return made


def joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """`accelerate` keeps its settings in class attributes; none may leak from one test to another."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@pytest.fixture(params=[False, True], ids=["plain", "peft"])
def peft(request: pytest.FixtureRequest) -> bool:
    return request.param


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen-lm"])
def test_prepare_backward_step(frozen: bool, peft: bool) -> None:
    """Weights after a clipped step equal those of plain PyTorch, bit for bit."""
    reference, model = composed(peft), composed(peft)
    if frozen:
        for each in (reference, model):
            each.train({"vision": (False, True)}, llm_mode=False)
    loss = reference(**joined(samples())).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    optimizer_of(reference).step()

    accelerator = Accelerator(cpu=True)
    prepared, optimizer, loader = accelerator.prepare(
        model, optimizer_of(model), torch.utils.data.DataLoader(samples(), batch_size=4)
    )
    for batch in loader:
        found = prepared(**batch).loss
        accelerator.backward(found)
        accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(found, loss)
    for (name, first), second in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def test_unwrap_gives_the_model_back(peft: bool) -> None:
    """`unwrap_model` is the caller's own object, with its methods and live encoders."""
    model, accelerator = composed(peft), Accelerator(cpu=True)
    unwrapped = accelerator.unwrap_model(accelerator.prepare(model))
    assert unwrapped is model
    assert unwrapped.encoders["vision"] is model.vision_encoder
    unwrapped.train({"vision": (False, False)})
    assert not any(module.training for module in model.vision_encoder.module.modules())
    assert not any(module.training for module in model.vision_encoder.projector.modules())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(precision: str, peft: bool) -> None:
    """Loss within 2e-2 and gradients within 5e-2 of the largest of fp32's; weights, gradients and logits in fp32."""
    reference, model = composed(peft), composed(peft)
    batch = joined(samples())
    expected = reference(**batch).loss
    expected.backward()

    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    prepared = accelerator.prepare(model)
    output = prepared(**batch, output_logits=True)
    assert output.logits.dtype == torch.float32
    accelerator.backward(output.loss)
    torch.testing.assert_close(output.loss, expected, rtol=2e-2, atol=0)
    largest = max(p.grad.abs().max() for p in reference.parameters() if p.grad is not None)
    for (name, first), second in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None), name
        if first.grad is not None:
            assert first.grad.dtype == first.dtype == torch.float32
            assert (first.grad - second.grad).abs().max() <= 5e-2 * largest, name


def test_mixed_precision_with_parts_of_different_dtypes() -> None:
    """An fp32 encoder and a bf16 language model under bf16: the loss is finite and the projector gets a gradient."""
    model = composed()
    model.language_model.to(torch.bfloat16)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    loss = prepared(**joined(samples())).loss
    accelerator.backward(loss)
    assert torch.isfinite(loss)
    assert model.vision_encoder.projector.projection.weight.grad.abs().max() > 0


def test_generate_after_unwrap_under_mixed_precision(peft: bool) -> None:
    """The prepared model generates: the prompt comes back with four new tokens."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.unwrap_model(accelerator.prepare(composed(peft))).eval()
    batch = joined(samples(2))
    batch.pop("labels")
    found = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert found.shape == (2, 17)
    assert torch.equal(found[:, :13], batch["input_ids"])


def test_accumulate_divides_as_plain_pytorch_does() -> None:
    """Two microbatches under `accumulate` give the joined batch's gradient, 1e-6 of the largest (the loss is fp32)."""
    reference, model = composed(dtype=torch.float64), composed(dtype=torch.float64)
    reference(**joined(samples())).loss.backward()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, _ = accelerator.prepare(model, optimizer_of(model))
    for rows in (samples()[:2], samples()[2:]):
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**joined(rows)).loss)
    expected = [p.grad for p in reference.parameters() if p.grad is not None]
    largest = max(gradient.abs().max() for gradient in expected)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for first, second in zip(found, expected, strict=True):
        assert (first - second).abs().max() <= 1e-6 * largest


def test_save_state_and_load_state(peft: bool, tmp_path: Path) -> None:
    """What `save_state` wrote brings changed weights back, bit for bit."""
    model, accelerator = composed(peft), Accelerator(cpu=True)
    prepared, _ = accelerator.prepare(model, optimizer_of(model))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerator.save_state(str(tmp_path))
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.zero_()
    accelerator.load_state(str(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_save_pretrained_of_the_gathered_state(peft: bool, tmp_path: Path) -> None:
    """The usual last lines of a script, `save_pretrained` with the state that `accelerate` gathered: bit-equal loss."""
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(composed(peft))
    unwrapped = accelerator.unwrap_model(prepared)
    unwrapped.save_pretrained(
        tmp_path, is_main_process=accelerator.is_main_process, state_dict=accelerator.get_state_dict(prepared)
    )
    loaded = MultimodalModel.from_pretrained(tmp_path)
    batch = joined(samples())
    assert torch.equal(loaded(**batch).loss, unwrapped.eval()(**batch).loss)
