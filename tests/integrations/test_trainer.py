"""`transformers.Trainer` with its default arguments, as a user would start it."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel
from tests import tiny

# --- parts ------------------------------------------------------------------------------------------------------------

IMAGE = 200  # beyond every embedding table
FEATURES = 5
_CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def composed(peft: bool = False, dtype: torch.dtype = torch.float64, **changes: Any) -> MultimodalModel:
    torch.manual_seed(0)
    lm: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**_CONFIG, **changes}))
    if peft:
        lm = get_peft_model(lm, LoraConfig(r=2, init_lora_weights=False))
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
    model = MultimodalModel({"vision": ModalEncoderModule(vision)}, lm).to(dtype)
    model.set_modality_token_ids({"vision": IMAGE})
    return model


def samples(count: int = 4, dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Samples with an image each and different numbers of labels, so that means of means differ from the mean."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        text = torch.randint(3, 64, (8,), generator=generator).tolist()
        ids = text[:2] + [IMAGE] * FEATURES + text[2:]
        labels = [-100] * (7 + index) + ids[7 + index :]
        pixels = torch.randn(3, 8, 8, generator=generator, dtype=dtype)
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "pixel_values": pixels})
    return made


def joined(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def mean_loss(model: MultimodalModel, rows: list[dict[str, Any]]) -> Tensor:
    """The mean over all labelled positions of all samples, in one forward pass."""
    return model(**joined(rows)).loss


class _KeepsLosses(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.norms.append(logs["grad_norm"])


def trainer(model: MultimodalModel, folder: Path, data: Any = None, metrics: Any = None, **arguments: Any) -> Trainer:
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "learning_rate": 0.1,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "sgd",
        "use_cpu": True,
    }
    return Trainer(
        model,
        TrainingArguments(**{**defaults, **arguments}),
        train_dataset=samples() if data is None else data,
        eval_dataset=samples(2),
        compute_metrics=metrics,
        callbacks=[_KeepsLosses()],
    )


def kept(run: Trainer) -> _KeepsLosses:
    return next(entry for entry in run.callback_handler.callbacks if isinstance(entry, _KeepsLosses))


def weights(model: MultimodalModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=tolerance, atol=tolerance, msg=lambda t, n=name: n + t
        )


# --- training ---------------------------------------------------------------------------------------------------------


def test_default_arguments_keep_the_columns_of_encoders(tmp_path: Path) -> None:
    """A `datasets.Dataset` with a column nobody takes: `pixel_values` arrives, the other is dropped."""
    rows = samples(dtype=torch.float32)
    data = Dataset.from_list([{**row, "pixel_values": row["pixel_values"].tolist(), "caption": "x"} for row in rows])
    model = composed(dtype=torch.float32)
    seen: list[dict[str, Any]] = []
    model.encoders["vision"].module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    run = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=2, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True
        ),
        train_dataset=data,
    )
    assert run.args.remove_unused_columns
    result = run.train()
    assert len(seen) == 2
    assert seen[0]["pixel_values"].shape == (4, 3, 8, 8)
    assert 0 < result.training_loss < 20


@pytest.mark.parametrize("name", ["input_features", "image_grid_thw", "audio_attention_mask", "small_pixel_values"])
def test_columns_of_any_encoder_are_kept(name: str, tmp_path: Path) -> None:
    """Each encoder's arguments, under a plain name or with the key before it, are columns that Trainer keeps."""
    from transformers import Qwen2VLConfig, Wav2Vec2Config, Wav2Vec2Model, WhisperConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    lm = composed().language_model
    if name == "input_features":
        encoder: Any = WhisperEncoder(WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2))
    elif name == "image_grid_thw":
        config = Qwen2VLConfig(vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2})
        encoder = Qwen2VisionTransformerPretrainedModel(config.vision_config)
    elif name == "audio_attention_mask":
        encoder = Wav2Vec2Model(
            Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, conv_dim=(8,) * 7)
        )
    else:
        encoder = composed().encoders["vision"].module
    key = "small" if name == "small_pixel_values" else "audio" if "audio" in name else "vision"
    model = MultimodalModel({key: ModalEncoderModule(encoder)}, lm)
    run = trainer(model, tmp_path)
    run._set_signature_columns_if_needed()
    kept_names = {"input_ids", "attention_mask", "labels", "position_ids", name}
    assert kept_names <= set(run._signature_columns)
    assert "caption" not in run._signature_columns


