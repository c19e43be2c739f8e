"""One modality's encoder: order of callbacks, what an encoder may be, what its output may look like."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    MllamaVisionModel,
    MobileNetV1Config,
    MobileNetV1Model,
    MobileViTConfig,
    MobileViTModel,
    Sam2VisionModel,
    SamVisionConfig,
    SamVisionModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

from cornstarch import (
    ArgumentError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProjector,
    MultimodalProjectorConfig,
    OutputHiddenStates,
    SelectFeatures,
)
from tests import parts, tiny
from tests.zoo.table import PATCH

IMAGE = 300


def composed(encoder: ModalEncoderModule, **kwargs: Any) -> MultimodalModel:
    model = MultimodalModel({"x": encoder}, parts.llama(), **kwargs)
    model.set_modality_token_ids({"x": IMAGE})
    return model


def ids(positions: int) -> torch.Tensor:
    return torch.tensor([[5, *[IMAGE] * positions, 6]])


# --- construction -----------------------------------------------------------------------------------------------------


def test_module_is_another_spelling_of_model() -> None:
    tower = parts.clip()
    assert ModalEncoderModule(tower).module is ModalEncoderModule(module=tower).module is tower
    assert ModalEncoderModule(tower).config is tower.config


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"model": parts.clip(), "module": parts.clip()},
        {"model": "clip"},
        {"model": parts.clip(), "projector": 3},
        {"model": parts.clip(), "additional_args": "image_sizes"},
    ],
)
def test_arguments_that_make_no_encoder(arguments: dict) -> None:
    with pytest.raises(ArgumentError):
        ModalEncoderModule(**arguments)


@pytest.mark.parametrize("kind, modules", [("linear", 1), ("mlp", 3)])
def test_missing_projectors_are_made(kind: str, modules: int) -> None:
    """From the encoder's width to the embeddings', of the kind and activation asked for."""
    model = composed(ModalEncoderModule(parts.clip()), init_projector_type=kind, init_activation="silu")
    projection = model.x_encoder.projector.projection
    assert (1 if isinstance(projection, nn.Linear) else len(projection)) == modules
    assert model.x_encoder.projector(torch.zeros(2, 16)).shape == (2, 24)
    assert modules == 1 or torch.equal(projection[1](torch.ones(1)), nn.functional.silu(torch.ones(1)))


@pytest.mark.parametrize("arguments", [{"projection_type": "qformer"}, {"activation": "gelo"}])
def test_unknown_projector_names_list_the_known_ones(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"linear, mlp|gelu, .*silu"):
        MultimodalProjectorConfig(**arguments)
    renamed = {f"init_{'projector_type' if 'type' in name else name}": value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=r"linear, mlp|gelu, .*silu"):
        composed(ModalEncoderModule(parts.clip()), **renamed)


@pytest.mark.parametrize("widths", [(16, 25), (15, 24)])
def test_a_projector_that_does_not_fit(widths: tuple[int, int]) -> None:
    """Both sizes are in the message."""
    found, expected = next(pair for pair in zip(widths, (16, 24), strict=True) if pair[0] != pair[1])
    for module in (nn.Linear(*widths), nn.Sequential(nn.Linear(widths[0], 8), nn.GELU(), nn.Linear(8, widths[1]))):
        with pytest.raises(ValueError, match=f"'x'.*{found}.*{expected}"):
            composed(ModalEncoderModule(parts.clip(), MultimodalProjector(None, module)))


def test_projector_config_states_widths_or_says_so() -> None:
    config = MultimodalProjectorConfig(parts.clip().config, parts.llama().config)
    assert (config.in_features, config.out_features) == (16, 24)
    with pytest.raises(ArgumentError, match="encoder_config"):
        MultimodalProjector(MultimodalProjectorConfig(None, parts.llama().config))
    with pytest.raises(ArgumentError, match="or a projection module"):
        MultimodalProjector(None)


# --- the order of a forward pass --------------------------------------------------------------------------------------


def test_callbacks_run_in_order_with_the_encoders_inputs() -> None:
    """preprocess, encoder, module callback, projector, projector callback; extra arguments stop before the encoder."""
    order: list[str] = []

    def before(inputs: dict) -> dict:
        order.append("preprocess")
        assert set(inputs) == {"pixel_values", "crops"}
        return {**inputs, "pixel_values": inputs["pixel_values"] * inputs["crops"]}

    def between(inputs: dict, output: BaseModelOutput) -> torch.Tensor:
        order.append("module")
        assert inputs["crops"] == 2
        return output.last_hidden_state[:, :3]

    def after(inputs: dict, output: torch.Tensor) -> torch.Tensor:
        order.append("projector callback")
        assert output.shape == (1, 3, 24)
        return output[:, :2]

    encoder = ModalEncoderModule(
        parts.clip(),
        additional_args=("crops",),
        preprocess_callback=before,
        postprocess_module_callback=between,
        postprocess_projector_callback=after,
    )
    model = composed(encoder).eval()
    for name in ("module", "projector"):
        model.x_encoder.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(f"<{name}>"))
    pixels = torch.randn(1, 3, 16, 16)
    found = model(input_ids=ids(2), pixel_values=pixels, crops=2).logits
    assert order == ["preprocess", "<module>", "module", "<projector>", "projector callback"]
    features = encoder.projector(encoder.module(pixels * 2).last_hidden_state[:, :3])[:, :2]
    embeds = model.get_input_embeddings()(torch.tensor([[5, 0, 0, 6]]))
    embeds = torch.cat([embeds[:, :1], features, embeds[:, -1:]], dim=1)
    torch.testing.assert_close(found, model.language_model(inputs_embeds=embeds).logits, rtol=0, atol=1e-5)


def test_encoder_outputs_stand_between_module_callback_and_projector() -> None:
    """Given instead of the input: equal logits, and neither callback nor encoder runs."""
    calls = []
    callback = lambda inputs, output: calls.append(1) or output.last_hidden_state[:, 1:]  # noqa: E731
    model = composed(ModalEncoderModule(parts.clip(), postprocess_module_callback=callback)).eval()
    pixels = torch.randn(1, 3, 16, 16)
    expected = model(input_ids=ids(4), pixel_values=pixels).logits
    hidden = model.x_encoder.module(pixels).last_hidden_state[:, 1:]
    found = model(input_ids=ids(4), encoder_outputs={"x": hidden}).logits
    assert torch.equal(found, expected)
    assert len(calls) == 1


def test_the_packages_callbacks() -> None:
    """Layers and rows are those that Hugging Face numbers; asking without hidden states says what is missing."""
    tower = parts.clip().eval()
    pixels = torch.randn(1, 3, 16, 16)
    states = tower(pixels, output_hidden_states=True)
    one = SelectFeatures(layers=(-2,), skip_first=1)({}, states)
    assert torch.equal(one, states.hidden_states[-2][:, 1:])
    two = SelectFeatures(layers=(0, -1))({}, states)
    assert torch.equal(two, torch.cat([states.hidden_states[0], states.hidden_states[-1]], dim=-1))
    assert torch.equal(SelectFeatures(skip_first=1)({}, states), states.last_hidden_state[:, 1:])
    assert OutputHiddenStates()({"a": 1}) == {"a": 1, "output_hidden_states": True}
    with pytest.raises(ArgumentError, match="OutputHiddenStates"):
        SelectFeatures(layers=(-2,))({}, tower(pixels))


# --- what an encoder may be -------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A module of the user's own, with the output in one of several forms."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 16)
        self.form = form

    def forward(self, readings: torch.Tensor) -> Any:
        rows = self.layer(readings)
        return {"tensor": rows, "tuple": (rows, None), "output": BaseModelOutput(rows), "list": list(rows)}[self.form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "output", "list"])
def test_plain_modules_and_forms_of_output(form: str) -> None:
    """The same features whatever form the hidden states come in, 1e-5: a list is projected input by input."""
    module = Plain(form)
    module.hidden_size = 16
    encoder = ModalEncoderModule(module)
    model = composed(encoder)
    readings = torch.randn(2, 3, 4)
    features = encoder(readings=readings)
    rows = torch.cat(features) if form == "list" else features.flatten(0, 1)
    expected = encoder.projector(module.layer(readings)).flatten(0, 1)
    assert (rows - expected).abs().max() <= 1e-5 * expected.abs().max()
    model(input_ids=ids(6), readings=readings)


def test_a_plain_module_with_a_projector_needs_no_width() -> None:
    model = composed(ModalEncoderModule(Plain(), MultimodalProjector(None, nn.Linear(16, 24))))
    model(input_ids=ids(3), readings=torch.randn(1, 3, 4))


def test_a_plain_module_without_width_or_projector() -> None:
    with pytest.raises(ValueError, match=r"'x'.*Plain.*hidden_size"):
        composed(ModalEncoderModule(Plain()))


def test_one_vector_an_input() -> None:
    """A pooled output is one position per input."""

    class Pooled(Plain):
        hidden_size = 16

        def forward(self, readings: torch.Tensor) -> torch.Tensor:
            return self.layer(readings).mean(1)

    model = composed(ModalEncoderModule(Pooled()))
    model(input_ids=torch.cat([ids(1), ids(1)]), readings=torch.randn(2, 3, 4))


def test_an_output_without_hidden_states() -> None:
    class Nothing(Plain):
        hidden_size = 16

        def forward(self, readings: torch.Tensor) -> None:
            return None

    with pytest.raises(ArgumentError, match=r"Nothing gave NoneType.*hidden states"):
        composed(ModalEncoderModule(Nothing()))(input_ids=ids(1), readings=torch.randn(1, 3, 4))


@pytest.mark.parametrize("name", ["sam", "convnext"])
def test_maps_are_rows_in_row_major_order(name: str) -> None:
    """4-D maps (N, D, H, W): feature h * W + w is the projection of the map at (h, w); fp32, 1e-5."""
    if name == "sam":
        tower = SamVisionModel(
            SamVisionConfig(
                hidden_size=16,
                output_channels=12,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                mlp_dim=16,
                window_size=2,
                global_attn_indexes=[0],
                num_pos_feats=8,
            )
        )
    else:
        tower = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=4))
    encoder = ModalEncoderModule(tower)
    model = composed(encoder).eval()
    pixels = torch.randn(2, 3, 32, 32)
    maps = tower(pixels).last_hidden_state
    assert maps.dim() == 4
    features = encoder(pixel_values=pixels)
    width = maps.shape[-1]
    for h, w in ((0, 1), (1, 0), (maps.shape[2] - 1, width - 1)):
        torch.testing.assert_close(
            features[1, h * width + w], encoder.projector(maps[1, :, h, w]), rtol=1e-5, atol=1e-5
        )
    model(input_ids=ids(2 * features.shape[1]), pixel_values=pixels)


def test_maps_that_are_not_square() -> None:
    """Rows of a 2 x 3 map equal an explicit loop over height, then width; exact."""
    encoder = ModalEncoderModule(tiny.encoder("convnext"), MultimodalProjector(None, nn.Identity()))
    pixels = torch.randn(2, 3, 16, 24)
    maps = encoder.eval().module(pixels).last_hidden_state
    assert maps.shape[2:] == (2, 3)
    loop = torch.stack([torch.stack([image[:, h, w] for h in range(2) for w in range(3)]) for image in maps])
    assert torch.equal(encoder(pixel_values=pixels), loop)


class ChannelsLast(nn.Module):
    """A convolution whose map has its width last; nothing but the projector says how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.convolution(pixel_values).permute(0, 2, 3, 1)


