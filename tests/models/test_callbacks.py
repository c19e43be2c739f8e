"""Ready-made callbacks, against transformers' own functions; and the widths they say they make."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.aya_vision.modeling_aya_vision import AyaVisionMultiModalProjector
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel
from transformers.models.llama4.modeling_llama4 import pixel_shuffle
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from cornstarch import (
    ArgumentError,
    AveragePool,
    Chain,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    OutputHiddenStates,
    PixelShuffle,
    SelectFeatures,
    StackRows,
    build_model,
    parse_config,
)
from cornstarch.models.multimodal_language_model import callbacks
from tests import parts, tiny

# --- PixelShuffle -----------------------------------------------------------------------------------------------------

# What each does to rows (N, side^2, width), by a scale.
REFERENCES: dict[str, Any] = {
    "idefics3": lambda rows, side, scale: Idefics3Connector.pixel_shuffle(None, rows, scale),
    "smolvlm": lambda rows, side, scale: SmolVLMConnector.pixel_shuffle(None, rows, scale),
    "internvl": lambda rows, side, scale: InternVLModel.pixel_shuffle(
        None, rows.unflatten(1, (side, side)), scale_factor=1 / scale
    ).flatten(1, 2),
    "llama4": lambda rows, side, scale: pixel_shuffle(rows, 1 / scale),
    "aya": lambda rows, side, scale: AyaVisionMultiModalProjector.pixel_shuffle(
        SimpleNamespace(downsample_factor=scale), rows
    ).flatten(1, 2),
}


@pytest.mark.parametrize("side, scale", [(4, 2), (8, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("reference", REFERENCES)
def test_pixel_shuffle_is_transformers_own(reference: str, side: int, scale: int) -> None:
    """Bit-equal to what each model does between its tower and its projector."""
    rows = torch.randn(2, side**2, 5)
    assert torch.equal(PixelShuffle(scale=scale)({}, rows), REFERENCES[reference](rows, side, scale))


def test_pixel_shuffle_of_a_map_that_is_no_square() -> None:
    """By a loop over windows; lists and outputs that hold `last_hidden_state` too."""
    shuffle = PixelShuffle(scale=2, size=(2, 6))
    rows = torch.randn(3, 12, 4)
    cells = rows.reshape(3, 2, 6, 4)
    expected = torch.stack([cells[:, :, 2 * x : 2 * x + 2].flatten(1) for x in range(3)], 1)
    assert torch.equal(shuffle({}, rows), expected)
    assert torch.equal(shuffle({}, SimpleNamespace(last_hidden_state=rows)), expected)
    assert torch.equal(shuffle({}, [rows[0], rows[1]])[1], expected[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scale": 2}, r"25 rows are no square map with sides that are multiples of 2; leave out a class token"),
        ({"scale": 5, "size": (5, 10)}, r"25 rows are no map of 5 by 10"),
        ({"scale": 0}, r"needs a scale of at least 1, found 0"),
        ({"scale": 2, "size": (5, 4)}, r"size is \(rows, columns\), multiples of the scale 2; found \(5, 4\)"),
    ],
)
def test_pixel_shuffle_says_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PixelShuffle(**arguments)({}, torch.zeros(1, 25, 2))


# --- StackRows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, size", [(10, 5), (10, 4), (3, 5), (4, 1)])
def test_stacked_rows_stand_side_by_side(count: int, size: int) -> None:
    """Row by row, by a loop; zeros where the last window lacks rows; lists and outputs with `last_hidden_state` too."""
    stack, rows = StackRows(size=size), torch.randn(2, count, 3)
    expected = torch.zeros(2, -(-count // size), 3 * size)
    for place in range(count):
        window, slot = divmod(place, size)
        expected[:, window, 3 * slot : 3 * slot + 3] = rows[:, place]
    assert torch.equal(stack({}, rows), expected)
    assert torch.equal(stack({}, SimpleNamespace(last_hidden_state=rows)), expected)
    assert all(
        torch.equal(*pair)
        for pair in zip(stack({}, [rows[0], rows[1, :0]]), [expected[0], expected[1, :0]], strict=True)
    )
    assert stack.output_width(3) == 3 * size


def test_stacked_rows_of_sounds_of_several_lengths(tmp_path: Path) -> None:
    """Of an encoder that pads, in a batch as alone: fp64 at 1e-10; by name, and from a save."""
    stack = callbacks.build({"name": "stack_rows", "arguments": {"size": 4}})
    encoder = ModalEncoderModule(tiny.encoder("wav2vec2", torch.float64), postprocess_module_callback=stack)
    model = MultimodalModel({"audio": encoder}, tiny.language_model(dtype=torch.float64)).eval()
    module = model.encoders["audio"]
    mask = (torch.arange(100) < torch.tensor([100, 60, 35])[:, None]).long()
    sounds = torch.randn(3, 100, dtype=torch.float64) * mask
    for number, found in enumerate(module(input_values=sounds, attention_mask=mask)):
        one = slice(number, number + 1)
        tiny.assert_near(found, module(input_values=sounds[one], attention_mask=mask[one])[0])
    model.save_pretrained(tmp_path)
    assert MultimodalModel.from_pretrained(tmp_path).encoders["audio"].postprocess_module_callback == stack
    with pytest.raises(ArgumentError, match="needs a size of at least 1, found 0"):
        StackRows(size=0)


# --- inputs of several lengths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("projector", ["linear", "resampler"])
@pytest.mark.parametrize("chained", [False, True])
def test_windows_hold_neither_padding_nor_another_input(projector: str, chained: bool) -> None:
    """Rows of padded sounds and of packed images, pooled: in a batch as alone, and as means by hand: fp64 at 1e-10."""
    pool: Any = AveragePool(size=2, square=False)
    pool = Chain(callbacks=(pool,)) if chained else pool
    sounds = torch.randn(3, 100, dtype=torch.float64)
    mask = (torch.arange(100) < torch.tensor([100, 60, 35])[:, None]).long()
    grid = torch.tensor([[1, 4, 4], [1, 2, 4], [1, 2, 6]])
    patches = torch.randn(36, 3 * 2 * 4 * 4, dtype=torch.float64)
    split = torch.split(patches, grid.prod(-1).tolist())
    for family, together, alone in (
        (
            "wav2vec2",
            {"input_values": sounds * mask, "attention_mask": mask},
            [{"input_values": (sounds * mask)[i : i + 1], "attention_mask": mask[i : i + 1]} for i in range(3)],
        ),
        (
            "qwen2-vl",
            {"hidden_states": patches, "grid_thw": grid},
            [{"hidden_states": rows, "grid_thw": cells[None]} for rows, cells in zip(split, grid, strict=True)],
        ),
    ):
        encoder = ModalEncoderModule(tiny.encoder(family, torch.float64), postprocess_module_callback=pool)
        lm = tiny.language_model(dtype=torch.float64)
        encoder.make_projector(32, torch.float64, projector, "gelu")
        model = MultimodalModel({"x": encoder}, lm).eval()
        module = model.encoders["x"]
        for found, arguments in zip(module(**together), alone, strict=True):
            tiny.assert_near(found, module(**arguments)[0])
        if family == "wav2vec2":
            rows = module.module(**together).last_hidden_state[2]
            count = int(module.module._get_feat_extract_output_lengths(torch.tensor(35)))
            windows = torch.stack([rows[i : min(i + 2, count)].mean(0) for i in range(0, count, 2)])
            tiny.assert_near(module(**together)[2], module.projector(windows[None])[0])


# --- widths -----------------------------------------------------------------------------------------------------------


def test_chains_compose_the_widths_that_callbacks_state() -> None:
    """Also through one of the caller's own; one that says nothing changes nothing."""

    class Halve:
        def __call__(self, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output[..., ::2]

        def output_width(self, width: int) -> int:
            return width // 2

    chain = Chain(
        callbacks=(SelectFeatures(layers=(-1, -2), skip_first=1), Halve(), lambda _, output: output, PixelShuffle())
    )
    assert chain.output_width(16) == 16 * 2 // 2 * 4
    assert callbacks.output_width(None, 16) == callbacks.output_width(AveragePool(size=2), 16) == 16
    module = ModalEncoderModule(
        parts.clip(), preprocess_callback=OutputHiddenStates(), postprocess_module_callback=chain
    )
    model = MultimodalModel({"vision": module}, parts.llama())
    assert model.encoders["vision"].projector.widths == (64, 24)
    assert model.encoders["vision"](pixel_values=torch.zeros(2, 3, 16, 16)).shape == (2, 1, 24)


CONFIG = """
model:
  encoders:
    vision:
      config: {model_type: clip_vision_model, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
               num_attention_heads: 2, image_size: 16, patch_size: 4}
      processor: {class_name: CLIPImageProcessorPil, arguments: {size: 16, crop_size: 16}}
      layers: [-1, -2]
      skip_first: 1
      callbacks: {postprocess_module: [{name: pixel_shuffle, arguments: {scale: 2, size: [4, 4]}}]}
  language_model:
    config: {model_type: llama, hidden_size: 24, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 2}
    tokenizer: bytes
training: {steps: 1}
"""


def test_pixel_shuffle_from_a_config_and_from_a_save(tmp_path: Path) -> None:
    """By name; the projector takes 2 layers x 4 rows x 16; an image is a quarter of 16 positions; bit-equal again."""
    model, processor = build_model(parse_config(CONFIG).model)
    encoder = model.eval().encoders["vision"]
    assert encoder.projector.widths == (128, 24)
    batch = processor({"vision": {"images": [parts.image()] * 2}}, {"text": ["<vision>?"] * 2}, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 5)
    states = encoder.module(pixel_values=batch["pixel_values"], output_hidden_states=True).hidden_states
    rows = torch.cat([states[-1][:, 1:], states[-2][:, 1:]], -1)
    expected = encoder.projector(Idefics3Connector.pixel_shuffle(None, rows, 2))
    assert torch.equal(encoder(pixel_values=batch["pixel_values"]), expected)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    assert loaded.encoders["vision"].postprocess_module_callback == encoder.postprocess_module_callback
    again = MultimodalProcessor.from_pretrained(tmp_path, loaded)
    same = again({"vision": {"images": [parts.image()] * 2}}, {"text": ["<vision>?"] * 2}, return_tensors="pt")
    assert torch.equal(loaded(**same).logits, model(**batch).logits)
