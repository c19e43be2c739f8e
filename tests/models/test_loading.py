"""Loading: no memory for weights that are not read yet, and everything that is not saved as its class makes it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from cornstarch import ModalEncoderModule, MultimodalModel, OutputHiddenStates, SelectFeatures
from cornstarch.models.multimodal_language_model import pretrained, weightless
from tests import parts, tiny


def not_saved(module: nn.Module) -> dict[str, Tensor]:
    """Tables that a module computes: buffers that `state_dict()` does not name, and tensors that are no buffers."""
    saved = module.state_dict().keys()
    tables = {name: table for name, table in module.named_buffers() if name not in saved}
    for place, owner in module.named_modules():
        plain = {name: value for name, value in vars(owner).items() if isinstance(value, Tensor)}
        tables |= {f"{place}:{name}": value for name, value in plain.items()}
    return tables


# --- no memory --------------------------------------------------------------------------------------------------------


def adapted() -> MultimodalModel:
    encoder = get_peft_model(parts.clip(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return MultimodalModel({"vision": ModalEncoderModule(encoder)}, parts.llama(tie=True))


def of_three() -> MultimodalModel:
    return parts.three_modalities()[0]


def with_callbacks() -> MultimodalModel:
    callbacks = {
        "preprocess_callback": OutputHiddenStates(),
        "postprocess_module_callback": SelectFeatures(layers=(1,)),
    }
    return parts.vision_model(**callbacks)


@pytest.mark.parametrize("make", [parts.vision_model, adapted, of_three, with_callbacks])
def test_no_weight_is_there_before_it_is_read(
    tmp_path: Path, make: Callable[[], MultimodalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a byte of parameters once the model is made; tables that are not saved are real."""
    make().save_pretrained(tmp_path)
    read, seen = pretrained._read_weights, []

    def counted(model: nn.Module, *rest: Any) -> None:
        seen.append(sum(weight.nbytes for weight in model.parameters() if not weight.is_meta))
        assert not any(table.is_meta for table in not_saved(model).values())
        read(model, *rest)

    monkeypatch.setattr(pretrained, "_read_weights", counted)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert seen == [0]
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize("shard", ["5GB", "10KB"])
def test_weights_are_at_aligned_addresses(tmp_path: Path, shard: str) -> None:
    """64 bytes, as PyTorch allocates; none is mapped from a file, where it may be anywhere."""
    parts.vision_model().save_pretrained(tmp_path, max_shard_size=shard)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert {weight.data_ptr() % 64 for weight in loaded.parameters()} == {0}


MEASURED = """
import sys, threading
from pathlib import Path
from cornstarch import MultimodalModel

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.001):
        peaks.append(anonymous())

tiny, folder, dtype = sys.argv[1:]
MultimodalModel.from_pretrained(tiny)  # imports all it needs
done, peaks, before = threading.Event(), [], anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model = MultimodalModel.from_pretrained(folder, dtype=None if dtype == "None" else dtype)
done.set()
watcher.join()
print((max([*peaks, anonymous()]) - before) / sum(weight.nbytes for weight in model.parameters()))
"""


def large(tie: bool) -> MultimodalModel:
    """More than 1 GB in few weights."""
    language_model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=96_000 if tie else 48_000,
            hidden_size=2048,
            intermediate_size=4096,
            num_hidden_layers=1,
            num_attention_heads=16,
            tie_word_embeddings=tie,
        )
    )
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 16}
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    return MultimodalModel({"vision": ModalEncoderModule(tower)}, language_model)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say how much memory is in use")
@pytest.mark.parametrize("tie, shard", [(True, "50GB"), (False, "200MB")])
def test_the_peak_is_the_models_bytes(tmp_path: Path, tie: bool, shard: str) -> None:
    """Anonymous memory of a process while it loads 1 GB: at most 1.1 times the model, in its dtype and in another."""
    parts.vision_model().save_pretrained(tmp_path / "tiny")
    model = large(tie)
    assert sum(weight.nbytes for weight in model.parameters()) > 1e9
    model.save_pretrained(tmp_path / "large", max_shard_size=shard)
    del model
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    for dtype in ("None", "bfloat16"):
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "tiny"), str(tmp_path / "large"), dtype]
        ended = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        assert 0.9 < float(ended.stdout) <= 1.1, dtype  # less than the model: nothing was measured
    for path in (tmp_path / "large").iterdir():  # pytest keeps folders, and these are large
        if path.suffix == ".safetensors":
            path.unlink()


# --- what is not saved ------------------------------------------------------------------------------------------------

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def assert_the_same_comes_back(model: MultimodalModel, folder: Path) -> MultimodalModel:
    model.eval().save_pretrained(folder)
    loaded = MultimodalModel.from_pretrained(folder)
    for expected, found in ((model.state_dict(), loaded.state_dict()), (not_saved(model), not_saved(loaded))):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    return loaded


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_frequencies(tmp_path: Path, rope: str) -> None:
    """Of every kind of scaling: those of a model made in the ordinary way, and the same logits, on long inputs too."""
    parameters = {"rope_theta": 10000.0, **ROPES[rope]}
    language_model = tiny.language_model("llama", rope_parameters=parameters)
    model = MultimodalModel({}, language_model)
    loaded = assert_the_same_comes_back(model, tmp_path)
    assert any("inv_freq" in name for name in not_saved(loaded))
    ids = torch.randint(0, tiny.VOCABULARY, (1, 100))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("family", tiny.LANGUAGE_MODELS)