def test_the_projector_says_which_axis_of_a_map_is_the_width() -> None:
    """A map (N, H, W, 8) before Linear(8, 24): position h * W + w is the projection of the map there; 1e-5."""
    tower, linear = ChannelsLast(), nn.Linear(8, 24)
    model = composed(ModalEncoderModule(tower, MultimodalProjector(None, linear))).eval()
    pixels = torch.randn(2, 3, 4, 5)
    expected = torch.stack(
        [
            torch.stack([linear(tower.convolution(image)[:, h, w]) for h in range(4) for w in range(5)])
            for image in pixels
        ]
    )
    torch.testing.assert_close(model.x_encoder(pixel_values=pixels), expected, rtol=1e-5, atol=1e-5)


def test_a_map_that_does_not_show_its_width_is_an_error() -> None:
    """8 x 8 pixels of width 8: either axis may be it, so nothing is guessed; neither with no width known at all."""
    model = composed(ModalEncoderModule(ChannelsLast(), MultimodalProjector(None, nn.Linear(8, 24))))
    with pytest.raises(ArgumentError, match=r"ChannelsLast.*\(2, 8, 8, 8\).*\(inputs, positions, width\)"):
        model.x_encoder(pixel_values=torch.randn(2, 3, 8, 8))
    with pytest.raises(ArgumentError, match=r"takes width 8.*\(2, 4, 4, 9\)"):
        model.x_encoder.project(torch.randn(2, 4, 4, 9))
    unknown = ModalEncoderModule(ChannelsLast(), MultimodalProjector(None, nn.Identity()))
    with pytest.raises(ArgumentError, match="do not show"):
        unknown(pixel_values=torch.randn(1, 3, 4, 4))


