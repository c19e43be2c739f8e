"""How many positions an input takes: arithmetic, meta device and a real run agree with the module itself."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from cornstarch import (
    ArgumentError,
    MediaError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
)
from cornstarch.models.multimodal_language_model import feature_counts
from tests import parts

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWERS: dict[str, Callable[[], nn.Module]] = {
    "clip": parts.clip,
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL, image_size=16, patch_size=8)),
    "vit": lambda: ViTModel(ViTConfig(**SMALL, image_size=16, patch_size=8)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=16, patch_size=8)),
    "dinov2-registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SMALL, image_size=16, patch_size=8, num_register_tokens=3)
    ),
    "whisper": parts.whisper,
}


def counted(encoder: ModalEncoderModule, inputs: dict, number: int) -> list[int]:
    def process_one(index: int) -> dict:
        raise AssertionError("these inputs are not packed")

    return feature_counts.FeatureCounter().count(encoder, inputs, number, process_one)


def inputs_of(name: str, number: int) -> dict:
    shape = (number, 8, 100) if name == "whisper" else (number, 3, 16, 16)
    return {"input_features" if name == "whisper" else "pixel_values": torch.zeros(shape)}


@pytest.mark.parametrize("name", TOWERS)
def test_arithmetic_equals_the_module(name: str) -> None:
    """Every row of the table against the features the encoder module really yields."""
    encoder = ModalEncoderModule(TOWERS[name]())
    model = MultimodalModel({"x": encoder}, parts.llama())
    inputs = inputs_of(name, 2)
    assert feature_counts._by_arithmetic(encoder, inputs, 2) == [model.x_encoder(**inputs).shape[1]] * 2


@pytest.mark.parametrize("name", TOWERS)
def test_meta_equals_the_module_and_costs_nothing(name: str) -> None:
    """With a callback the module is asked: on the meta device, so no weight is read and nothing changes."""
    calls = []

    def keep_all_but_one(inputs: dict, output: object) -> torch.Tensor:
        calls.append(output.last_hidden_state.device.type)
        return output.last_hidden_state[:, 1:]

    encoder = ModalEncoderModule(TOWERS[name](), postprocess_module_callback=keep_all_but_one)
    model = MultimodalModel({"x": encoder}, parts.llama()).train()
    inputs = inputs_of(name, 3)
    counts = counted(encoder, inputs, 3)
    assert set(calls) == {"meta"}
    assert len(calls) == 1, "inputs of one shape are asked for once"
    assert encoder.module.training
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert counts == [model.x_encoder(**inputs).shape[1]] * 3


def test_a_module_that_needs_values_runs_once_for_real() -> None:
    """Its answer is remembered by shape; running it changes neither statistics nor the random stream."""

    runs = []

    class Picky(nn.Module):
        hidden_size = 16

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.layer = nn.Linear(8, 16)

        def forward(self, signal: torch.Tensor) -> torch.Tensor:
            runs.append(signal.device.type)
            rows = int(signal.abs().sum().clamp(min=2, max=2).item())
            return nn.functional.dropout(self.layer(self.norm(signal)), 0.5, self.training)[:, :rows]

    encoder = ModalEncoderModule(Picky())
    MultimodalModel({"x": encoder}, parts.llama()).train()
    before = encoder.module.norm.running_mean.clone(), torch.get_rng_state()
    counter = feature_counts.FeatureCounter()
    for _ in range(2):
        assert counter.count(encoder, {"signal": torch.ones(4, 3, 8)}, 4, lambda index: {}) == [2] * 4
    assert runs == ["meta", "cpu"], "once on the meta device, where it fails, and once for real"
    assert torch.equal(encoder.module.norm.running_mean, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_counting_while_the_model_trains_in_another_thread() -> None:
    """Losses of a training loop are the same whether or not a thread counts features meanwhile; exact."""
    encoder = ModalEncoderModule(parts.clip(), postprocess_projector_callback=lambda inputs, output: output[:, :2])
    model = MultimodalModel({"x": encoder}, parts.llama()).train()
    model.set_modality_token_ids({"x": 300})
    inputs = {"input_ids": torch.tensor([[5, 300, 300, 6]]), "pixel_values": torch.ones(1, 3, 16, 16)}
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            counted(encoder, inputs_of("clip", 1), 1)

    def losses() -> list[float]:
        return [model(**inputs, labels=inputs["input_ids"]).loss.item() for _ in range(20)]

    alone = losses()
    thread = threading.Thread(target=count)
    thread.start()
    try:
        together = losses()
    finally:
        done.set()
        thread.join()
    assert together == alone


def test_a_replaced_projector_is_asked_anew() -> None:
    """What is remembered belongs to the parts it was asked of."""
    encoder = ModalEncoderModule(parts.clip(), postprocess_projector_callback=lambda inputs, output: output[:, :2])
    MultimodalModel({"x": encoder}, parts.llama())
    counter = feature_counts.FeatureCounter()
    inputs = inputs_of("clip", 1)
    assert counter.count(encoder, inputs, 1, lambda index: {}) == [2]
    encoder.postprocess_projector_callback = lambda inputs, output: output[:, :3]
    assert counter.count(encoder, inputs, 1, lambda index: {}) == [3]


def positions(encoder: ModalEncoderModule, processor: object, **given: object) -> tuple[list[int], list[int]]:
    """Positions of each input by the processor, and features of each that the module yields for the same batch."""
    model = MultimodalModel({"x": encoder}, parts.llama()).eval()
    made = MultimodalProcessor({"x": processor}, parts.tokenizer(), model)
    number = len(next(iter(given.values())))
    text = {"text": ["a<x>"] * number, "padding": True}
    batch = made({"x": given}, text, return_tensors="pt")
    model(**batch)
    own = {"x_attention_mask": "attention_mask", "input_values": "input_values", "pixel_values": "pixel_values"}
    features = encoder(**{name: batch[given] for given, name in own.items() if given in batch})
    return (batch["input_ids"] == made.token_ids["x"]).sum(-1).tolist(), [len(rows) for rows in features]


def speech(lengths: list[int], **options: object) -> dict:
    return {"raw_speech": [parts.sound(n) for n in lengths], "sampling_rate": 16000, **options}


@pytest.mark.parametrize("lengths", [[3, 400], [9, 400], [10, 400], [400, 1], [400, 30]])
def test_sounds_shorter_than_a_kernel(lengths: list[int]) -> None:
    """No position, in processor and module; the longer sound has what it has alone."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    found, yielded = positions(ModalEncoderModule(parts.wav2vec2()), extractor, **speech(lengths, padding=True))
    alone, _ = positions(ModalEncoderModule(parts.wav2vec2()), extractor, **speech([400], padding=True))
    assert found == yielded
    assert [count for length, count in zip(lengths, found, strict=True) if length == 400] == alone
    assert all(count == 0 for length, count in zip(lengths, found, strict=True) if length < 20)


