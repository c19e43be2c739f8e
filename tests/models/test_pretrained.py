"""Saving and loading: the same model comes back, and no interruption or damage goes unnoticed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTModel,
)

from cornstarch import (
    CheckpointError,
    MissingFileError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProjector,
    OutputHiddenStates,
    SelectFeatures,
)
from cornstarch.models.multimodal_language_model import pretrained
from tests import parts


def qwen(tie: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=parts.VOCABULARY,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tie,
    )
    return Qwen2ForCausalLM(config)


def lora(part: nn.Module, targets: list[str], **kwargs: object) -> nn.Module:
    torch.manual_seed(6)
    wrapped = get_peft_model(part, LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **kwargs))
    return wrapped


def with_peft() -> MultimodalModel:
    encoder = ModalEncoderModule(lora(parts.clip(), ["q_proj"]))
    return MultimodalModel({"vision": encoder}, lora(qwen(), ["v_proj"], task_type="CAUSAL_LM"))


def adapters_inside() -> MultimodalModel:
    model = MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, qwen())
    parts.add_adapter(model.language_model, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
    return model


def two_adapters() -> MultimodalModel:
    language_model = lora(qwen(), ["v_proj"], task_type="CAUSAL_LM")
    language_model.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    language_model.set_adapter("second")
    return MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, language_model)


def with_callbacks() -> MultimodalModel:
    return parts.vision_model(
        preprocess_callback=OutputHiddenStates(),
        postprocess_module_callback=SelectFeatures(layers=(-2,), skip_first=1),
    )


def in_two_dtypes() -> MultimodalModel:
    language_model = Qwen2ForCausalLM._from_config(qwen().config, dtype=torch.bfloat16)
    return MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, language_model, init_projector_type="mlp")


def with_gpt2() -> MultimodalModel:
    torch.manual_seed(7)
    config = GPT2Config(vocab_size=parts.VOCABULARY, n_embd=24, n_layer=2, n_head=2, n_positions=64)
    return MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, GPT2LMHeadModel(config))


def partly_trained() -> MultimodalModel:
    model = parts.vision_model()
    model.train({"vision": (False, True)}, llm_mode=False)
    model.language_model.model.layers[1].requires_grad_(True)
    return model


def of_two_modalities() -> MultimodalModel:
    encoders = {"vision": ModalEncoderModule(parts.clip()), "audio": ModalEncoderModule(parts.whisper())}
    return MultimodalModel(encoders, parts.llama(), init_projector_type="mlp", init_activation="silu")


def without_a_pooler() -> MultimodalModel:
    tower = ViTModel(ViTConfig(**parts.SMALL, image_size=16, patch_size=8), add_pooling_layer=False)
    return MultimodalModel({"vision": ModalEncoderModule(tower)}, parts.llama())


MODELS: dict[str, Callable[[], MultimodalModel]] = {
    "plain": parts.vision_model,
    "tied": lambda: MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, qwen()),
    "peft": with_peft,
    "two-adapters": two_adapters,
    "adapters-inside": adapters_inside,
    "callbacks": with_callbacks,
    "two-dtypes": in_two_dtypes,
    "gpt2": with_gpt2,
    "partly-trained": partly_trained,
    "two-modalities": of_two_modalities,
    "without-a-pooler": without_a_pooler,
    "text-only": lambda: MultimodalModel({}, parts.llama()),
}


def batch(model: MultimodalModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 250, (2, 8))
    if "vision" not in model.encoders:
        return {"input_ids": ids}
    model.set_modality_token_ids({"vision": 300})
    count = 4 if model.vision_encoder.preprocess_callback is not None else 5
    ids[:, 1 : 1 + count] = 300
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}


def logits(model: MultimodalModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch(model)).logits


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_comes_back(tmp_path: Path, name: str, max_shard_size: str) -> None:
    """Bit-equal weights and logits, dtypes, ties, what trains, token ids, adapters; evaluation mode."""
    model = MODELS[name]()
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    loaded = MultimodalModel.from_pretrained(tmp_path / "saved")
    state, other = model.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) and state[key].dtype == other[key].dtype for key in state)
    assert torch.equal(logits(loaded), expected)
    assert loaded.modality_token_ids == model.modality_token_ids
    assert not any(module.training for module in loaded.modules())
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in loaded.named_parameters()} == flags
    assert any(file.suffix == ".json" and "index" in file.name for file in (tmp_path / "saved").iterdir()) == (
        max_shard_size == "10KB"
    )


def test_tied_weights_are_saved_once_and_tied_again(tmp_path: Path) -> None:
    """By config, and by the user's own hand."""
    model = MODELS["tied"]()
    layers = model.language_model.model.layers
    layers[1].mlp.gate_proj.weight = layers[0].mlp.gate_proj.weight
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert sum("embed_tokens" in name or "lm_head" in name for name in names) == 1
    loaded = MultimodalModel.from_pretrained(tmp_path).language_model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.model.layers[1].mlp.gate_proj.weight is loaded.model.layers[0].mlp.gate_proj.weight