def test_a_square_of_a_known_type() -> None:
    """ConvNeXt has the width behind the inputs even where a map is as wide as it is high; exact."""
    tower = ConvNextModel(ConvNextConfig(hidden_sizes=[8], depths=[1], num_stages=1, patch_size=4)).eval()
    encoder = ModalEncoderModule(tower, MultimodalProjector(None, nn.Linear(8, 24)))
    pixels = torch.randn(1, 3, 32, 32)
    maps = tower(pixels).last_hidden_state
    assert maps.shape == (1, 8, 8, 8)
    expected = encoder.projector(maps.permute(0, 2, 3, 1).reshape(1, 64, 8))
    assert torch.equal(encoder(pixel_values=pixels), expected)


def sam2(whole: bool) -> nn.Module:
    stages = {"embed_dim_per_stage": [8, 12], "num_attention_heads_per_stage": [1, 2], "blocks_per_stage": [1, 1]}
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[32, 32],
        num_query_pool_stages=1,
        window_size_per_stage=[4, 2],
        global_attention_blocks=[],
        window_positional_embedding_background_size=[4, 4],
        **stages,
    )
    if not whole:
        return Sam2HieraDetModel(backbone)
    config = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[12, 8],
        backbone_feature_sizes=[[8, 8], [4, 4]],
        fpn_hidden_size=16,
        fpn_top_down_levels=[0, 1],
        num_feature_levels=2,
    )
    return Sam2VisionModel(config)