def test_sounds_of_which_none_is_long_enough() -> None:
    """The module could not run on them; padded far enough it can, and yields nothing."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    with pytest.raises(MediaError, match="length 3 are too short for Wav2Vec2Model"):
        positions(ModalEncoderModule(parts.wav2vec2()), extractor, **speech([3, 2], padding=True))
    padded = speech([3, 2], padding="max_length", max_length=100)
    assert positions(ModalEncoderModule(parts.wav2vec2()), extractor, **padded) == ([0, 0], [0, 0])


def test_tiles_of_an_image_count_together() -> None:
    """LLaVA-NeXT's shape: (images, tiles, 3, H, W), flattened before the encoder; 3 tiles of 5 rows."""

    class Tiling:
        def __call__(self, images: list, return_tensors: str | None = None) -> dict:
            return {"pixel_values": torch.randn(len(images), 3, 3, 16, 16)}

    def flatten(inputs: dict) -> dict:
        return {**inputs, "pixel_values": inputs["pixel_values"].flatten(0, 1)}

    encoder = ModalEncoderModule(parts.clip(), preprocess_callback=flatten)
    found, yielded = positions(encoder, Tiling(), images=[parts.image(), parts.image()])
    assert found == [15, 15]
    assert sum(yielded) == 30


class Halve(nn.Module):
    """A layer of somebody's own in a tower that is known."""

    def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return hidden[:, ::2]


def half_by_hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output[:, ::2]


def with_own_layer(encoder: ModalEncoderModule) -> None:
    encoder.module.encoder.layers[1] = Halve()


