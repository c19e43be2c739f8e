"""Processors of Hugging Face's multimodal models for the tiny models of `originals`, saved with them."""

import json
import sys
from collections.abc import Callable
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


USER_ASSISTANT = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_IM_START = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or "
    "'image' in content %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- else -%}{%- set first_user_prefix = "
    "messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}{%- set loop_messages = messages[1:] -%}{%- else -%}"
    "{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
    "{%- for message in loop_messages -%}{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}"
    "{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- elif message['content'] is iterable -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
_UTTERANCES = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class Saved(NamedTuple):
    """A model of Hugging Face's in a folder, and its processor.

    Attributes:
        folder: with both.
        model: loaded from it.
        processor: the original's; one that needs a video processor, which does not run without torchvision, is made
            around a stand-in for it, which takes no video.
        mark: what texts have for an input.
    """

    folder: Path
    model: Any
    processor: Any
    mark: str


class _NoVideos:
    """Stands where a processor wants one of videos, which needs torchvision."""

    model_input_names = ()
    num_frames = fps = None


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


def _saved(folder: Path, name: str, mark: str, processor: Any, token: str | None = None, **changes: Any) -> Saved:
    words = processor.tokenizer
    model = _model(name, words.convert_tokens_to_ids(token or mark), changes)
    ends = [word for word in ("<|im_end|>", "<end_of_turn>", "<end_of_utterance>") if word in words.get_vocab()]
    model.generation_config.eos_token_id = [EOS, *words.convert_tokens_to_ids(ends)]
    model.save_pretrained(folder)
    if isinstance(getattr(processor, "video_processor", None), _NoVideos):
        # What such a checkpoint has: every file but that of videos.
        words.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
        values = {"processor_class": type(processor).__name__}
        (folder / "processor_config.json").write_text(json.dumps(values), encoding="utf-8")
    else:
        processor.save_pretrained(folder)
        processor = transformers.AutoProcessor.from_pretrained(folder)
    return Saved(folder, type(model).from_pretrained(folder), processor, mark)


def _around_no_videos(cls: Any, *arguments: Any, **settings: Any) -> Any:
    """A processor of a class whose check of its parts would refuse the stand-in."""

    class Unchecked(cls):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if not isinstance(argument, _NoVideos):
                super().check_argument_for_proper_class(argument_name, argument)

    Unchecked.__name__ = cls.__name__
    module = sys.modules[cls.__module__]
    had = vars(module).get("num2words")
    vars(module)["num2words"] = str  # a package that one of them wants for videos only
    made = Unchecked(*arguments, _NoVideos(), **settings)
    vars(module)["num2words"] = had
    return made


def _clip() -> Any:
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def _llava(folder: Path) -> Saved:
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    made = transformers.LlavaProcessor(_clip(), tokenizer(["<image>"]), chat_template=USER_ASSISTANT, **settings)
    return _saved(folder, "llava", "<image>", made)


def _llava_next(folder: Path) -> Saved:
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    square = {"height": 16, "width": 16}
    resolutions = ORIGINALS["llava-next"].config["image_grid_pinpoints"]
    pictures = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=square, image_grid_pinpoints=resolutions
    )
    made = transformers.LlavaNextProcessor(pictures, tokenizer(["<image>"]), chat_template=USER_ASSISTANT, **settings)
    return _saved(folder, "llava-next", "<image>", made)


def _llava_onevision(folder: Path) -> Saved:
    resolutions = ORIGINALS["llava-onevision"].config["image_grid_pinpoints"]
    pictures = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": 16, "width": 16}, image_grid_pinpoints=resolutions
    )
    made = _around_no_videos(
        transformers.LlavaOnevisionProcessor,
        pictures,
        tokenizer(["<image>", "<video>"]),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=USER_ASSISTANT,
        vision_aspect_ratio="anyres_max_2",
    )
    video = made.tokenizer.convert_tokens_to_ids("<video>")
    return _saved(folder, "llava-onevision", "<image>", made, video_token_id=video)


def _qwen_vl(name: str, class_name: str) -> Callable[[Path], Saved]:
    def make(folder: Path) -> Saved:
        pictures = transformers.Qwen2VLImageProcessorPil(
            patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 32 * 32}
        )
        signs = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
        words = tokenizer([*signs, "<|im_start|>", "<|im_end|>"])
        ids = words.convert_tokens_to_ids(signs)
        made = _around_no_videos(getattr(transformers, class_name), pictures, words, chat_template=_IM_START)
        others = dict(zip(("video_token_id", "vision_start_token_id", "vision_end_token_id"), ids[1:], strict=True))
        return _saved(folder, name, "<|image_pad|>", made, **others)

    return make


def _gemma(folder: Path) -> Saved:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer([*named.values(), "<start_of_turn>", "<end_of_turn>"], named)
    pictures = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    made = transformers.Gemma3Processor(pictures, words, chat_template=_TURNS, image_seq_length=4)
    return _saved(folder, "gemma3", "<start_of_image>", made, "<image_soft_token>")


def _tiled(name: str, class_name: str, pictures_class: str, videos: bool) -> Callable[[Path], Saved]:
    def make(folder: Path) -> Saved:
        pictures = getattr(transformers, pictures_class)(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
        )
        places = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
        signs = ["<image>", "<fake_token_around_image>", "<global-img>", *places]
        words = tokenizer([*signs, "<end_of_utterance>", "<|im_start|>"])
        settings = {"image_seq_len": 4, "chat_template": _UTTERANCES}
        cls = getattr(transformers, class_name)
        made = _around_no_videos(cls, pictures, words, **settings) if videos else cls(pictures, words, **settings)
        return _saved(folder, name, "<image>", made)

    return make


def _audio(folder: Path) -> Saved:
    words = tokenizer(["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>"])
    sounds = transformers.WhisperFeatureExtractor(feature_size=8, hop_length=160, chunk_length=1, n_fft=400)
    made = transformers.Qwen2AudioProcessor(sounds, words)
    tower = {**ORIGINALS["qwen2-audio"].config["audio_config"], "max_source_positions": 50}
    return _saved(folder, "qwen2-audio", "<|AUDIO|>", made, audio_config=tower)


MADE: dict[str, Callable[[Path], Saved]] = {
    "llava": _llava,
    "llava-next": _llava_next,
    "llava-onevision": _llava_onevision,
    "qwen2-vl": _qwen_vl("qwen2-vl", "Qwen2VLProcessor"),
    "qwen2.5-vl": _qwen_vl("qwen2.5-vl", "Qwen2_5_VLProcessor"),
    "qwen3-vl": _qwen_vl("qwen3-vl", "Qwen3VLProcessor"),
    "gemma3": _gemma,
    "idefics3": _tiled("idefics3", "Idefics3Processor", "Idefics3ImageProcessorPil", videos=False),
    "smolvlm": _tiled("smolvlm", "SmolVLMProcessor", "SmolVLMImageProcessorPil", videos=True),
    "qwen2-audio": _audio,
}