def mobilevit() -> nn.Module:
    sizes = {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 20]}
    return MobileViTModel(MobileViTConfig(image_size=32, patch_size=2, num_attention_heads=2, mlp_ratio=1.0, **sizes))


def mllama() -> nn.Module:
    return MllamaVisionModel(
        MllamaVisionConfig(
            hidden_size=16,
            attention_heads=2,
            num_hidden_layers=2,
            num_global_layers=1,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
            max_num_tiles=2,
            supported_aspect_ratios=[[1, 1], [1, 2]],
            intermediate_layers_indices=[0],
            vision_output_dim=32,
        )
    )


TOWERS: dict[str, Any] = {  # tower, its width, its width last, its input
    "sam2": (lambda: sam2(True), 12, True, {"pixel_values": torch.randn(2, 3, 32, 32)}),
    "sam2-backbone": (lambda: sam2(False), 12, True, {"pixel_values": torch.randn(2, 3, 32, 32)}),
    "mobilevit": (mobilevit, 20, False, {"pixel_values": torch.randn(2, 3, 32, 32)}),
    "mllama": (
        mllama,
        32,
        True,
        {
            "pixel_values": torch.randn(2, 1, 2, 3, 16, 16),
            "aspect_ratio_ids": torch.tensor([[2], [1]]),
            "aspect_ratio_mask": torch.tensor([[[1, 1]], [[1, 0]]]),
        },
    ),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_widths_that_configs_do_not_state_plainly(name: str, given: bool) -> None:
    """Rows equal the projector on the tower's own map, moved by hand; with a projector and with one made; 1e-5."""
    make, width, last, inputs = TOWERS[name]
    torch.manual_seed(0)
    projector = MultimodalProjector(None, nn.Linear(width, 24)) if given else None
    encoder = ModalEncoderModule(make(), projector)
    model = composed(encoder).eval()
    maps = encoder.module(**inputs).last_hidden_state
    rows = maps.flatten(1, -2) if last else maps.permute(0, 2, 3, 1).flatten(1, 2)
    assert rows.shape[-1] == width
    expected = encoder.projector(rows)
    torch.testing.assert_close(encoder(**inputs), expected, rtol=1e-5, atol=1e-5)
    positions = torch.full((2, rows.shape[1]), IMAGE)
    model(input_ids=positions, **inputs)


def test_a_width_that_only_the_running_encoder_shows() -> None:
    """MobileNet's config names no width of its output; it is asked on the meta device."""
    tower = MobileNetV1Model(MobileNetV1Config(image_size=32, depth_multiplier=0.25)).eval()
    encoder = ModalEncoderModule(tower)
    composed(encoder).eval()
    assert encoder.projector.widths[0] == tower(torch.randn(1, 3, 32, 32)).last_hidden_state.shape[1]


def test_the_width_of_a_sounds_tower_with_a_projection_of_its_own() -> None:
    """Qwen2.5-Omni's audio tower yields `output_dim`, not `d_model`."""
    config = Qwen2_5OmniAudioEncoderConfig(
        d_model=16, output_dim=20, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8
    )
    encoder = ModalEncoderModule(Qwen2_5OmniAudioEncoder(config))
    composed(encoder)
    lengths = torch.tensor([100])
    rows = encoder.module(torch.randn(8, 100), feature_lens=lengths, aftercnn_lens=(lengths - 1) // 2 + 1)
    assert encoder.projector.widths[0] == rows.last_hidden_state.shape[-1] == 20


def test_a_wrapper_whose_configs_word_is_not_its_width() -> None:
    """Two layers side by side behind a config that says one layer's width: the projector is believed."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = parts.clip()
            self.config = self.tower.config

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            rows = self.tower(pixel_values).last_hidden_state
            return torch.cat([rows, rows], dim=-1)

    model = composed(ModalEncoderModule(Twice(), MultimodalProjector(None, nn.Linear(32, 24))))
    model(input_ids=ids(5), pixel_values=torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl"])
def test_merged_rows_of_packed_towers(family: str) -> None:
    """Two images of different sizes: each yields its merged rows, as the tower's own `pooler_output`; exact."""
    tower = tiny.encoder(family).eval()
    model = composed(ModalEncoderModule(tower)).eval()
    assert model.x_encoder.projector.widths == (40, 24)
    grid = torch.tensor([[1, 4, 6], [1, 2, 4]])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * PATCH**2)
    merged = model.x_encoder.projector(tower(pixels, grid_thw=grid).pooler_output)
    features = model.x_encoder(hidden_states=pixels, grid_thw=grid)
    assert [len(rows) for rows in features] == [6, 2]
    assert torch.equal(torch.cat(features), merged)

    samples = tiny.padded([[5, *[IMAGE] * 6, 6], [*[IMAGE] * 2, 7]], "left")
    found = model(**samples, pixel_values=pixels, image_grid_thw=grid).logits
    embeds = [model.get_input_embeddings()(torch.tensor([i])) for i in (5, 6)]
    alone = model.language_model(inputs_embeds=torch.cat([embeds[0], merged[:6], embeds[1]])[None]).logits
    torch.testing.assert_close(found[:1], alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="first sample that disagrees is 0"):  # the first image is in two samples
        model(**tiny.padded([[5, *[IMAGE] * 5, 6], [*[IMAGE] * 3, 7]]), pixel_values=pixels, image_grid_thw=grid)


def test_padded_sounds_are_trimmed_to_their_own_length() -> None:
    """Features of a sound in a padded batch: as many as alone; their values are the padded encoder's; exact."""
    encoder = ModalEncoderModule(parts.wav2vec2())
    model = composed(encoder).eval()
    sounds = torch.zeros(2, 400)
    sounds[0, :150], sounds[1] = torch.randn(150), torch.randn(400)
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[0, 150:] = 0
    features = encoder(input_values=sounds, attention_mask=mask)
    alone = encoder(input_values=sounds[:1, :150])
    assert [len(rows) for rows in features] == [alone.shape[1], encoder(input_values=sounds)[1].shape[0]]
    padded = encoder.projector(encoder.module(sounds, attention_mask=mask).last_hidden_state)
    assert torch.equal(features[0], padded[0, : alone.shape[1]])
    positions = sum(len(rows) for rows in features)
    model(input_ids=ids(positions), input_values=sounds, x_attention_mask=mask)


# --- wrapped, and in other dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [None, TaskType.FEATURE_EXTRACTION], ids=str)
def test_an_encoder_that_peft_wraps(task: TaskType | None) -> None:
    """The image reaches the language model, through the adapters; only they train; names are found underneath."""
    wrapped = get_peft_model(
        parts.clip(), LoraConfig(target_modules=["q_proj"], task_type=task, init_lora_weights=False)
    )
    model = composed(ModalEncoderModule(wrapped)).eval()
    assert model.x_encoder.config.hidden_size == 16
    logits = [model(input_ids=ids(5), pixel_values=torch.randn(1, 3, 16, 16)).logits for _ in range(2)]
    assert not torch.allclose(logits[0], logits[1])
    pixels = torch.randn(1, 3, 16, 16)
    before = model(input_ids=ids(5), pixel_values=pixels).logits
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(1)
    assert not torch.allclose(model(input_ids=ids(5), pixel_values=pixels).logits, before)
    model.train()(input_ids=ids(5), pixel_values=pixels, labels=ids(5)).loss.backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in wrapped.named_parameters())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "encoder_dtype, text_dtype", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_parts_of_two_dtypes(encoder_dtype: torch.dtype, text_dtype: torch.dtype, autocast: bool) -> None:
    """Forward, backward, generate, also under autocast; each gradient in its parameter's dtype."""
    encoder = ModalEncoderModule(parts.clip().to(encoder_dtype))
    model = MultimodalModel({"x": encoder}, parts.llama().to(text_dtype), init_projector_type="mlp")
    model.set_modality_token_ids({"x": IMAGE})
    assert model.dtype == text_dtype
    inputs = {"input_ids": ids(5), "pixel_values": torch.randn(1, 3, 16, 16)}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**inputs, labels=ids(5)).loss
        loss.backward()
        new = model.eval().generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.isfinite(loss)
    assert new.shape == (1, 10)
    trained = [p for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == p.dtype for p in trained)
    assert {p.dtype for p in trained} == {encoder_dtype, text_dtype}


