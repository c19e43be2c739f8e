"""Several encoders as one, against the same put together by hand: fp64 at 1e-10 of the largest entry."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from cornstarch import (
    ArgumentError,
    CheckpointError,
    ConcatenatedEncoders,
    ConcatenatedProcessor,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    PipelineTemplate,
    PixelShuffle,
    TrainsConfig,
    build_model,
    choose,
    parse_config,
    part_rows,
)
from cornstarch.models.multimodal_language_model.concatenation import _size
from tests import parts, tiny

GRID = 4  # of the first encoder's map: 16 pixels by patches of 4
F64 = torch.float64


def siglip(dtype: torch.dtype = F64, **changes: Any) -> Any:
    return tiny.encoder("siglip", dtype, vision_use_head=False, **{"image_size": 16, "patch_size": 4, **changes}).eval()


def dino(dtype: torch.dtype = F64, **changes: Any) -> Any:
    """Of another patch size, with a class token."""
    return tiny.encoder("dinov2", dtype, seed=7, **{"image_size": 16, "patch_size": 8, "hidden_size": 16, **changes})


def both(dtype: torch.dtype = F64) -> ConcatenatedEncoders:
    return ConcatenatedEncoders({"siglip": siglip(dtype), "dino": dino(dtype)}, skip_first={"dino": 1}).eval()


def model(encoders: nn.Module, dtype: torch.dtype = F64, **options: Any) -> MultimodalModel:
    torch.manual_seed(5)
    made = MultimodalModel({"vision": ModalEncoderModule(encoders, **options)}, tiny.language_model(dtype=dtype))
    made.set_modality_token_ids({"vision": tiny.IMAGE})
    return made.eval()


def pictures(count: int = 2, size: int = 16, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def batch(rows: int = GRID**2, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    return {**tiny.vision_batch(rows, dtype), "pixel_values": pictures(dtype=dtype)}


# --- features ---------------------------------------------------------------------------------------------------------


def test_rows_stand_side_by_side() -> None:
    """Two maps, the second of half the size: bilinear by PyTorch's own, then a plain concatenation."""
    encoders, pixels = both(), pictures(3)
    first = encoders.encoders["siglip"](pixels).last_hidden_state
    second = encoders.encoders["dino"](pixels).last_hidden_state[:, 1:].reshape(3, 2, 2, 16).permute(0, 3, 1, 2)
    second = functional.interpolate(second, size=(GRID, GRID), mode="bilinear", align_corners=False)
    expected = torch.cat([first, second.permute(0, 2, 3, 1).reshape(3, 16, 16)], -1)
    tiny.assert_near(encoders(pixels).last_hidden_state, expected)
    assert encoders.hidden_size == encoders.config.hidden_size == 24 + 16
    made = model(encoders)
    tiny.assert_near(made.encoders["vision"](pixel_values=pixels), made.encoders["vision"].projector(expected))