def test_tables_of_language_models(tmp_path: Path, family: str) -> None:
    assert_the_same_comes_back(MultimodalModel({}, tiny.language_model(family)), tmp_path)


def speech_to_text() -> nn.Module:
    """Its sinusoids are no weights and not saved."""
    sizes = {"encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "max_source_positions": 40}
    config = transformers.Speech2TextConfig(vocab_size=64, d_model=16, **sizes)
    return transformers.Speech2TextModel(config).get_encoder()


def swin() -> nn.Module:
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 16, "patch_size": 2, "window_size": 2}
    return transformers.SwinModel(transformers.SwinConfig(**sizes))


@pytest.mark.parametrize("make", [parts.clip, parts.whisper, parts.wav2vec2, speech_to_text, swin])
def test_tables_of_encoders(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert_the_same_comes_back(MultimodalModel({"any": ModalEncoderModule(make())}, parts.llama()), tmp_path)


def test_adapters_whose_tables_are_drawn(tmp_path: Path) -> None:
    """VeRA's projections are drawn from a seed and not saved: the part is made in the ordinary way."""
    vera = VeraConfig(r=2, save_projection=False, projection_prng_key=7, target_modules=["q_proj"])
    loaded = assert_the_same_comes_back(MultimodalModel({}, get_peft_model(parts.llama(), vera)), tmp_path)
    assert any("vera_A" in name for name in not_saved(loaded))


def test_adapters_made_of_the_weights_below(tmp_path: Path) -> None:
    """PiSSA takes apart weights that are not there yet; prompts begin as rows of the embedding table."""
    pissa = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"])
    assert_the_same_comes_back(MultimodalModel({}, get_peft_model(parts.llama(), pissa)), tmp_path / "pissa")
    prompt = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", prompt_tuning_init="SAMPLE_VOCAB")
    assert_the_same_comes_back(MultimodalModel({}, get_peft_model(parts.llama(), prompt)), tmp_path / "prompt")


# --- making modules without weights -----------------------------------------------------------------------------------


class Tables(nn.Module):
    """A weight, and a table that is written into memory taken for it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))
        table = torch.empty(4)
        table[:] = torch.arange(4.0)
        if kind == "buffer":
            self.register_buffer("table", table, persistent=False)
        elif kind == "attribute":
            self.table = table
        elif kind == "in a list":
            self.tables = [table]
        else:
            self.largest = table.max().item()


@pytest.mark.parametrize("kind", ["buffer", "attribute", "in a list", "number"])
def test_a_module_whose_tables_are_written_into_empty_memory(kind: str) -> None:
    """Seen, and made in the ordinary way."""
    made = weightless.make(lambda: Tables(kind))
    assert not made.weight.is_meta
    if kind == "number":
        assert made.largest == 3
    else:
        table = made.tables[0] if kind == "in a list" else made.table
        assert torch.equal(table, torch.arange(4.0))


def test_parameters_that_are_one_stay_one() -> None:
    """Also those that are made with values; what trains stays so."""

    def build() -> nn.Module:
        module = nn.ModuleList([nn.LayerNorm(3), nn.LayerNorm(3), nn.Linear(3, 3, bias=False)])
        module[1].weight = module[0].weight
        module[1].bias.requires_grad_(False)
        return module

    made = weightless.make(build)
    assert made[0].weight is made[1].weight
    assert [parameter.requires_grad for parameter in made.parameters()] == [True, True, False, True]
    assert all(parameter.is_meta for parameter in made.parameters())


def test_a_module_that_lists_its_weights() -> None:
    """An LSTM keeps them in a list too, which follows when weights are read."""
    expected = nn.LSTM(2, 3)
    made = weightless.make(lambda: nn.LSTM(2, 3))
    assert all(parameter.is_meta for parameter in made.parameters())
    made.load_state_dict(expected.state_dict(), assign=True)
    inputs = torch.randn(4, 2)
    assert torch.equal(made(inputs)[0], expected(inputs)[0])


def test_an_error_is_the_builders_own() -> None:
    def build() -> nn.Module:
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        weightless.make(build)


def test_other_threads_are_left_alone() -> None:
    """A tensor that another thread makes meanwhile is real, and so is one of this thread afterwards."""
    seen: list[bool] = []

    def build() -> nn.Module:
        thread = threading.Thread(target=lambda: seen.append(torch.empty(2).is_meta))
        thread.start()
        thread.join()
        seen.append(torch.empty(2).is_meta)
        return nn.Linear(2, 2)

    weightless.make(build)
    assert seen == [False, True]
    assert not torch.empty(2).is_meta