@pytest.mark.parametrize("peft", [False, True], ids=["plain", "peft"])
def test_accumulation_changes_nothing(peft: bool, tmp_path: Path) -> None:
    """4 samples in 1, 2 and 4 passes: loss, norm and new weights equal one pass by hand, 1e-7 (the loss is fp32)."""
    reference = composed(peft).train()
    loss = mean_loss(reference, samples())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], 0.1).step()
    for steps in (1, 2, 4):
        model = composed(peft)
        run = trainer(model, tmp_path, gradient_accumulation_steps=steps, per_device_train_batch_size=4 // steps)
        run.train()
        assert kept(run).losses == [pytest.approx(loss.item(), rel=1e-6)]
        assert kept(run).norms == [pytest.approx(norm.item(), rel=1e-6)]
        assert_same(weights(model), weights(reference), tolerance=1e-7)


def test_several_epochs_bring_the_loss_down(tmp_path: Path) -> None:
    """Adam, 20 steps on four samples: the last loss is less than half the first."""
    arguments = {"max_steps": 20, "optim": "adamw_torch", "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    run = trainer(composed(dtype=torch.float32), tmp_path, samples(dtype=torch.float32), **arguments)
    run.train()
    assert kept(run).losses[-1] < kept(run).losses[0] / 2


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    """With weight decay: only the projector moves, the optimizer holds nothing else, frozen parts stay in eval mode."""
    model = composed(attention_dropout=0.5)
    model.train({"vision": (False, True)}, llm_mode=False)
    before = weights(model)
    tiny.ask(model)
    modes: list[bool] = []
    model.language_model.register_forward_hook(lambda module, *_: modes.append(module.training))
    run = trainer(model, tmp_path, max_steps=3, weight_decay=0.1, optim="adamw_torch")
    run.train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"vision_encoder.projector.projection.weight", "vision_encoder.projector.projection.bias"}
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == 2
    assert modes == [False] * 3


def test_peft_trains_adapters_and_projector(tmp_path: Path) -> None:
    """Adapters move, the base stays bit-equal, with the vision encoder frozen."""
    model = composed(peft=True)
    model.train({"vision": (False, True)})
    before = weights(model)
    trainer(model, tmp_path).train()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("lora_" in name or ".projector." in name for name in moved)
    assert {name for name in before if "lora_" in name} <= moved


_CHECKPOINTING = [
    field.name
    for field in dataclasses.fields(TrainingArguments)
    if field.name in ("gradient_checkpointing", "activation_checkpointing")
]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen-lm"])
@pytest.mark.parametrize("peft", [False, True], ids=["plain", "peft"])
@pytest.mark.parametrize("argument", _CHECKPOINTING)
def test_checkpointing_argument(argument: str, peft: bool, frozen: bool, tmp_path: Path) -> None:
    """Layers are recomputed in the backward pass, and the weights after two steps are those without it, 1e-10."""
    results = []
    for on in (False, True):
        model = composed(peft)
        if frozen:
            model.train({"vision": (False, True)}, llm_mode=False)
        tiny.ask(model)
        calls: list[int] = []
        layer = next(m for m in model.language_model.modules() if type(m).__name__ == "LlamaMLP")
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        trainer(model, tmp_path, max_steps=2, **{argument: on}).train()
        assert len(calls) == (4 if on else 2)
        results.append(weights(model))
    assert_same(*results)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation(tmp_path: Path) -> None:
    """`evaluate` gives the mean loss in evaluation mode, `predict` the logits, 1e-6 (Trainer averages in fp32)."""
    model = composed(attention_dropout=0.5)
    rows = [{**row, "labels": [-100] * 8 + row["input_ids"][8:]} for row in samples()]
    run = trainer(model, tmp_path, per_device_eval_batch_size=2)
    expected = model.eval()(**joined(rows))
    found = run.evaluate(rows)
    assert found["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-6)
    predicted = run.predict(rows)
    assert predicted.predictions.shape == (4, 13, 64)
    torch.testing.assert_close(torch.as_tensor(predicted.predictions), expected.logits.detach(), rtol=1e-6, atol=1e-6)


def smoothed(model: MultimodalModel, rows: list[dict[str, Any]], epsilon: float) -> Tensor:
    """The loss by hand: position t scores the label of t + 1, (1 - e) of it and e of the mean over the vocabulary."""
    inputs = joined(rows)
    labels = inputs.pop("labels")
    logits = model(**inputs).logits.log_softmax(-1)
    terms = [
        (1 - epsilon) * -logits[row, place - 1, labels[row, place]] + epsilon * -logits[row, place - 1].mean()
        for row in range(labels.shape[0])
        for place in range(1, labels.shape[1])
        if labels[row, place] != -100
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("peft", [False, True])
def test_label_smoothing(peft: bool, tmp_path: Path) -> None:
    """The loss Trainer smooths is that of a loop over labelled positions, in evaluation and in training; 1e-6."""
    model = composed(peft)
    rows = samples(2)
    run = trainer(model, tmp_path, rows, label_smoothing_factor=0.1)
    expected = smoothed(model.eval(), rows, 0.1).item()
    assert run.evaluate(rows)["eval_loss"] == pytest.approx(expected, rel=1e-6)
    with pytest.warns(UserWarning, match="labels did not reach the model"):
        run.train()
    assert kept(run).losses[0] == pytest.approx(expected, rel=1e-6)
    assert repr(model).startswith("MultimodalModel(")


def test_predicting_with_generate_pads_with_the_language_models_id(tmp_path: Path) -> None:
    """`Seq2SeqTrainer` asks the model's config for a padding id; rows are `generate`'s, padded with it."""
    model = composed(eos_token_id=None)
    arguments = Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, report_to="none", use_cpu=True)
    run = Seq2SeqTrainer(model, arguments)
    rows = samples(2)
    predicted = run.predict(rows, max_new_tokens=2, do_sample=False).predictions
    inputs = {name: value for name, value in joined(rows).items() if name != "labels"}
    expected = model.eval().generate(**inputs, max_new_tokens=2, do_sample=False)
    assert predicted[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (model.config.pad_token_id, copy.deepcopy(model.config).pad_token_id) == (0, 0)
    with pytest.raises(AttributeError, match="vocab_size"):
        _ = model.config.vocab_size


def test_evaluation_during_training(tmp_path: Path) -> None:
    """With `eval_strategy="steps"` training goes on in training mode, and metrics get logits."""
    shapes: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"one": 1.0}

    model = composed()
    modes: list[tuple[bool, bool]] = []
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    run = trainer(model, tmp_path, metrics=metrics, max_steps=2, eval_strategy="steps", eval_steps=1)
    run.train()
    assert shapes == [(2, 13, 64)] * 2
    assert modes == [(True, True), (False, False)] * 2


# --- saving and resuming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "tied", "peft", "tied-peft"])
def test_save_model_and_load(kind: str, tmp_path: Path) -> None:
    """`trainer.save_model` then `from_pretrained`: bit-equal logits, tied weights still tied, what is frozen kept."""
    model = composed(peft="peft" in kind, tie_word_embeddings="tied" in kind)
    model.train({"vision": (False, True)})
    run = trainer(model, tmp_path)
    run.train()
    run.save_model(tmp_path / "saved")
    loaded = MultimodalModel.from_pretrained(tmp_path / "saved")
    inputs = {name: tensor for name, tensor in joined(samples()).items() if name != "labels"}
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
    assert loaded.modality_token_ids == {"vision": IMAGE}
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    table, head = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert (table is head) == ("tied" in kind)


@pytest.mark.parametrize("kind", ["plain", "tied", "peft"])
def test_resume(kind: str, tmp_path: Path) -> None:
    """Two steps, a stop, two more from the checkpoint into a fresh model: the weights of four steps at once, 1e-10."""

    def fresh() -> MultimodalModel:
        model = composed(peft=kind == "peft", tie_word_embeddings=kind == "tied")
        return model.train({"vision": (False, True)})

    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = fresh()
    trainer(whole, tmp_path / "whole", **arguments).train()
    folder = tmp_path / "whole" / "checkpoint-2"
    resumed = fresh()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.mul_(1.5)  # everything must come from the checkpoint
    run = trainer(resumed, tmp_path / "resumed", **arguments)
    run.train(resume_from_checkpoint=str(folder))
    assert run.state.global_step == 4
    assert_same(weights(resumed), weights(whole))


def test_a_checkpoint_of_trainer_is_a_save_of_ours(tmp_path: Path) -> None:
    """`checkpoint-1` loads with `from_pretrained`, and holds no pickled weights."""
    model = composed(tie_word_embeddings=True)
    trainer(model, tmp_path, save_strategy="steps", save_steps=1).train()
    loaded = MultimodalModel.from_pretrained(tmp_path / "checkpoint-1")
    assert_same(weights(loaded), weights(model), tolerance=0)
    files = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert "model.safetensors" in files
    assert not files & {"pytorch_model.bin", "model.bin"}


def test_load_best_model_at_end(tmp_path: Path) -> None:
    """The weights of the best evaluation are put back at the end, also with tied weights."""
    model = composed(tie_word_embeddings=True)
    run = trainer(
        model,
        tmp_path,
        max_steps=2,
        greater_is_better=True,  # so that the first is the best
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-1")
    best = MultimodalModel.from_pretrained(run.state.best_model_checkpoint)
    assert_same(weights(model), weights(best))


def test_trainer_does_not_change_what_it_was_given(tmp_path: Path) -> None:
    """The model is the caller's own object after training, not wrapped, with submodules under their names."""
    model = composed()
    names = list(copy.deepcopy(model).state_dict())
    run = trainer(model, tmp_path)
    run.train()
    assert run.model is model
    assert list(model.state_dict()) == names
