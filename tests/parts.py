"""Small processors, tokenizers and whole models for the tests of processing and saving."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from cornstarch import ModalEncoderModule, MultimodalModel, MultimodalProcessor

VOCABULARY = 256 + 3
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(with_bos_and_eos: bool = False, **kwargs: Any) -> PreTrainedTokenizerFast:
    """Bytes as tokens, ids 0 to 255; then <pad>, <bos>, <eos>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    if with_bos_and_eos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 257), ("<eos>", 258)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", **kwargs
    )


def clip(image_size: int = 16, seed: int = 0) -> CLIPVisionModel:
    """A CLIP vision tower with (image_size / 8)^2 + 1 rows per image."""
    torch.manual_seed(seed)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=8,
        )
    )


def clip_processor(image_size: int = 16) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def whisper() -> WhisperEncoder:
    """A Whisper encoder that takes 2 * 50 frames (one second) and yields 50 rows."""
    torch.manual_seed(1)
    return WhisperEncoder(
        WhisperConfig(
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            num_mel_bins=8,
            max_source_positions=50,
        )
    )


def whisper_processor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=160)


def wav2vec2() -> Wav2Vec2Model:
    """An encoder whose rows depend on how long a sound is; stride 10."""
    torch.manual_seed(2)
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
    )


def llama(tie: bool = False, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tie,
        )
    )


class PerWordEncoder(nn.Module):
    """An encoder nobody has thought of: 12 numbers in, one row for every 3 of them, by a buffer and a weight."""

    hidden_size = 16

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = nn.Linear(3, 16)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        return self.layer(readings.unflatten(-1, (-1, 3)))


def image(width: int = 20, height: int = 24, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def vision_model(**encoder_arguments: Any) -> MultimodalModel:
    return MultimodalModel({"vision": ModalEncoderModule(clip(), **encoder_arguments)}, llama())


def vision_pair(**kwargs: Any) -> tuple[MultimodalModel, MultimodalProcessor]:
    model = vision_model()
    return model, MultimodalProcessor({"vision": clip_processor()}, tokenizer(**kwargs), model)


def three_modalities() -> tuple[MultimodalModel, MultimodalProcessor]:
    """Images of 5 positions, sounds of 50, and sounds whose positions depend on their length."""
    model = MultimodalModel(
        {
            "vision": ModalEncoderModule(clip()),
            "audio": ModalEncoderModule(whisper()),
            "speech": ModalEncoderModule(wav2vec2()),
        },
        llama(),
    )
    processors_by_key = {
        "vision": clip_processor(),
        "audio": whisper_processor(),
        "speech": Wav2Vec2FeatureExtractor(return_attention_mask=True),
    }
    return model.eval(), MultimodalProcessor(processors_by_key, tokenizer(padding_side="left"), model)


def add_adapter(part: Any, config: Any) -> None:
    """Put an adapter inside a part with transformers' own `add_adapter`, where it takes the installed PEFT."""
    needed, found = MIN_PEFT_VERSION, version("peft")
    if Version(found) < Version(needed):
        pytest.skip(f"transformers' add_adapter needs peft {needed}, found {found}: its own check refuses it")
    part.add_adapter(config)