@pytest.mark.parametrize("encoder_dtype", [torch.float32, torch.float64])
def test_features_meet_the_language_model_in_its_dtype(encoder_dtype: torch.dtype) -> None:
    """Encoder and projector keep their dtype, features enter the language model in bf16: bit-equal to it by hand."""
    model = tiny.model(tiny.encoder(dtype=encoder_dtype), tiny.language_model(dtype=torch.bfloat16)).eval()
    inputs = tiny.vision_batch(labels=False)
    hidden = model.vision_encoder.module(inputs["pixel_values"].to(encoder_dtype)).last_hidden_state
    features = model.vision_encoder.projector(hidden).to(torch.bfloat16)
    mask = inputs["input_ids"] == tiny.IMAGE
    embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(mask, 0)).clone()
    embeds[mask] = features.flatten(0, 1)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    expected = model.language_model(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], position_ids=positions
    ).logits
    found = model(**inputs).logits
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float32")])
def test_encoder_and_projector_of_two_dtypes(dtypes: tuple[str, str]) -> None:
    """What enters an encoder or a projector is cast to its dtype; bit-equal to casting by hand."""
    encoder_dtype, projector_dtype = (getattr(torch, name) for name in dtypes)
    module, projector = Plain().to(encoder_dtype), nn.Linear(16, 24).to(projector_dtype)
    encoder = ModalEncoderModule(module, MultimodalProjector(None, projector))
    readings = torch.randn(1, 3, 4, dtype=torch.float32)
    expected = projector(module.layer(readings.to(encoder_dtype)).to(projector_dtype))
    assert torch.equal(encoder(readings=readings), expected)
    model = composed(encoder)
    loss = model(input_ids=ids(3), readings=readings, labels=ids(3)).loss
    loss.backward()
    assert [module.layer.weight.grad.dtype, projector.weight.grad.dtype] == [encoder_dtype, projector_dtype]