def test_base_and_adapters_are_both_there(tmp_path: Path) -> None:
    """Not merged: base weights as they were, PEFT's own description beside each part; training goes on from there."""
    with_peft().save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any("base_layer.weight" in name for name in names)
    assert any("lora_A" in name for name in names)
    for part, target in (("vision_encoder", "q_proj"), ("language_model", "v_proj")):
        config = json.loads((tmp_path / part / "adapters" / "default" / "adapter_config.json").read_text())
        assert config["target_modules"] == [target]
    loaded = MultimodalModel.from_pretrained(tmp_path)
    loaded.train(llm_mode=False)
    loaded.train(llm_mode=True)
    trained = [name for name, parameter in loaded.language_model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_dtype_and_device(tmp_path: Path) -> None:
    """One dtype for all weights; tables that models compute in full precision stay so."""
    parts.vision_model().save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path, dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert loaded.dtype == torch.bfloat16
    assert MultimodalModel.from_pretrained(tmp_path, dtype=torch.float64).dtype == torch.float64


def test_generation_config_is_kept(tmp_path: Path) -> None:
    model = parts.vision_model()
    model.generation_config.max_new_tokens = 7
    model.generation_config.eos_token_id = [3, 4]
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.language_model.generation_config.eos_token_id == [3, 4]


# --- the caller's own -------------------------------------------------------------------------------------------------


def first_rows(inputs: dict, output: object) -> torch.Tensor:
    return output.last_hidden_state[:, :5]


def same(inputs: dict) -> dict:
    return inputs


def own_parts() -> dict[str, object]:
    torch.manual_seed(8)
    return {
        "sensor_encoder.module": parts.PerWordEncoder(),
        "vision_encoder.projector": MultimodalProjector(None, nn.Linear(16, 24)),
        "vision_encoder.postprocess_module_callback": first_rows,
        "preprocess_llm_callback": same,
    }


def test_the_callers_own_parts_must_be_given_again(tmp_path: Path) -> None:
    """An error names all of them at once; given again, the weights of those that have any are loaded into them."""
    own = own_parts()
    vision = ModalEncoderModule(parts.clip(), own["vision_encoder.projector"], postprocess_module_callback=first_rows)
    sensor = ModalEncoderModule(own["sensor_encoder.module"])
    model = MultimodalModel({"vision": vision, "sensor": sensor}, parts.llama(), preprocess_llm_callback=same)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        MultimodalModel.from_pretrained(tmp_path)
    assert all(name in str(caught.value) for name in own)
    fresh = own_parts()
    nn.init.zeros_(fresh["vision_encoder.projector"].projection.weight)
    loaded = MultimodalModel.from_pretrained(tmp_path, custom_objects=fresh)
    assert torch.equal(logits(loaded), expected)
    assert loaded.vision_encoder.postprocess_module_callback is first_rows


def test_no_code_that_a_file_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that names a class outside transformers, or something in it that is no model."""
    (tmp_path / "evil_module.py").write_text("Model = None")
    monkeypatch.syspath_prepend(tmp_path)
    parts.vision_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for path in ("evil_module.Model", "os.system", "transformers.utils.hub.cached_file", "transformers.os.system"):
        config["language_model"]["class"] = path
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="language_model"):
            MultimodalModel.from_pretrained(tmp_path)
    assert "evil_module" not in sys.modules


def test_no_file_outside_the_folder_is_read(tmp_path: Path) -> None:
    """A weight file elsewhere, and a modality key that is a path."""
    folder = tmp_path / "saved"
    parts.vision_model().save_pretrained(folder, max_shard_size="10KB")
    config = json.loads((folder / "config.json").read_text())
    config["weight_files"][0] = "../elsewhere.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="elsewhere"):
        MultimodalModel.from_pretrained(folder)
    config["encoders"]["../../vision"] = config["encoders"].pop("vision")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no identifier"):
        MultimodalModel.from_pretrained(folder)


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 1
        return output
"""


def test_remote_code_only_when_trusted(tmp_path: Path) -> None:
    """Code that came with a language model is saved with it, and run only with trust_remote_code=True."""
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    config = parts.llama().config.to_dict() | {
        "model_type": "own-llama",
        "auto_map": {"AutoConfig": "own_modeling.OwnConfig", "AutoModelForCausalLM": "own_modeling.OwnForCausalLM"},
        "architectures": ["OwnForCausalLM"],
    }
    source.mkdir()
    (source / "own_modeling.py").write_text(REMOTE)
    (source / "config.json").write_text(json.dumps(config))
    save_file(parts.llama().state_dict(), source / "model.safetensors", metadata={"format": "pt"})
    language_model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    model = MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, language_model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        MultimodalModel.from_pretrained(tmp_path / "saved")
    loaded = MultimodalModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(logits(loaded), expected)


# --- damage and interruption ------------------------------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: next(iter(sorted(folder.glob(name)))).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        path = next(iter(sorted(folder.glob(name))))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return do


def garble(folder: Path) -> None:
    next(iter(sorted(folder.glob("*.safetensors")))).write_bytes(b"\xff" * 100)


def drop_a_weight(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("*.safetensors"))))
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path, metadata={"format": "pt"})


