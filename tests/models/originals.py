"""Tiny multimodal models of Hugging Face's, made from their own configs, with inputs made by hand, as processors do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

VOCABULARY, IMAGE, VIDEO = 64, 60, 61
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}}
_CLIP = {"model_type": "clip_vision_model", **_VISION}
_SIGLIP = {"model_type": "siglip_vision_model", **_VISION}
_LLAMA = {"model_type": "llama", **_TEXT}
_QWEN2 = {"model_type": "qwen2", **_TEXT}
_RESOLUTIONS = [[32, 16], [16, 32], [32, 32]]
_GRID_TOWER = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4, "temporal_patch_size": 2}


class Original(NamedTuple):
    """A model and what it is called with.

    Attributes:
        config: arguments of `AutoConfig.for_model`, the model type first.
        class_name: the model's class.
        inputs: makes keyword arguments for the model's forward, two samples without padding, more than one image.
        id_name: how the config calls the id of its marks.
    """

    config: dict[str, Any]
    class_name: str
    inputs: Callable[[PreTrainedModel], dict[str, Any]]
    id_name: str = "image_token_id"

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """The model, with weights spread widely enough that everything shows in the logits."""
        torch.manual_seed(seed)
        model = getattr(transformers, self.class_name)(AutoConfig.for_model(**self.config))
        for parameter in model.parameters():
            parameter.data.normal_(std=0.15 if parameter.dim() > 1 else 0.4)
        return model.to(dtype).eval()


def _ids(counts: list[list[int]], mark: int = IMAGE) -> Tensor:
    """Two samples of one length, with a run of `mark` for each count and text around each."""
    generator = torch.Generator().manual_seed(1)

    def text(length: int) -> list[int]:
        return torch.randint(3, IMAGE - 1, (length,), generator=generator).tolist()

    rows = []
    for runs in counts:
        row = text(2)
        for count in runs:
            row += [mark] * count + text(3)
        rows.append(row)
    longest = max(map(len, rows)) + 4  # room for padding
    return torch.tensor([row + text(longest - len(row)) for row in rows])


def _pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _whole_images(model: Any) -> dict[str, Any]:
    return {"input_ids": _ids([[16, 16], [16]]), "pixel_values": _pixels(3, 3, 16, 16)}


def _tiled(model: Any, sizes: list[tuple[int, int]], **extra: Any) -> dict[str, Any]:
    """Images of sizes (height, width), padded to the most tiles there can be; counts are the model's own features'."""
    most = 5
    pixels = _pixels(len(sizes), most, 3, 16, 16)
    arguments = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes), **extra}
    with torch.no_grad():
        counts = [len(rows) for rows in model.model.get_image_features(**arguments).pooler_output]
    return {**arguments, "input_ids": _ids([counts[:2], counts[2:]])}


def _images_of_many_sizes(model: Any) -> dict[str, Any]:
    """Three images of 16 x 12, 8 x 16 and 12 x 12 pixels in one tensor, which the tower packs."""
    sizes = torch.tensor([[16, 12], [8, 16], [12, 12]])
    return {"input_ids": _ids([[12, 8], [9]]), "pixel_values": _pixels(3, 3, 16, 16), "image_sizes": sizes}


def _next(model: Any) -> dict[str, Any]:
    return _tiled(model, [(40, 18), (30, 33), (11, 50)])


def _onevision(model: Any) -> dict[str, Any]:
    return _tiled(model, [(40, 18), (30, 33), (11, 50)], batch_num_images=torch.tensor([2, 1]))


def _grids(model: Any) -> dict[str, Any]:
    """Three images as patches, of 4 x 4, 2 x 6 and 8 x 4 patches, four of which become one feature."""
    grids = torch.tensor([[1, 4, 4], [1, 2, 6], [1, 8, 4]])
    patches = int(grids.prod(-1).sum())
    ids = _ids([[4, 3], [8]])
    return {
        "input_ids": ids,
        "pixel_values": _pixels(patches, 3 * 2 * 4 * 4),
        "image_grid_thw": grids,
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


def _several_pictures(model: Any) -> dict[str, Any]:
    """Two samples of three and two pictures, the second padded with one of zeros; one picture is padded itself."""
    pixels = _pixels(2, 3, 3, 16, 16)
    mask = torch.ones(2, 3, 16, 16, dtype=torch.long)
    mask[0, 1, 9:] = 0
    pixels[0, 1, :, 9:] = 0
    pixels[1, 2], mask[1, 2] = 0, 0
    return {"input_ids": _ids([[4, 4, 4], [4, 4]]), "pixel_values": pixels, "pixel_attention_mask": mask}


def _square_images(model: Any) -> dict[str, Any]:
    ids = _ids([[4, 4], [4]])
    return {"input_ids": ids, "pixel_values": _pixels(3, 3, 16, 16), "token_type_ids": (ids == IMAGE).long()}


def _sounds(model: Any) -> dict[str, Any]:
    """Three sounds of 40, 27 and 33 frames, padded to 40."""
    mask = torch.zeros(3, 40, dtype=torch.long)
    for row, frames in enumerate((40, 27, 33)):
        mask[row, :frames] = 1
    counts = model.model.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))[1].tolist()
    return {
        "input_ids": _ids([counts[:2], counts[2:]]),
        "input_features": _pixels(3, 8, 40),
        "feature_attention_mask": mask,
        "attention_mask": torch.ones_like(_ids([counts[:2], counts[2:]])),
    }


_LLAVA = {"vision_config": _CLIP, "text_config": _LLAMA, "image_token_id": IMAGE, "tie_word_embeddings": False}
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 3, "vision_end_token_id": 4}
ORIGINALS: dict[str, Original] = {
    "llava": Original(
        {"model_type": "llava", **_LLAVA, "vision_feature_layer": -2}, "LlavaForConditionalGeneration", _whole_images
    ),
    "llava-pixtral": Original(
        {
            "model_type": "llava",
            "vision_config": {"model_type": "pixtral", **_VISION, "image_size": 32},
            "text_config": _LLAMA,
            "image_token_id": IMAGE,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": False,
        },
        "LlavaForConditionalGeneration",
        _images_of_many_sizes,
    ),
    "llava-next": Original(
        {"model_type": "llava_next", **_LLAVA, "image_grid_pinpoints": _RESOLUTIONS},
        "LlavaNextForConditionalGeneration",
        _next,
    ),
    "llava-onevision": Original(
        {
            "model_type": "llava_onevision",
            "vision_config": _SIGLIP,
            "text_config": _QWEN2,
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_grid_pinpoints": [*_RESOLUTIONS, [16, 64]],
            "vision_aspect_ratio": "anyres_max_2",
            "tie_word_embeddings": False,
        },
        "LlavaOnevisionForConditionalGeneration",
        _onevision,
    ),
    "qwen2-vl": Original(
        {
            "model_type": "qwen2_vl",
            "vision_config": {**_GRID_TOWER, "embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2},
            "text_config": {**_TEXT, **_MROPE},
            **_IDS,
            "tie_word_embeddings": False,
        },
        "Qwen2VLForConditionalGeneration",
        _grids,
    ),
    "qwen2.5-vl": Original(
        {
            "model_type": "qwen2_5_vl",
            "vision_config": {
                **_GRID_TOWER,
                "hidden_size": 16,
                "out_hidden_size": 24,
                "intermediate_size": 32,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            "text_config": {**_TEXT, **_MROPE},
            **_IDS,
            "tie_word_embeddings": False,
        },
        "Qwen2_5_VLForConditionalGeneration",
        _grids,
    ),
    "qwen3-vl": Original(
        {
            "model_type": "qwen3_vl",
            "vision_config": {
                **_GRID_TOWER,
                "hidden_size": 16,
                "out_hidden_size": 24,
                "intermediate_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            "text_config": {**_TEXT, **_MROPE},
            **_IDS,
            "tie_word_embeddings": False,
        },
        "Qwen3VLForConditionalGeneration",
        _grids,
    ),
    "gemma3": Original(
        {
            "model_type": "gemma3",
            "vision_config": _SIGLIP,
            "text_config": {
                **_TEXT,
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "query_pre_attn_scalar": 12,
            },
            "mm_tokens_per_image": 4,
            "image_token_id": IMAGE,
        },
        "Gemma3ForConditionalGeneration",
        _square_images,
    ),
    "idefics3": Original(
        {
            "model_type": "idefics3",
            "vision_config": _VISION,
            "text_config": _LLAMA,
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "tie_word_embeddings": False,
        },
        "Idefics3ForConditionalGeneration",
        _several_pictures,
    ),
    "smolvlm": Original(
        {
            "model_type": "smolvlm",
            "vision_config": _VISION,
            "text_config": _LLAMA,
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "tie_word_embeddings": True,
        },
        "SmolVLMForConditionalGeneration",
        _several_pictures,
    ),
    "qwen2-audio": Original(
        {
            "model_type": "qwen2_audio",
            "audio_config": {
                "model_type": "qwen2_audio_encoder",
                "d_model": 16,
                "encoder_layers": 2,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 32,
                "num_mel_bins": 8,
                "max_source_positions": 20,
            },
            "text_config": _QWEN2,
            "audio_token_id": IMAGE,
        },
        "Qwen2AudioForConditionalGeneration",
        _sounds,
        id_name="audio_token_id",
    ),
}
