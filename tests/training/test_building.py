"""Models from configs, against the same models put together by hand; and towers out of checkpoints of several."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Qwen2_5OmniThinkerConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from cornstarch import ArgumentError, MissingFileError, build_model
from cornstarch.models.multimodal_language_model import AveragePool, Chain, OutputHiddenStates, SelectFeatures
from cornstarch.models.multimodal_language_model import callbacks as registered
from cornstarch.models.multimodal_language_model import parts as loading
from cornstarch.training import EncoderConfig, LanguageModelConfig, ModelConfig, NamedConfig, ProjectorConfig
from tests import parts
from tests.models.original_processors import MADE

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"model_type": "clip_vision_model", **SMALL, "image_size": 16, "patch_size": 4}  # 4 x 4 and a class token
TEXT = {"model_type": "llama", **SMALL, "num_key_value_heads": 2}
PROCESSOR = {"class_name": "CLIPImageProcessorPil", "arguments": {"size": 16, "crop_size": 16}}


def built(**encoder: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    vision = EncoderConfig(**{"config": VISION, "processor": PROCESSOR, **encoder})
    text = LanguageModelConfig(config=TEXT, tokenizer="bytes")
    return build_model(ModelConfig(encoders={"vision": vision}, language_model=text))


def features(model: Any) -> Any:
    torch.manual_seed(1)
    return model.encoders["vision"](pixel_values=torch.randn(2, 3, 16, 16))


def hidden(model: Any, layer: int) -> torch.Tensor:
    torch.manual_seed(1)
    module = model.encoders["vision"].module
    return module(pixel_values=torch.randn(2, 3, 16, 16), output_hidden_states=True).hidden_states[layer]


# --- compositions -----------------------------------------------------------------------------------------------------


def test_the_hidden_layer_without_the_class_token() -> None:
    """As LLaVA takes it, projected by the projector: bit-equal to doing so by hand; and the processor counts 16."""
    model, processor = built(layers=[-2], skip_first=1, projector=ProjectorConfig(type="mlp", activation="relu"))
    expected = model.encoders["vision"].projector(hidden(model, -2)[:, 1:])
    assert torch.equal(features(model), expected)
    batch = processor({"vision": {"images": [parts.image()]}}, {"text": "<vision>?"}, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 17)
    assert model(**batch).logits.shape[1] == 17


def test_several_layers_side_by_side() -> None:
    model, _ = built(layers=[-1, -2], skip_first=1)
    projector = model.encoders["vision"].projector
    assert projector.widths[0] == 32
    side_by_side = torch.cat([hidden(model, -1)[:, 1:], hidden(model, -2)[:, 1:]], dim=-1)
    assert torch.equal(features(model), projector(side_by_side))


def test_pooling() -> None:
    """Two by two cells of the map, averaged by a loop: 1e-6."""
    model, processor = built(skip_first=1, pool=2)
    torch.manual_seed(1)
    rows = model.encoders["vision"].module(pixel_values=torch.randn(2, 3, 16, 16)).last_hidden_state[:, 1:]
    cells = rows.reshape(2, 4, 4, 16)
    pooled = [cells[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)) for y in (0, 1) for x in (0, 1)]
    expected = model.encoders["vision"].projector(torch.stack(pooled, 1))
    assert (features(model) - expected).abs().max() < 1e-6
    batch = processor({"vision": {"images": [parts.image()]}}, {"text": "<vision>?"}, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 5)


def test_callbacks_by_name() -> None:
    """The same composition out of registered callbacks as out of the short fields."""
    short, _ = built(layers=[-2], skip_first=1, pool=2)
    long, _ = built(
        callbacks={
            "preprocess": [NamedConfig(name="output_hidden_states")],
            "postprocess_module": [
                NamedConfig(name="select_features", arguments={"layers": [-2], "skip_first": 1}),
                NamedConfig(name="average_pool", arguments={"size": 2}),
            ],
        }
    )
    assert torch.equal(features(short), features(long))


def test_what_was_built_is_saved_and_loaded(tmp_path: Path) -> None:
    """With chained callbacks, bit-equal."""
    model, _ = built(layers=[-2], skip_first=1, pool=2)
    model.save_pretrained(tmp_path)
    assert torch.equal(features(model), features(type(model).from_pretrained(tmp_path)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes_are_per_part(dtype: str) -> None:
    model, _ = built(dtype=dtype)
    assert {p.dtype for p in model.encoders["vision"].module.parameters()} == {getattr(torch, dtype)}
    assert model.dtype is torch.float32


def test_attention_implementation() -> None:
    model, _ = built(attn_implementation="eager")
    assert model.encoders["vision"].module.config._attn_implementation == "eager"


def test_special_tokens_and_vocabulary_are_the_tokenizers() -> None:
    model, processor = built()
    assert model.get_input_embeddings().weight.shape[0] == 259
    assert model.config.text_config.eos_token_id == processor.llm_tokenizer.eos_token_id
    assert processor.token_ids["vision"] == 259


def test_added_tokens_get_rows(tmp_path: Path) -> None:
    """In a pretrained table as many rows more as there are tokens; the mark still lies beyond it."""
    parts.llama().save_pretrained(tmp_path)
    parts.tokenizer().save_pretrained(tmp_path)
    text = LanguageModelConfig(path=str(tmp_path), added_tokens=["<here>", "<there>"])
    vision = EncoderConfig(config=VISION, processor=PROCESSOR)
    model, processor = build_model(ModelConfig(encoders={"vision": vision}, language_model=text))
    assert model.get_input_embeddings().weight.shape[0] == 261
    assert processor.llm_tokenizer.convert_tokens_to_ids(["<here>", "<there>", "<vision>"]) == [259, 260, 261]


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_average_pool_of_a_sequence_and_of_windows_that_stick_out() -> None:
    """Against means by hand; ragged lists too."""
    rows = torch.arange(10.0).reshape(1, 5, 2)
    expected = torch.stack([rows[0, :2].mean(0), rows[0, 2:4].mean(0), rows[0, 4]])
    pool = AveragePool(size=2, square=False)
    assert torch.allclose(pool({}, rows)[0], expected)
    assert torch.allclose(pool({}, [rows[0], rows[0, :3]])[1], torch.stack([rows[0, :2].mean(0), rows[0, 2]]))
    square = torch.arange(9.0).reshape(1, 9, 1)
    assert AveragePool(size=2)({}, square).flatten().tolist() == [2.0, 3.5, 6.5, 8.0]
    with pytest.raises(ArgumentError, match=r"5 rows are no square map; leave out a class token"):
        AveragePool(size=2)({}, rows)


def test_chains_are_described_with_their_callbacks() -> None:
    chain = Chain(callbacks=(SelectFeatures(layers=(-2,), skip_first=1), AveragePool(size=2)))
    assert registered.build(registered.describe(chain)) == chain
    assert registered.describe(Chain(callbacks=(OutputHiddenStates(), print))) is None


@pytest.mark.parametrize(
    "description, message",
    [
        ({"name": "pol", "arguments": {}}, "unknown callback 'pol'; known callbacks: output_hidden_states"),
        ({"name": "average_pool", "arguments": {"siz": 1}}, "unknown argument 'siz'; known: size, square"),
    ],
)
def test_unknown_callbacks_are_named(description: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        registered.build(description)


def test_what_a_config_cannot_mean_is_refused() -> None:
    """Misspelt arguments, sizes that make no sense, layers and rows that are not there: named, not tracebacks."""
    for changes, message in (
        ({"config": {**VISION, "num_hidden_layer": 3}}, r"has no 'num_hidden_layer'; did you mean 'num_hidden_layers'"),
        ({"config": {**VISION, "hidden_size": 17}}, r"hidden.size.*17"),
        ({"config": {"model_type": "clipp"}}, r"model_type 'clipp' cannot be configured so"),
        ({"layers": [9]}, r"there is no layer 9; there are 0 to 2"),
        ({"skip_first": 99}, r"skip_first=99\) leaves nothing of 17 rows"),
    ):
        with pytest.raises(ArgumentError, match=message):
            features(built(**changes)[0])
    text = LanguageModelConfig(config={**TEXT, "vocab_size": 100}, tokenizer="bytes")
    with pytest.raises(ArgumentError, match="vocab_size is 100, but the tokenizer has 259 tokens"):
        build_model(ModelConfig(language_model=text))


# --- single parts out of checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    sizes = {**SMALL, "projection_dim": 16}
    config = CLIPConfig(vision_config={**VISION, **sizes}, text_config={**sizes, "vocab_size": 64}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    parts.clip_processor().save_pretrained(folder)
    return folder


def test_the_tower_of_a_checkpoint_of_two(clip: Path) -> None:
    """For any key, since only one tower is no text's; every weight is the checkpoint's."""
    encoder = loading.load_encoder("vision", clip)
    assert isinstance(encoder, CLIPVisionModel)
    whole = CLIPModel.from_pretrained(clip).vision_model.state_dict()
    inside = encoder.state_dict()
    assert all(
        torch.equal(inside[name if name in inside else f"vision_model.{name}"], value) for name, value in whole.items()
    )
    assert type(loading.load_encoder("camera", clip)) is CLIPVisionModel
    assert type(loading.load_encoder("vision", clip, "CLIPVisionModelWithProjection")).__name__.endswith("Projection")
    assert loading.load_processor(encoder, clip).crop_size["height"] == 16


def test_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    whole = WhisperModel(config)
    whole.save_pretrained(tmp_path)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    encoder = loading.load_encoder("audio", tmp_path)
    assert type(encoder).__name__ == "WhisperEncoder"
    expected = whole.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    assert isinstance(loading.load_processor(encoder, tmp_path), WhisperFeatureExtractor)
    from_scratch = loading.make_encoder({"model_type": "whisper", **config.to_diff_dict()})
    assert type(from_scratch).__name__ == "WhisperEncoder"


def test_of_several_towers_the_one_named_like_the_modality() -> None:
    """And where none is named so, an error that says what there is."""
    config = Qwen2_5OmniThinkerConfig()
    assert type(loading._tower_config("audio", config, "x")).__name__ == "Qwen2_5OmniAudioEncoderConfig"
    assert type(loading._tower_config("vision", config, "x")).__name__ == "Qwen2_5OmniVisionEncoderConfig"
    with pytest.raises(ArgumentError, match=r"several towers .* none is for 'camera' by name.*class_name"):
        loading._tower_config("camera", config, "x")


def test_a_checkpoint_of_another_class_is_refused(tmp_path: Path) -> None:
    """Its weights would be random."""
    parts.llama().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"has no weights for .* of a GPT2LMHeadModel"):
        loading.load_language_model(tmp_path, "GPT2LMHeadModel")


def test_what_cannot_be_loaded_is_named(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(MissingFileError, match="nobody/nothing is no folder with a model"):
        loading.load_encoder("vision", "nobody/nothing")
    with pytest.raises(ArgumentError, match="cannot be loaded as AutoModelForCausalLM"):
        loading.load_language_model(clip)
    with pytest.raises(ArgumentError, match="has no class 'NoModel'"):
        loading.load_encoder("vision", clip, "NoModel")
    parts.llama().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"has no processor for CLIPVisionModel"):
        loading.load_processor(loading.load_encoder("vision", clip), tmp_path)
    with pytest.raises(ArgumentError, match=r"tokenizer must be given"):
        build_model(ModelConfig(language_model=LanguageModelConfig(config=TEXT)))
    with pytest.raises(ArgumentError, match=r"needs a processor"):
        built(processor={})


# --- finished models, and parts of them -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return MADE["llava"](tmp_path_factory.mktemp("llava"))


def test_a_finished_model(llava: Any) -> None:
    """Of Hugging Face's, by its folder: the original's logits on its own processor's inputs, and its template."""
    model, processor = build_model(ModelConfig(path=str(llava.folder)))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(chat)
    assert text == llava.processor.apply_chat_template(chat)
    batch = processor({"vision": {"images": [parts.image()]}}, {"text": text}, return_tensors="pt")
    expected = llava.model(**llava.processor(text=[text], images=[parts.image()], return_tensors="pt")).logits
    found = model.eval()(**batch).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    model, _ = build_model(ModelConfig(path=str(llava.folder), dtype="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(MissingFileError, match="nobody/nothing is no folder with a model, and no name on the hub"):
        build_model(ModelConfig(path="nobody/nothing"))
    with pytest.raises(ArgumentError, match="dtype: is for a `path`"):
        ModelConfig(language_model=LanguageModelConfig(config=TEXT), dtype="bfloat16")


def test_a_projector_of_another_model(llava: Any) -> None:
    """Encoder, projector and language model of three places; its weights, and both widths if they differ."""
    vision = {"config": VISION, "processor": PROCESSOR}
    projector = ProjectorConfig(path=str(llava.folder))
    text = LanguageModelConfig(config={**TEXT, "hidden_size": 24}, tokenizer="bytes")
    model, _ = build_model(
        ModelConfig(encoders={"vision": EncoderConfig(**vision, projector=projector)}, language_model=text)
    )
    expected = llava.model.model.multi_modal_projector.linear_1.weight
    assert torch.equal(model.encoders["vision"].projector.projection[0].weight, expected)
    assert model.manifest["vision_projector"]["path"] == str(llava.folder)
    with pytest.raises(
        ArgumentError, match=r"leads from width 16 to 24; here the encoder .* yields width 16, .* in width 16"
    ):
        built(projector=projector)
    with pytest.raises(ArgumentError, match=r"leads from width 16 to 24; here the encoder .* yields width 32"):
        built(projector=projector, layers=[0, 1])
    with pytest.raises(ArgumentError, match="path: a loaded projector has a `type`"):
        built(projector=ProjectorConfig(path="x", type="mlp"))
