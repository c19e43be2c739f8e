"""Every encoder and every language model that the zoo runs, as data: a row each, and nothing else per model.

A row names a class of transformers (`module.Class` where it is not public) and the arguments that make it tiny. An
encoder's row says what two inputs of it look like and how many features each yields.
"""

from typing import Any, NamedTuple

# --- language models --------------------------------------------------------------------------------------------------

VOCABULARY, PAD = 96, 0
LM_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


class LanguageModel(NamedTuple):
    """One tiny causal language model, or a text backbone, which gets a head."""

    cls: str
    arguments: dict[str, Any]  # of its config, beside `LM_SIZES`
    traits: tuple[str, ...] = ()  # in what it differs from Llama
    tolerance: float = 1e-10  # of what is computed in fp64, where a model does not compute parts of it in fp32


_GROUPED = {"num_key_value_heads": 2}
_HEAD = {**_GROUPED, "head_dim": 8}
_TIED = {"tie_word_embeddings": True}
_FALCON = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "bias": True}
_GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTER_LOSS = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
_STATE_SPACE = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
LANGUAGE_MODELS: dict[str, LanguageModel] = {
    "llama": LanguageModel("LlamaForCausalLM", _HEAD),
    "llama-tied": LanguageModel("LlamaForCausalLM", _HEAD | _TIED, ("tied",)),
    "llama4": LanguageModel(
        "Llama4ForCausalLM",
        {
            **_HEAD,
            **_ROUTER_LOSS,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 0],
        },
        ("experts", "sliding window", "layers without positions"),
    ),
    "mistral": LanguageModel("MistralForCausalLM", _HEAD | {"sliding_window": None}),
    "mistral-window": LanguageModel("MistralForCausalLM", _HEAD | {"sliding_window": 4}, ("sliding window",)),
    "ministral": LanguageModel("MinistralForCausalLM", _HEAD | {"sliding_window": 4}, ("sliding window",)),
    "mixtral": LanguageModel("MixtralForCausalLM", _HEAD | _ROUTER_LOSS | {"num_local_experts": 4}, ("experts",)),
    "qwen2": LanguageModel("Qwen2ForCausalLM", _GROUPED),
    "qwen2-moe": LanguageModel(
        "Qwen2MoeForCausalLM",
        _GROUPED | _EXPERTS | _ROUTER_LOSS | {"shared_expert_intermediate_size": 16},
        ("experts",),
    ),
    "qwen3": LanguageModel("Qwen3ForCausalLM", _HEAD),
    "qwen3-moe": LanguageModel("Qwen3MoeForCausalLM", _HEAD | _EXPERTS | _ROUTER_LOSS, ("experts",)),
    "qwen3-next": LanguageModel(
        "Qwen3NextForCausalLM",
        {
            **_HEAD,
            **_EXPERTS,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
        },
        ("linear attention", "experts"),
    ),
    "gemma": LanguageModel("GemmaForCausalLM", _HEAD | _TIED, ("tied", "scaled embeddings")),
    "gemma2": LanguageModel(
        "Gemma2ForCausalLM",
        _HEAD | _TIED | {"sliding_window": 4, "final_logit_softcapping": 2.0},
        ("tied", "scaled embeddings", "capped logits", "sliding window"),
    ),
    "gemma3": LanguageModel(
        "Gemma3ForCausalLM",
        _HEAD | _TIED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        ("tied", "scaled embeddings", "sliding window"),
    ),
    "phi": LanguageModel("PhiForCausalLM", {"partial_rotary_factor": 0.5}),
    "phi3": LanguageModel("Phi3ForCausalLM", _GROUPED),
    "phi4": LanguageModel("Phi3ForCausalLM", _GROUPED | {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "opt": LanguageModel("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}, ("learned positions",)),
    "opt-tied": LanguageModel("OPTForCausalLM", {"ffn_dim": 48, **_TIED}, ("tied", "learned positions")),
    "opt-projected": LanguageModel(
        "OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 16, **_TIED}, ("tied", "learned positions")
    ),
    "gpt2": LanguageModel("GPT2LMHeadModel", {}, ("learned positions",)),
    "gpt2-tied": LanguageModel("GPT2LMHeadModel", _TIED, ("tied", "learned positions")),
    "gpt-neox": LanguageModel("GPTNeoXForCausalLM", {}),
    "gptj": LanguageModel("GPTJForCausalLM", {"rotary_dim": 4}, tolerance=1e-6),  # attention
    "bloom": LanguageModel("BloomForCausalLM", {"n_layer": 2, "n_head": 4}, ("ALiBi",)),
    "falcon": LanguageModel("FalconForCausalLM", _FALCON | {"alibi": False, "multi_query": False}),
    "falcon-grouped": LanguageModel("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": LanguageModel("FalconForCausalLM", _FALCON | {"alibi": True, "multi_query": False}, ("ALiBi",)),
    "olmo2": LanguageModel("Olmo2ForCausalLM", _GROUPED),
    "olmoe": LanguageModel("OlmoeForCausalLM", _GROUPED | _EXPERTS | _ROUTER_LOSS, ("experts",)),
    "granite": LanguageModel(
        "GraniteForCausalLM",
        _GROUPED | {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
        ("scaled embeddings", "scaled logits"),
    ),
    "cohere": LanguageModel("CohereForCausalLM", _GROUPED | _TIED | {"logit_scale": 0.3}, ("tied", "scaled logits")),
    "smollm3": LanguageModel(
        "SmolLM3ForCausalLM", _GROUPED | {"no_rope_layer_interval": 2}, ("layers without positions",)
    ),
    "glm4": LanguageModel("Glm4ForCausalLM", _HEAD),
    "stablelm": LanguageModel("StableLmForCausalLM", _GROUPED),
    "starcoder2": LanguageModel("Starcoder2ForCausalLM", _GROUPED | {"sliding_window": 4}, ("sliding window",)),
    "nemotron": LanguageModel("NemotronForCausalLM", _HEAD),
    "deepseek-v3": LanguageModel("DeepseekV3ForCausalLM", _DEEPSEEK, ("experts", "latent attention")),
    "gpt-oss": LanguageModel(
        "GptOssForCausalLM",
        {**_HEAD, **_ROUTER_LOSS, "num_local_experts": 4, "sliding_window": 4, "rope_parameters": _GPT_OSS_ROPE},
        ("experts", "sliding window"),
    ),
    "exaone4": LanguageModel(
        "Exaone4ForCausalLM",
        _GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        ("sliding window", "layers without positions"),
    ),
    "mamba": LanguageModel("MambaForCausalLM", {"state_size": 8}, ("state space",)),
    "mamba2": LanguageModel("Mamba2ForCausalLM", _STATE_SPACE, ("state space",)),
    "jamba": LanguageModel(
        "JambaForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "num_experts": 4,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
        ("state space", "experts"),
    ),
    "lfm2": LanguageModel(
        "Lfm2ForCausalLM", {**_GROUPED, "layer_types": ["conv", "full_attention"]}, ("convolutions",)
    ),
    "qwen2-vl": LanguageModel("Qwen2VLTextModel", _GROUPED | _MROPE, ("backbone", "three axes")),
    "qwen2.5-vl": LanguageModel("Qwen2_5_VLTextModel", _GROUPED | _MROPE | _TIED, ("backbone", "three axes", "tied")),
    "qwen3-vl": LanguageModel("Qwen3VLTextModel", _HEAD | _MROPE, ("backbone", "three axes")),
    "qwen3-vl-moe": LanguageModel(
        "Qwen3VLMoeTextModel", _HEAD | _MROPE | _EXPERTS | _ROUTER_LOSS, ("backbone", "three axes", "experts")
    ),
    "qwen2.5-omni": LanguageModel("Qwen2_5OmniThinkerTextModel", _GROUPED | _MROPE, ("backbone", "three axes")),
    "glm4v": LanguageModel("Glm4vTextModel", _HEAD | _MROPE, ("backbone", "three axes")),
}

# --- encoders ---------------------------------------------------------------------------------------------------------

IMAGE_SIZE, PATCH = 8, 4  # four patches an image
Numbers = tuple[int, ...] | dict[str, Any] | list[Any]


class Encoder(NamedTuple):
    """One tiny encoder, and two inputs of it."""

    cls: str
    arguments: dict[str, Any]  # of its config
    # Its arguments for two inputs: numbers at random of a shape for each input, or of a shape for both together
    # (`{"together": ...}`), or these very whole numbers.
    inputs: dict[str, Numbers]
    features: tuple[int, int]  # how many each input yields
    # How its hidden states lie: `rows` for each input, `maps` (width first or last), `merged`, or `packed`.
    layout: str = "rows"


_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
}
_IMAGE: dict[str, Numbers] = {"pixel_values": (3, IMAGE_SIZE, IMAGE_SIZE)}
_SOUND = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "apply_spec_augment": False,
}
_WAVES: dict[str, Numbers] = {"input_values": (100,), "attention_mask": [[1] * 100, [1] * 60 + [0] * 40]}
_MEL = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 40, "num_mel_bins": 8}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": PATCH, "temporal_patch_size": 2}
# Two images of 4 x 4 and 2 x 4 patches, of which four each become one row.
_GRID: dict[str, Numbers] = {"hidden_states": {"together": (24, 96)}, "grid_thw": [[1, 4, 4], [1, 2, 4]]}
_VIDEO = {"num_frames": 4, "tubelet_size": 2, "qkv_bias": True}
_TEXT: dict[str, Numbers] = {
    "input_ids": [[5, 6, 7, 8, 9], [9, 8, 7, 1, 1]],
    "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
}
ENCODERS: dict[str, Encoder] = {
    "clip": Encoder("CLIPVisionModel", _TOWER, _IMAGE, (5, 5)),
    "siglip": Encoder("SiglipVisionModel", _TOWER, _IMAGE, (4, 4)),
    "siglip2": Encoder(
        "Siglip2VisionModel",
        {**_TOWER, "num_patches": 16},
        {
            "pixel_values": (6, 48),
            "pixel_attention_mask": [[1] * 6, [1] * 4 + [0] * 2],
            "spatial_shapes": [[2, 3], [2, 2]],
        },
        (6, 4),
    ),
    "dinov2": Encoder("Dinov2Model", {**_TOWER, "mlp_ratio": 2}, _IMAGE, (5, 5)),
    "dinov2-registers": Encoder(
        "Dinov2WithRegistersModel", {**_TOWER, "mlp_ratio": 2, "num_register_tokens": 2}, _IMAGE, (7, 7)
    ),
    "dinov3": Encoder(
        "DINOv3ViTModel", {**_TOWER, "num_register_tokens": 2, "pos_embed_rescale": None}, _IMAGE, (7, 7)
    ),
    "dinov3-convnext": Encoder(
        "DINOv3ConvNextModel",
        {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
        {"pixel_values": (3, 64, 64)},
        (5, 5),
    ),
    "vit": Encoder("ViTModel", _TOWER, _IMAGE, (5, 5)),
    "beit": Encoder("BeitModel", {**_TOWER, "use_relative_position_bias": True, "drop_path_rate": 0.0}, _IMAGE, (5, 5)),
    "aimv2": Encoder("Aimv2VisionModel", _TOWER, _IMAGE, (4, 4)),
    "pixtral": Encoder(
        "PixtralVisionModel",
        _TOWER,
        {"pixel_values": (3, 8, 12), "image_sizes": [[8, 12], [8, 8]]},
        (6, 4),
        "packed",
    ),
    "internvit": Encoder(
        "InternVLVisionModel",
        {**_TOWER, "image_size": [8, 8], "patch_size": [4, 4], "use_mask_token": False},
        _IMAGE,
        (5, 5),
    ),
    "qwen2-vl": Encoder(
        "qwen2_vl.Qwen2VisionTransformerPretrainedModel",
        {**_QWEN_TOWER, "embed_dim": 24, "hidden_size": 40, "mlp_ratio": 2},
        _GRID,
        (4, 2),
        "merged",
    ),
    "qwen2.5-vl": Encoder(
        "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel",
        {**_QWEN_TOWER, "hidden_size": 24, "out_hidden_size": 40, "intermediate_size": 40, "window_size": 16},
        _GRID,
        (4, 2),
        "merged",
    ),
    "qwen3-vl": Encoder(
        "Qwen3VLVisionModel",
        {
            **_QWEN_TOWER,
            "hidden_size": 24,
            "out_hidden_size": 40,
            "intermediate_size": 40,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        _GRID,
        (4, 2),
        "merged",
    ),
    "sam": Encoder(
        "SamVisionModel",
        {**_TOWER, "output_channels": 16, "mlp_dim": 40, "window_size": 2, "global_attn_indexes": [1]},
        _IMAGE,
        (4, 4),
        "maps",
    ),
    "swin": Encoder(
        "SwinModel",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "drop_path_rate": 0.0,
        },
        {"pixel_values": (3, 16, 16)},
        (16, 16),
    ),
    "convnext": Encoder(
        "ConvNextModel",
        {"hidden_sizes": [8, 24], "depths": [1, 1], "num_stages": 2, "patch_size": PATCH},
        _IMAGE,
        (1, 1),
        "maps",
    ),
    "hiera": Encoder(
        "HieraModel",
        {
            "image_size": [16, 16],
            "patch_size": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "query_stride": [2, 2],
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, True],
            "num_query_pool": 1,
        },
        {"pixel_values": (3, 16, 16)},
        (16, 16),
    ),
    "whisper": Encoder(
        "whisper.WhisperEncoder", {**_MEL, "max_source_positions": 6}, {"input_features": (8, 12)}, (6, 6)
    ),
    "wav2vec2": Encoder("Wav2Vec2Model", _SOUND, _WAVES, (9, 5)),
    "hubert": Encoder("HubertModel", _SOUND, _WAVES, (9, 5)),
    "ast": Encoder(
        "ASTModel",
        {**_TOWER, "max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4},
        {"input_values": (16, 8)},
        (10, 10),
    ),
    "qwen2-audio": Encoder(
        "Qwen2AudioEncoder", {**_MEL, "max_source_positions": 6}, {"input_features": (8, 12)}, (3, 3)
    ),
    "qwen2.5-omni": Encoder(
        "qwen2_5_omni.Qwen2_5OmniAudioEncoder",
        {**_MEL, "max_source_positions": 12, "n_window": 4, "output_dim": 40},
        {"input_features": {"together": (8, 20)}, "feature_lens": [12, 8]},
        (3, 2),
        "packed",
    ),
    "videomae": Encoder("VideoMAEModel", {**_TOWER, **_VIDEO}, {"pixel_values": (4, 3, 8, 8)}, (8, 8)),
    "vjepa2": Encoder(
        "VJEPA2Model",
        {
            **_TOWER,
            "crop_size": 8,
            "frames_per_clip": 4,
            "tubelet_size": 2,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
        },
        {"pixel_values_videos": (4, 3, 8, 8)},
        (8, 8),
    ),
    "bert": Encoder("BertModel", {**_TOWER, "vocab_size": 40, "max_position_embeddings": 16}, _TEXT, (5, 3)),
    "plain": Encoder("tests.parts.PerWordEncoder", {}, {"readings": (12,)}, (4, 4)),
}