def test_three_encoders_with_layers_maps_and_images_that_are_no_square() -> None:
    """Layers of one side by side, a convolutional map, patches that do not divide the image: 24 by 16 pixels."""
    conv = tiny.encoder("convnext", F64).eval()
    small = dino(patch_size=7)
    encoders = ConcatenatedEncoders(
        {"siglip": siglip(), "conv": conv, "dino": small},
        skip_first={"dino": 1},
        layers={"siglip": [-1, -2], "dino": [-1]},
    ).eval()
    pixels = pictures(2, 24)[..., :16]
    found = encoders(pixels, siglip_interpolate_pos_encoding=True).last_hidden_state
    states = encoders.encoders["siglip"](pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    of_dino = small(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    maps = [
        torch.cat([states[-1], states[-2]], -1).reshape(2, 6, 4, 48).permute(0, 3, 1, 2),
        conv(pixels).last_hidden_state,
        of_dino.reshape(2, 3, 2, 16).permute(0, 3, 1, 2),
    ]
    maps = [functional.interpolate(one, size=(6, 4), mode="bilinear", align_corners=False) for one in maps]
    tiny.assert_near(found, torch.cat(maps, 1).flatten(2).mT)
    assert encoders.hidden_size == 48 + 24 + 16


def test_each_may_have_images_of_its_own() -> None:
    """Under its name, through the whole model; an encoder without images is named."""
    encoders = ConcatenatedEncoders({"siglip": siglip(), "dino": dino()}, skip_first={"dino": 1}).eval()
    made = model(encoders)
    small, large = pictures(2), pictures(2, 24)
    expected = torch.cat(
        [
            encoders.encoders["siglip"](small).last_hidden_state,
            functional.interpolate(
                encoders.encoders["dino"](large).last_hidden_state[:, 1:].reshape(2, 3, 3, 16).permute(0, 3, 1, 2),
                size=(4, 4),
                mode="bilinear",
            )
            .flatten(2)
            .mT,
        ],
        -1,
    )
    ids = {name: value for name, value in batch().items() if name != "pixel_values"}
    reference = made(**ids, encoder_outputs={"vision": expected}, output_logits=True).logits
    for names in (("siglip_pixel_values", "dino_pixel_values"), ("pixel_values", "vision_dino_pixel_values")):
        tiny.assert_near(made(**ids, **dict(zip(names, (small, large), strict=True))).logits, reference)
    with pytest.raises(ArgumentError, match=r"'siglip' has no images: give siglip_pixel_values, or pixel_values for"):
        made(**ids, dino_pixel_values=large)
    with pytest.raises(ArgumentError, match=r"'dino' was given pixel values of shape \(2, 9, 588\), expected \(images"):
        encoders(pictures(2), dino_pixel_values=torch.zeros(2, 9, 588))
    with pytest.raises(ArgumentError, match=r"3 images were given for 'dino', 2 for the first"):
        encoders(pictures(2), dino_pixel_values=pictures(3))


def test_callbacks_and_projectors_behind_it() -> None:
    """Pixel shuffle of the joint map: a quarter of the positions, four times the joint width."""
    made = model(both(), postprocess_module_callback=PixelShuffle(scale=2))
    assert made.encoders["vision"].projector.widths[0] == 4 * 40
    assert made.encoders["vision"](pixel_values=pictures()).shape == (2, 4, 32)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"encoders": {"a": siglip()}}, r"two encoders or more to concatenate, found 1"),
        ({"encoders": {"a": siglip(), "keys": dino()}}, r"'keys' cannot name an encoder"),
        ({"encoders": {"a": siglip(), "b-c": dino()}}, r"'b-c' cannot name an encoder"),
        ({"encoders": {"a": siglip(), "b": parts.whisper()}}, r"'b' must be one of .* pixel_values, found Whisper"),
        ({"encoders": {"a": siglip(), "b": nn.Linear(2, 2)}}, r"'b' must be one of .* pixel_values, found Linear"),
        ({"encoders": {"a": siglip(), "b": dino()}, "skip_first": {"c": 1}}, r"skip_first: there is no encoder 'c'"),
    ],
)
def test_what_cannot_be_concatenated(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ConcatenatedEncoders(**arguments)


def test_a_class_token_is_found_out() -> None:
    encoders = ConcatenatedEncoders({"siglip": siglip(), "dino": dino()})
    message = r"'dino' yields 5 rows, which are no map of an image of 16 by 16 pixels: .* \(skip_first=\{'dino': 1\}\)"
    with pytest.raises(ArgumentError, match=message):
        encoders(pictures())
    with pytest.raises(ArgumentError, match=r"take no argument 'output_hidden_states'"):
        encoders(pictures(), output_hidden_states=True)


def test_maps_are_found_by_arithmetic() -> None:
    """Every map that square patches cut out of an image, a rest left over, by trying all; and no other."""
    for height, width in itertools.product(range(4, 60, 5), repeat=2):
        for patch in range(2, min(height, width) + 1):
            h, w = height // patch, width // patch
            assert _size(h * w, height, width) == (h, w)
    assert [_size(rows, 224, 224) for rows in (256, 257, 255, 1, 2)] == [(16, 16), None, None, (1, 1), None]


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", ["", "dino", "both"])
def test_a_save_restores_it(tmp_path: Path, adapted: str) -> None:
    """Without custom_objects: classes, configs, rows, adapters on one or around both, what is frozen; bit-equal."""
    torch.manual_seed(3)
    lora = LoraConfig(r=2, target_modules=["fc1"], init_lora_weights=False)
    inner: Any = dino()
    if adapted == "dino":
        inner = get_peft_model(inner, lora).double()
    encoders: Any = ConcatenatedEncoders(
        {"siglip": siglip(), "dino": inner}, skip_first={"dino": 1}, layers={"siglip": (-2, -1)}
    )
    made = model(get_peft_model(encoders, lora).double() if adapted == "both" else encoders)
    encoders.encoders["siglip"].requires_grad_(False)
    expected = made(**batch()).logits
    made.save_pretrained(tmp_path)
    assert (tmp_path / "vision_encoder" / "encoders" / "dino" / "config.json").is_file()
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch()).logits, expected)
    assert loaded.state_dict().keys() == made.state_dict().keys()
    flags = {name: parameter.requires_grad for name, parameter in made.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == flags
    assert loaded.vision_encoder.module.layers == {"siglip": [-2, -1]}
    place = "vision_encoder.module.base_model.model" if adapted == "both" else "vision_encoder.module"
    if adapted != "both":
        again = MultimodalModel.from_pretrained(tmp_path, custom_objects={f"{place}.encoders.siglip": siglip()})
        assert torch.equal(again(**batch()).logits, expected)
    assert json.loads(made.config.to_json_string())["encoders"]["vision"]["hidden_size"] == 2 * 24 + 16


def test_names_in_a_damaged_save_reach_no_other_folder(tmp_path: Path) -> None:
    model(both()).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    description = json.loads(config.read_text())
    entry = description["encoders"]["vision"]["concatenated"]
    entry["../siglip"] = entry.pop("siglip")
    config.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"an encoder called '../siglip', which is no identifier"):
        MultimodalModel.from_pretrained(tmp_path)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_frozen_encoder_costs_nothing() -> None:
    """Beside one that trains: evaluation mode, no graph, no gradient; gradients of the other are the same."""
    encoders = both(torch.float32)
    made = model(encoders, torch.float32)
    inside = made.vision_encoder.module.encoders
    made.train({"vision": (True, True)}, llm_mode=False)
    made(**batch(dtype=torch.float32)).loss.backward()
    expected = {name: p.grad.clone() for name, p in inside["dino"].named_parameters() if p.grad is not None}
    made.zero_grad()
    inside["siglip"].requires_grad_(False)
    made.train()
    assert not any(module.training for module in inside["siglip"].modules())
    assert inside["dino"].training
    graphs: list[bool] = []
    hooks = [
        # As those put there that ask for gradients of embeddings, for checkpointing.
        inside["siglip"].embeddings.register_forward_hook(lambda module, inputs, out: out.requires_grad_(True)),
        inside["siglip"].register_forward_hook(lambda m, i, out: graphs.append(out.last_hidden_state.requires_grad)),
    ]
    made(**batch(dtype=torch.float32)).loss.backward()
    for hook in hooks:
        hook.remove()
    assert graphs == [False]
    assert all(p.grad is None for p in inside["siglip"].parameters())
    found = {name: p.grad for name, p in inside["dino"].named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    made.train(llm_mode=False)
    assert not any(module.training for module in made.vision_encoder.modules())
    made.train(llm_mode=True)
    assert all(p.requires_grad for p in inside["siglip"].parameters())


def test_adapters_go_on_each_encoder() -> None:
    """By a choice of `lora`: only they train; the report says so; a second choice leaves them as they are."""
    made = model(both(torch.float32), torch.float32).train()
    pixels = pictures(dtype=torch.float32)
    before = made.encoders["vision"](pixel_values=pixels)
    choose(made, {"vision_encoder": TrainsConfig(mode="lora", lora={"r": 2})})
    assert torch.equal(made.encoders["vision"](pixel_values=pixels), before)  # new adapters change nothing
    trained = [name for name, p in made.vision_encoder.module.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert {name.split(".")[1] for name in trained} == {"siglip", "dino"}
    assert next(row for row in part_rows(made) if row["part"] == "vision_encoder")["mode"] == "lora"
    choose(made, {"vision_encoder": TrainsConfig(mode="lora")})
    assert [name for name, p in made.vision_encoder.module.named_parameters() if p.requires_grad] == trained
    with pytest.raises(ArgumentError, match="has adapters, so mode full would train those alone"):
        choose(made, {"vision_encoder": TrainsConfig(mode="full")})


def test_gradient_checkpointing_and_pieces() -> None:
    made = model(both(torch.float32), torch.float32).train()
    pixels = pictures(dtype=torch.float32)
    gradients = []
    for enabled in (False, True):
        if enabled:
            made.gradient_checkpointing_enable()
        made.zero_grad()
        made.encoders["vision"](pixel_values=pixels).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    owners = PipelineTemplate.get_owners(made.encoders["vision"])
    assert set(owners) == {name for name, _ in made.encoders["vision"].named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    expected = both(torch.float32)(pictures(dtype=torch.float32)).last_hidden_state
    found = both(torch.float32).to(dtype)(pictures(dtype=torch.float32)).last_hidden_state
    assert found.dtype is dtype
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_each_in_a_dtype_of_its_own() -> None:
    """The second gets the images as they are, not as the first's lower precision has them: bit-equal."""
    encoders = ConcatenatedEncoders({"siglip": siglip(torch.bfloat16), "dino": dino(torch.float32)}, {"dino": 1}).eval()
    made = model(encoders, torch.float32, postprocess_module_callback=lambda _, output: output.last_hidden_state)
    pixels = pictures(dtype=torch.float32)
    expected = encoders.encoders["dino"](pixels).last_hidden_state
    seen: list[Tensor] = []
    encoders.encoders["dino"].register_forward_hook(lambda m, i, output: seen.append(output.last_hidden_state))
    made.encoders["vision"](pixel_values=pixels)
    assert torch.equal(seen[0], expected)


# --- the processor ----------------------------------------------------------------------------------------------------


def test_one_image_processor_for_all(tmp_path: Path) -> None:
    """Where sizes agree: 16 positions an image."""
    made = model(both(torch.float32), torch.float32)
    processor = MultimodalProcessor({"vision": parts.clip_processor(16)}, parts.tokenizer(), made)
    found = processor({"vision": {"images": [parts.image()]}}, {"text": "<vision>?"}, return_tensors="pt")
    assert found["input_ids"].shape == (1, 17)
    assert "pixel_values" in found


def test_each_with_its_own_image_processor(tmp_path: Path) -> None:
    """Images of 16 and 24 pixels; grey ones too; positions are the first's; saved and loaded with the model."""
    made = model(both(torch.float32), torch.float32)
    inner = {"siglip": parts.clip_processor(16), "dino": parts.clip_processor(24)}
    processor = MultimodalProcessor({"vision": ConcatenatedProcessor(inner)}, parts.tokenizer(), made)
    images = [parts.image(), parts.image(40, 20, seed=1)]
    given = {"vision": {"images": images}}, {"text": ["<vision>?", "<vision>!"]}
    found = processor(*given, return_tensors="pt")
    assert found["input_ids"].shape == (2, 17)
    for name, one in inner.items():
        assert torch.equal(found[f"{name}_pixel_values"], one(images, return_tensors="pt")["pixel_values"])
    expected = made(**found).logits
    assert expected.shape[:2] == (2, 17)
    assert processor.media_arguments["vision"] == ("images", ("vision", "image"))
    unscaled = processor(*given, return_tensors="pt", do_rescale=False)
    assert unscaled["dino_pixel_values"].max() > 10 * found["dino_pixel_values"].max()
    made.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    again = MultimodalProcessor.from_pretrained(tmp_path, loaded)(*given, return_tensors="pt")
    assert all(torch.equal(again[name], value) for name, value in found.items())
    assert torch.equal(loaded(**again).logits, expected)
    with pytest.raises(ArgumentError, match="needs an image processor for every encoder"):
        ConcatenatedProcessor({})


# --- from a config ----------------------------------------------------------------------------------------------------

SIZES = "intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2"
CONFIG = f"""
model:
  encoders:
    vision:
      concatenate:
        siglip:
          config: {{model_type: siglip_vision_model, hidden_size: 24, image_size: 16, patch_size: 4,
                   vision_use_head: false, {SIZES}}}
          processor: {{class_name: CLIPImageProcessorPil, arguments: {{size: 16, crop_size: 16}}}}
          layers: [-2]
        clip:
          config: {{model_type: clip_vision_model, hidden_size: 16, image_size: 24, patch_size: 8, {SIZES}}}
          processor: {{class_name: CLIPImageProcessorPil, arguments: {{size: 24, crop_size: 24}}}}
          skip_first: 1
      pool: 2
      projector: {{type: mlp}}
  language_model:
    config: {{model_type: llama, hidden_size: 24, num_key_value_heads: 2, {SIZES}}}
    tokenizer: bytes
training: {{steps: 1}}
"""


def test_from_a_config(tmp_path: Path) -> None:
    """Each with its own processor, since they prepare images differently; pooled: 4 positions."""
    made, processor = build_model(parse_config(CONFIG).model)
    assert isinstance(processor.encoder_processors["vision"], ConcatenatedProcessor)
    assert made.vision_encoder.projector.widths == (40, 24)
    found = processor({"vision": {"images": [parts.image()]}}, {"text": "<vision>?"}, return_tensors="pt")
    assert found["input_ids"].shape == (1, 5)
    assert made(**found).logits.shape[1] == 5
    alike = CONFIG.replace("24, patch_size: 8", "16, patch_size: 8").replace(
        "size: 24, crop_size: 24", "size: 16, crop_size: 16"
    )
    _, processor = build_model(parse_config(alike).model)
    assert not isinstance(processor.encoder_processors["vision"], ConcatenatedProcessor)
    one = "pool: 2\n      processor: {class_name: CLIPImageProcessorPil, arguments: {size: 16, crop_size: 16}}"
    with pytest.raises(ArgumentError, match=r"processor: give one for all, or one for each"):
        parse_config(CONFIG.replace("pool: 2", one))


@pytest.mark.parametrize(
    "line, message",
    [
        ("path: x", r"line 15: .*path.*goes with each of the encoders to `concatenate`, not here"),
        ("skip_first: 1", r"skip_first.*goes with each of the encoders"),
        ("dtype: bfloat16", r"dtype.*goes with each of the encoders"),
    ],
)
def test_what_goes_with_each_is_refused_beside_them(line: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_config(CONFIG.replace("pool: 2", line))
