"""A language model in fewer bits: it trains through adapters, keeps its gradient, and is saved with whole weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cornstarch import (
    ArgumentError,
    Callback,
    MultimodalModel,
    build_model,
    byte_tokenizer,
    load_run,
    parse_config,
    part_rows,
    read_metrics,
    train,
)
from cornstarch.models.multimodal_language_model import quantized
from tests.training.test_run import DIGITS

bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="the optional package bitsandbytes has no build for this system"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model and its tokenizer, as on the hub."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=259, pad_token_id=256, bos_token_id=257, eos_token_id=258, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(base: Path, folder: Path, bits: int, *overrides: str) -> Any:
    words = [
        "--run.folder", str(folder), "--training.steps", "6", "--training.batch_size", "6", "--evaluation.every", "3",
        "--evaluation.samples", "6", "--model.language_model", f"{{path: {base}, quantization: {{bits: {bits}}}}}",
        "--trains.vision_encoder", "frozen", "--trains.language_model", "{mode: lora, lora: {r: 4}}",
    ]  # fmt: skip
    return parse_config(DIGITS.read_text(), [*words, *overrides])


def layer_of(model: MultimodalModel) -> Any:
    return model.language_model.base_model.model.model.layers[0].mlp.up_proj


@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_of_qlora(base: Path, tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss falls, only adapters and the projector train, and what is saved answers as what was trained (1e-4)."""
    result = train(config(base, tmp_path / "run", bits, "--training.steps", "20"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]
    assert [row["mode"] for row in part_rows(result.model)] == ["frozen", "full", "lora"]
    assert "uint8" not in capsys.readouterr().out
    assert type(layer_of(result.model).base_layer.weight).__name__ == {4: "Params4bit", 8: "Int8Params"}[bits]
    loaded, _ = load_run(tmp_path / "run")
    assert not quantized.is_quantized(loaded)
    assert layer_of(loaded).base_layer.weight.dtype is torch.float32
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    found, expected = loaded(**inputs).logits, result.model(**inputs).logits
    tolerance = 1e-4 if bits == 4 else 3e-2  # 8-bit products round activations as well
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_saved_as_they_compute(base: Path, tmp_path: Path, bits: int) -> None:
    """Whole weights are bitsandbytes' own dequantised ones, near the original, also after the model has generated."""
    model, _ = build_model(config(base, tmp_path, bits).model)
    model.eval().generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2)
    state = quantized.plain_state_dict(model)
    original = LlamaForCausalLM.from_pretrained(base).state_dict()
    names = {name.removeprefix("language_model.") for name in state if name.startswith("language_model.")}
    assert names == set(original)
    for name, value in original.items():
        found = state[f"language_model.{name}"]
        assert found.dtype is torch.float32
        assert (found - value).abs().max() <= 0.15 * value.abs().max(), name


def test_the_gradient_passes_after_an_answer(base: Path, tmp_path: Path) -> None:
    """Of a frozen 4-bit model, before and after it generates: the same gradient for the projector, bit for bit."""
    model, _ = build_model(config(base, tmp_path, 4).model)
    model.train({"vision": (False, True)}, llm_mode=False)
    inputs = {"input_ids": torch.tensor([[259] * 4 + [5, 6, 7]]), "pixel_values": torch.randn(1, 3, 8, 8)}
    labels = torch.tensor([[-100] * 5 + [6, 7]])
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        gradients.append(model.vision_encoder.projector.projection.weight.grad.clone())
        model.generate(**inputs, max_new_tokens=2)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_it_goes_on_in_fewer_bits(base: Path, tmp_path: Path) -> None:
    """Resumed, the base weights are quantised again, and losses are those of the run that was not stopped (4 bits)."""
    words = ["--evaluation.every", "100", "--run.checkpoint_every", "3"]
    whole = train(config(base, tmp_path / "whole", 4, *words))

    class StopAt(Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 3:
                loop.stop("enough")

    train(config(base, tmp_path / "pieces", 4, *words), callbacks=[StopAt()])
    resumed = train(config(base, tmp_path / "pieces", 4, *words, "--run.resume", "true"))
    assert type(layer_of(resumed.model).base_layer.weight).__name__ == "Params4bit"
    found, expected = (
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line][3:]
        for name in ("pieces", "whole")
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert part_rows(resumed.model) == part_rows(whole.model)


def test_the_table_counts_weights(base: Path, tmp_path: Path) -> None:
    """Not the numbers that several of 4 bits lie in."""
    model, _ = build_model(config(base, tmp_path, 4).model)
    expected = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(base).parameters())
    assert part_rows(model)[-1]["parameters"] == expected


def test_what_cannot_be(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="a quantised language model trains as lora or is frozen"):
        config(base, tmp_path, 4, "--trains.language_model", "full")
    random = "{config: {model_type: llama}, tokenizer: bytes, quantization: {bits: 4}}"
    with pytest.raises(ArgumentError, match="random weights are not quantised"):
        build_model(config(base, tmp_path, 4, "--model.language_model", random).model)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        build_model(config(base, tmp_path, 4).model)
