"""What the recipes in examples/ name, small: checkpoints in a cache like the hub's, data in the formats of the sets.

A stand-in has the classes, the processor, the kind of tokenizer and the geometry (image and patch size, mel bins,
seconds) of what it stands for; widths, layers and vocabularies are tiny. `REAL` has the true sizes.
"""

import io
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    SiglipConfig,
    SiglipModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests import tiny
from tests.data.families import stored

CLIP, SIGLIP, WHISPER = "openai/clip-vit-large-patch14-336", "google/siglip-base-patch16-512", "openai/whisper-small"
VICUNA, SMOLLM, QWEN = "lmsys/vicuna-7b-v1.5", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"

# What the configs on the hub say of sizes; everything else there is at the default of the class.
REAL: dict[str, dict[str, Any]] = {
    CLIP: {
        "model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
    SIGLIP: {"model_type": "siglip_vision_model", "image_size": 512, "patch_size": 16},
    WHISPER: {
        "model_type": "whisper", "d_model": 768, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
    },
    VICUNA: {"model_type": "llama", "vocab_size": 32000},
    SMOLLM: {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    QWEN: {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
}  # fmt: skip
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    CLIP: ("CLIPImageProcessorPil", {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    SIGLIP: ("SiglipImageProcessorPil", {"size": {"height": 512, "width": 512}}),
    WHISPER: ("WhisperFeatureExtractor", {}),
}

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 64, "max_position_embeddings": 8}
LM = {**SMALL, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 2048}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def clip(folder: Path) -> None:
    """With its text tower, as on the hub."""
    tiny.loud(CLIPModel(CLIPConfig(text_config=TEXT, vision_config={**REAL[CLIP], **SMALL}))).save_pretrained(folder)
    CLIPImageProcessorPil(**PROCESSORS[CLIP][1]).save_pretrained(folder)


def siglip(folder: Path) -> None:
    vision = {**REAL[SIGLIP], **SMALL}
    tiny.loud(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=vision))).save_pretrained(folder)
    SiglipImageProcessorPil(**PROCESSORS[SIGLIP][1]).save_pretrained(folder)


def whisper(folder: Path) -> None:
    sizes = {name: 32 if name.endswith("_dim") else 1 if "layers" in name else 2 for name in REAL[WHISPER]}
    config = WhisperConfig(
        **{**sizes, "model_type": "whisper", "d_model": 16},
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    tiny.loud(WhisperForConditionalGeneration(config)).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def vicuna(folder: Path) -> None:
    """A tokenizer like SentencePiece's, without a chat template."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.printable[:94]]
    tokenizer = LlamaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, pad_token="<unk>", add_bos_token=True
    )
    _language_model(LlamaForCausalLM, LlamaConfig, tokenizer, folder)


def smollm(folder: Path) -> None:
    tokenizer = _byte_level(GPT2Tokenizer, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>")
    tokenizer.chat_template = stored("smollm2")
    _language_model(LlamaForCausalLM, LlamaConfig, tokenizer, folder, tie_word_embeddings=True)


def qwen(folder: Path) -> None:
    tokenizer = _byte_level(Qwen2Tokenizer, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    tokenizer.chat_template = stored("qwen2_5")
    _language_model(Qwen2ForCausalLM, Qwen2Config, tokenizer, folder, tie_word_embeddings=True)


def _byte_level(cls: Any, bos: str | None, eos: str, pad: str) -> Any:
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": "<|endoftext|>"}
    tokenizer = cls(vocab={word: number for number, word in enumerate(words)}, merges=[], **special)
    tokenizer.add_special_tokens({"extra_special_tokens": words[:3]})
    return tokenizer


def _language_model(cls: Any, config: Any, tokenizer: Any, folder: Path, **more: Any) -> None:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tiny.loud(cls(config(**LM, vocab_size=len(tokenizer), **special, **more))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    CLIP: clip, SIGLIP: siglip, WHISPER: whisper, VICUNA: vicuna, SMOLLM: smollm, QWEN: qwen,
}  # fmt: skip


def fill_cache(cache: Path, names: Sequence[str]) -> dict[str, Path]:
    """Put stand-ins where `huggingface_hub` looks for what it has downloaded.

    Args:
        cache: its folder.
        names: on the hub.

    Returns:
        The folder of each.
    """
    folders = {}
    for seed, name in enumerate(names):
        place, commit = cache / f"models--{name.replace('/', '--')}", f"{seed:040x}"
        folders[name] = place / "snapshots" / commit
        folders[name].mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        torch.manual_seed(seed)
        CHECKPOINTS[name](folders[name])
    return folders


# --- data -------------------------------------------------------------------------------------------------------------


def picture(colour: str, width: int = 40, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def write_llava(path: Path, media: Path, entries: Sequence[dict[str, Any]]) -> None:
    """JSON as LLaVA's, with a picture for every name, of the colour that it begins with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")
    for entry in entries:
        if "image" in entry:
            (media / entry["image"]).parent.mkdir(parents=True, exist_ok=True)
            picture(Path(entry["image"]).name.partition("-")[0]).save(media / entry["image"])


def write_cauldron(cache: Path, name: str, rows: Sequence[tuple[list[str], list[tuple[str, str]]]]) -> None:
    """A set of The Cauldron where `datasets` keeps what it has downloaded.

    Args:
        cache: its folder.
        name: of the set.
        rows: for each, the colours of its images, and its questions and answers.
    """
    features = datasets.Features(
        images=datasets.List(datasets.Image()),
        texts=datasets.List({role: datasets.Value("string") for role in ("user", "assistant", "source")}),
    )
    folder = cache / "HuggingFaceM4___the_cauldron" / name / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / "the_cauldron-train.arrow"), features=features) as writer:
        for colours, turns in rows:
            texts = [{"user": asked, "assistant": said, "source": name} for asked, said in turns]
            writer.write({"images": [picture(colour) for colour in colours], "texts": texts})
        writer.finalize()
    splits = {"train": datasets.SplitInfo("train", num_examples=len(rows), dataset_name="the_cauldron")}
    info = datasets.DatasetInfo(features=features, splits=datasets.SplitDict(splits, dataset_name="the_cauldron"))
    info.builder_name, info.dataset_name, info.config_name, info.version = "parquet", "the_cauldron", name, "0.0.0"
    info.write_to_directory(str(folder))


def flac(seconds: float, pitch: float) -> bytes:
    """A tone at 16 kHz, as LibriSpeech's files are."""
    times = np.arange(int(16000 * seconds)) / 16000
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * pitch * times), 16000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_librispeech(path: Path, sounds: Sequence[tuple[float, str]]) -> None:
    """Parquet with LibriSpeech's columns, for each sound its seconds and its text."""
    names = [f"1089-134686-{number:04d}" for number in range(len(sounds))]
    columns = {
        "file": [f"{name}.flac" for name in names],
        "audio": [
            {"bytes": flac(seconds, 200 + 150 * number), "path": f"{names[number]}.flac"}
            for number, (seconds, _) in enumerate(sounds)
        ],
        "text": [text for _, text in sounds],
        "speaker_id": [1089] * len(sounds),
        "chapter_id": [134686] * len(sounds),
        "id": names,
    }
    kinds = {**dict.fromkeys(("file", "text", "id"), "string"), **dict.fromkeys(("speaker_id", "chapter_id"), "int64")}
    features = datasets.Features(
        {
            name: datasets.Audio(sampling_rate=16000) if name == "audio" else datasets.Value(kinds[name])
            for name in columns
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pydict(columns, schema=features.arrow_schema), path)