ALTERATIONS: dict[str, Callable[[ModalEncoderModule], object]] = {
    "layer-hook": lambda encoder: encoder.module.encoder.layers[0].register_forward_hook(half_by_hook),
    "layer-pre-hook": lambda encoder: encoder.module.encoder.layers[0].register_forward_pre_hook(
        lambda module, inputs: (inputs[0][:, ::2], *inputs[1:])
    ),
    "projector-hook": lambda encoder: encoder.projector.projection.register_forward_hook(half_by_hook),
    "own-layer": with_own_layer,
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_what_was_put_inside_is_counted(name: str) -> None:
    """Hooks and layers that change the number of rows: 3 of 5, as the module yields."""
    config = MultimodalProjectorConfig({"hidden_size": 16}, {"hidden_size": 24})
    encoder = ModalEncoderModule(parts.clip(), MultimodalProjector(config))
    ALTERATIONS[name](encoder)
    assert positions(encoder, parts.clip_processor(), images=[parts.image()]) == ([3], [3])


class Ratio:
    def __init__(self) -> None:
        self.ratio = 1

    def __call__(self, inputs: dict, output: torch.Tensor) -> torch.Tensor:
        return output[:, :: self.ratio]

    def method(self, inputs: dict, output: torch.Tensor) -> torch.Tensor:
        return self(inputs, output)


class RatioModule(nn.Module):
    ratio = 1

    def forward(self, *given: object) -> torch.Tensor:
        return given[-1][:, :: self.ratio]


@pytest.mark.parametrize("kind", ["object", "method", "module", "closure", "projector"])
def test_counts_follow_what_is_changed_in_place(kind: str) -> None:
    """An attribute of a callback or projector, or a variable that a function encloses, changed between two calls."""
    owner = RatioModule() if kind in ("module", "projector") else Ratio()
    ratio = 1

    def closure(inputs: dict, output: torch.Tensor) -> torch.Tensor:
        return output[:, ::ratio]

    callback = {"method": getattr(owner, "method", None), "closure": closure, "projector": None}.get(kind, owner)
    projector = nn.Sequential(nn.Linear(16, 24), owner) if kind == "projector" else nn.Linear(16, 24)
    encoder = ModalEncoderModule(parts.clip(), projector, postprocess_projector_callback=callback)
    counter = feature_counts.FeatureCounter()
    inputs = inputs_of("clip", 1)
    assert counter.count(encoder, inputs, 1, lambda index: {}) == [5]
    owner.ratio = ratio = 2
    assert counter.count(encoder, inputs, 1, lambda index: {}) == [3]


def qwen_tower() -> Qwen2VisionTransformerPretrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2_vl").vision_config
    config.depth, config.embed_dim, config.hidden_size, config.num_heads, config.patch_size = 1, 16, 16, 2, 4
    return Qwen2VisionTransformerPretrainedModel(config)


def grid_processor(images: list, return_tensors: str | None = None) -> dict:
    grids = torch.tensor([[1, image.height // 4, image.width // 4] for image in images])
    return {"pixel_values": torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grids}


class GridProcessor:
    """Cuts images into 4 x 4 patches, as towers with a grid take them; sizes must be multiples of 8."""

    def __call__(self, images: list, return_tensors: str | None = None) -> dict:
        return grid_processor(images)


@pytest.mark.parametrize("with_callback", [False, True], ids=["arithmetic", "one-by-one"])
def test_packed_towers(with_callback: bool) -> None:
    """A tower with a grid: merged rows per image, alone and together; the batch runs, images of one sample or two."""
    callback = (lambda inputs, output: output) if with_callback else None
    encoder = ModalEncoderModule(qwen_tower(), postprocess_projector_callback=callback)
    model = MultimodalModel({"vision": encoder}, parts.llama()).eval()
    processor = MultimodalProcessor({"vision": GridProcessor()}, parts.tokenizer(), model)
    sizes = [(8, 8), (16, 8), (16, 24)]
    batch = processor(
        encoder_inputs={"vision": {"images": [parts.image(width, height) for width, height in sizes]}},
        llm_inputs={"text": ["<vision>a<vision>", "<vision>"], "padding": True},
        return_tensors="pt",
    )
    assert (batch["input_ids"] == processor.token_ids["vision"]).sum(-1).tolist() == [1 + 2, 6]
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
    model(**batch)
    swapped = batch["input_ids"].flip(0)
    with pytest.raises(ArgumentError, match="first sample that disagrees is 0"):
        model(**{**batch, "input_ids": swapped})


def test_features_that_cannot_be_told_apart() -> None:
    """Packed rows that depend on what else is in the batch: the caller is asked for a function."""

    class Packs(nn.Module):
        hidden_size = 16

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.new_zeros(rows.shape[0] ** 2, 16)

    class Processor:
        def __call__(self, signals: list, return_tensors: str | None = None) -> dict:
            return {"rows": torch.zeros(sum(len(signal) for signal in signals), 4)}

    model = MultimodalModel({"x": ModalEncoderModule(Packs())}, parts.llama())
    processor = MultimodalProcessor({"x": Processor()}, parts.tokenizer(), model)
    with pytest.raises(ArgumentError, match="num_feature_calculation_funcs"):
        processor(encoder_inputs={"x": {"signals": [np.zeros(2), np.zeros(3)]}}, llm_inputs={"text": "<x><x>"})


def test_auto_model_is_no_special_case() -> None:
    """A tower from `AutoModel` that no table knows (BEiT): the processor counts what the model yields."""
    config = AutoConfig.for_model("beit", **SMALL, image_size=16, patch_size=8)
    model = MultimodalModel({"vision": ModalEncoderModule(AutoModel.from_config(config))}, parts.llama())
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), model)
    batch = processor(
        encoder_inputs={"vision": {"images": [parts.image()]}}, llm_inputs={"text": "<vision>"}, return_tensors="pt"
    )
    assert batch["input_ids"].shape == (1, 5)
    model(**batch)
