"""Processors of Hugging Face's multimodal models for the tiny models of `originals`, saved with them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from tests.models.originals import ORIGINALS

_MERGES = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("ĊĊ", "ĊĊ"), ("a", "n"), ("an", "d")]
FIRST = 256 + len(_MERGES)  # id of the first special token
PAD, BOS, EOS = FIRST, FIRST + 1, FIRST + 2
VOCABULARY = 384


def tokenizer(special: list[str], named: dict[str, str] | None = None, **kwargs: Any) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and a few merges, one of them of line breaks; then <pad>, <bos>, <eos> and the given ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *("".join(pair) for pair in _MERGES)]
    inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=_MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", "<bos>", "<eos>", *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=named or special,
        **kwargs,
    )


_USER_ASSISTANT = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


class Saved(NamedTuple):
    """A model of Hugging Face's in a folder, and its processor, which is None where it cannot be made here."""

    folder: Path
    model: Any
    processor: Any


def _model(name: str, mark: int, changes: dict[str, Any]) -> Any:
    row = ORIGINALS[name]
    config = {**row.config, **changes, row.id_name: mark}
    special = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config["text_config"] = {**config["text_config"], **special, "max_position_embeddings": 2048}
    torch.manual_seed(0)
    model = getattr(transformers, row.class_name)(AutoConfig.for_model(**config))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.15 if parameter.dim() > 1 else 0.4)
    return model.eval()


def _llava(folder: Path) -> Saved:
    words = tokenizer(["<image>"])
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        pictures,
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_USER_ASSISTANT,
    )
    return _saved(folder, _model("llava", words.convert_tokens_to_ids("<image>"), {}), processor)


def _saved(folder: Path, model: Any, processor: Any) -> Saved:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Saved(folder, type(model).from_pretrained(folder), processor)


MADE = {"llava": _llava}
