"""Small local checkpoints that stand in for the hub's in the examples of README.md and of the documentation."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from tests import parts
from tests.models.original_processors import USER_ASSISTANT

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def clip(folder: Path) -> None:
    parts.clip().save_pretrained(folder)
    parts.clip_processor().save_pretrained(folder)


def dino(folder: Path) -> None:
    Dinov2Model(Dinov2Config(**SIZES, num_hidden_layers=2, image_size=24, patch_size=8)).save_pretrained(folder)
    parts.clip_processor(24).save_pretrained(folder)


def qwen(folder: Path) -> None:
    config = Qwen3Config(**SIZES, num_hidden_layers=2, num_key_value_heads=2, head_dim=8, vocab_size=parts.VOCABULARY)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def vicuna(folder: Path) -> None:
    """A Llama whose tokenizer has no chat template."""
    config = LlamaConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=2, vocab_size=parts.VOCABULARY)
    LlamaForCausalLM(config).save_pretrained(folder)
    parts.tokenizer().save_pretrained(folder)


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
    words = {60: "<image>", 61: "<pad>", 62: "<unk>"}
    vocabulary = {words.get(number, f"word{number}"): number for number in range(64)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(words.values()))
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=["<image>"], **special)
    more = {"num_additional_image_tokens": 1, "chat_template": USER_ASSISTANT}
    LlavaProcessor(parts.clip_processor(), tokenizer, 8, "default", **more).save_pretrained(folder)


ON_THE_HUB: dict[str, Callable[[Path], None]] = {
    "openai/clip-vit-large-patch14-336": clip,
    "openai/clip-vit-large-patch14": clip,
    "facebook/dinov2-large": dino,
    "Qwen/Qwen3-0.6B": qwen,
    "lmsys/vicuna-7b-v1.5": vicuna,
    "openai/whisper-tiny": whisper,
    "llava-hf/llava-1.5-7b-hf": llava,
}


class Hub:
    """Stand-ins below a folder, made when a text first names them.

    Args:
        folder: where to keep them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: set[str] = set()

    def localized(self, text: str) -> str:
        """A text with the folders of stand-ins in place of names on the hub."""
        for name, make in ON_THE_HUB.items():  # longer names come before those that they begin with
            if name in text:
                folder = self._folder / name.replace("/", "--")
                if not folder.is_dir():
                    make(folder)
                text = text.replace(name, str(folder))
                self.asked.add(name)
        return text