def reshape_a_weight(folder: Path) -> None:
    files = {path: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    path = next(path for path, tensors in files.items() if any(tensor.dim() == 2 for tensor in tensors.values()))
    tensors = files[path]
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE = {
    "no-config": (remove("config.json"), MissingFileError, "config.json"),
    "half-a-config": (cut("config.json"), CheckpointError, "config.json"),
    "no-weights": (remove("*.safetensors"), MissingFileError, "safetensors"),
    "half-the-weights": (cut("*.safetensors"), CheckpointError, "safetensors"),
    "garbled-weights": (garble, CheckpointError, "safetensors"),
    "a-weight-less": (drop_a_weight, CheckpointError, "incomplete"),
    "a-weight-of-another-shape": (reshape_a_weight, CheckpointError, "does not fit"),
    "no-part-config": (remove("language_model/config.json"), OSError, "config.json"),
}


@pytest.mark.parametrize("shards", [1, 5], ids=["one-file", "shards"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: str, shards: int) -> None:
    """A file that is missing, cut short, or holds something else: an OSError that names it."""
    harm, error, message = DAMAGE[damage]
    parts.vision_model().save_pretrained(tmp_path, max_shard_size="5GB" if shards == 1 else "10KB")
    harm(tmp_path)
    with pytest.raises(error, match=message):
        MultimodalModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["language_model", "vision_encoder"])
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapters"])
def test_a_config_without_entries_costs_no_memory(
    tmp_path: Path, part: str, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`{}` means the defaults of its class, a model of billions: refused with both sizes before any weight is made."""
    model = parts.vision_model()
    if adapted:
        model.language_model = get_peft_model(model.language_model, LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    (tmp_path / part / "config.json").write_text("{}")
    make = PreTrainedModel._from_config.__func__

    def on_meta_only(cls: Any, config: Any, **kwargs: Any) -> Any:
        whole = cls.__name__ == ("LlamaForCausalLM" if part == "language_model" else "CLIPVisionModel")
        assert not whole or torch.get_default_device().type == "meta", "memory is spent"
        return make(cls, config, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_from_config", classmethod(on_meta_only))
    with pytest.raises(CheckpointError, match=rf"{part}.*of [\d,]+ numbers, the weight files hold [\d,]+"):
        MultimodalModel.from_pretrained(tmp_path)


def test_no_such_folder_and_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MultimodalModel.from_pretrained(tmp_path / "nowhere")
    parts.llama().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model_type 'llama'"):
        MultimodalModel.from_pretrained(tmp_path)


def test_a_full_disk_leaves_the_former_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the second file fails: the former model is read, nothing else is left."""
    model = parts.vision_model()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    plain, calls = pretrained.save_file, []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        plain(*args, **kwargs)

    monkeypatch.setattr(pretrained, "save_file", full)
    nn.init.zeros_(model.language_model.lm_head.weight)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path)), expected)


def test_a_killed_save_leaves_the_former_save(tmp_path: Path) -> None:
    """kill -9 while weights are written."""
    model = parts.vision_model()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    script = f"""
import os, signal
from cornstarch.models.multimodal_language_model import pretrained
from tests import parts
plain, calls = pretrained.save_file, []
def deadly(*args, **kwargs):
    plain(*args, **kwargs)
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
pretrained.save_file = deadly
model = parts.vision_model()
model.language_model.lm_head.weight.data.zero_()
model.save_pretrained({str(tmp_path)!r}, max_shard_size="10KB")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    assert ended.returncode == -9
    assert torch.equal(logits(MultimodalModel.from_pretrained(tmp_path)), expected)
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".model-files.json"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    """Only safetensors and JSON."""
    with_peft().save_pretrained(tmp_path)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    parts.vision_model().save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_code_from_the_hub_named_by_a_config_is_refused(name: str, tmp_path: Path) -> None:
    parts.vision_model().save_pretrained(tmp_path)
    path = tmp_path / "language_model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: "someone/kernel"}))
    with pytest.raises(CheckpointError, match="code from the hub"):
        MultimodalModel.from_pretrained(tmp_path)
