"""Every Python block of README.md runs, in order, with small local checkpoints in place of the hub's."""

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from tests import parts

README = Path(__file__).parent.parent / "README.md"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def clip(folder: Path) -> None:
    parts.clip().save_pretrained(folder)
    parts.clip_processor().save_pretrained(folder)


def qwen(folder: Path) -> None:
    config = Qwen3Config(**SIZES, num_hidden_layers=2, num_key_value_heads=2, head_dim=8, vocab_size=parts.VOCABULARY)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def whisper(folder: Path) -> None:
    config = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def llava(folder: Path) -> None:
    vision = CLIPVisionConfig(**SIZES, num_hidden_layers=2, image_size=16, patch_size=8)
    text = LlamaConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=2, vocab_size=64)
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=60)
    ).save_pretrained(folder)


ON_THE_HUB = {
    "openai/clip-vit-large-patch14": clip,
    "Qwen/Qwen3-0.6B": qwen,
    "openai/whisper-tiny": whisper,
    "llava-hf/llava-1.5-7b-hf": llava,
}


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top to bottom in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 9
    local = {}
    for name, make in ON_THE_HUB.items():
        local[name] = tmp_path / name.replace("/", "--")
        make(local[name])
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        for name, folder in local.items():
            block = block.replace(f'"{name}"', repr(str(folder)))
        exec(compile(block, f"README.md block {number}", "exec"), namespace)
    assert torch.isfinite(namespace["loss"])
    assert (tmp_path / "runs" / "mine" / "config.json").is_file()
    frozen = {
        part: not any(p.requires_grad for p in namespace["omni"].get_submodule(part).parameters())
        for part in ("vision_encoder.module", "audio_encoder.module", "audio_encoder.projector", "language_model")
    }
    assert frozen == {
        "vision_encoder.module": True,
        "audio_encoder.module": True,
        "audio_encoder.projector": False,
        "language_model": False,
    }


def test_every_hub_name_has_a_stand_in() -> None:
    """A name that the page loads and no test replaces would be a block that is not run."""
    loaded = set(
        re.findall(r'from_pretrained(?:_multimodal_model)?\("([^"]+/[^"]+)"', README.read_text(encoding="utf-8"))
    )
    assert loaded - {"runs/mine"} == set(ON_THE_HUB)


def test_pictures_are_there() -> None:
    """Every picture that the page shows is in the repository."""
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / picture).is_file(), picture
