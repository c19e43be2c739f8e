"""The resampler, against transformers' IdeficsPerceiverResampler (Flamingo's) and nn.MultiheadAttention input by input.

fp64 at 1e-10 of the largest entry.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from cornstarch import (
    ArgumentError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProcessor,
    MultimodalProjector,
    MultimodalProjectorConfig,
    PipelineTemplate,
    Resampler,
    build_model,
    parse_config,
)
from tests import parts, tiny
from tests.models.test_callbacks import CONFIG

E, D, Q, HEADS = 12, 20, 3, 2


def resampler(dtype: torch.dtype = torch.float64, layers: int = 2, activation: str = "relu") -> Any:
    torch.manual_seed(0)
    return tiny.loud(Resampler(E, D, Q, layers, HEADS, activation), dtype)


def flamingo(ours: Resampler) -> nn.Module:
    """Transformers' own with the same weights, and the linear layer behind it."""
    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False), vision_config=SimpleNamespace(embed_dim=E)
    )
    reference = IdeficsPerceiverResampler(config, E, len(ours.layers), HEADS, E // HEADS, Q).double()
    names = {
        "rows_norm": "0.context_layer_norm", "queries_norm": "0.latents_layer_norm", "query": "0.q_proj",
        "key": "0.k_proj", "value": "0.v_proj", "output": "0.output_proj", "mlp.0": "1.ln", "mlp.1": "1.fc",
        "mlp.3": "1.c_proj", "mlp.2": "1.act",
    }  # fmt: skip
    reference.latents.data.copy_(ours.queries.data)
    for layer, block in zip(ours.layers, reference.blocks, strict=True):
        for own, theirs in names.items():
            block.get_submodule(theirs).load_state_dict(layer.get_submodule(own).state_dict())
    reference.layer_norm.load_state_dict(ours.norm.state_dict())
    return nn.Sequential(reference, ours.linear)


def by_multihead_attention(ours: Resampler, rows: Tensor) -> Tensor:
    """One input (T, E) alone, by PyTorch's module for attention."""
    latents = ours.queries
    for layer in ours.layers:
        attention = nn.MultiheadAttention(E, HEADS, bias=False, dtype=rows.dtype)
        stacked = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
        attention.load_state_dict({"in_proj_weight": stacked, "out_proj.weight": layer.output.weight})
        own = layer.queries_norm(latents)
        seen = torch.cat([layer.rows_norm(rows), own])
        latents = latents + attention(own, seen, seen)[0]
        latents = latents + layer.mlp(latents)
    return ours.linear(ours.norm(latents))


# --- the module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_it_is_flamingos(layers: int) -> None:
    """Values, and gradients of the input and of every weight."""
    ours = resampler(layers=layers)
    reference = flamingo(ours)
    rows = torch.randn(4, 7, E, dtype=torch.float64, requires_grad=True)
    found, expected = ours(rows), reference(rows)
    tiny.assert_near(found, expected)
    direction = torch.randn_like(found)
    (of_rows, of_queries), (theirs_of_rows, theirs_of_queries) = (
        torch.autograd.grad((out * direction).sum(), [rows, weight])
        for out, weight in ((found, ours.queries), (expected, reference[0].latents))
    )
    tiny.assert_near(of_rows, theirs_of_rows)
    tiny.assert_near(of_queries, theirs_of_queries)


def test_padding_is_not_attended_to() -> None:
    """A padded batch gives what every input gives alone, whatever the padding holds, and none of it gets a gradient."""
    ours = resampler(activation="gelu")
    counts = [5, 1, 0, 7]
    rows = torch.randn(4, 7, E, dtype=torch.float64).mul_(100).requires_grad_()
    mask = torch.arange(7) < torch.tensor(counts)[:, None]
    found = ours(rows, mask)
    expected = torch.stack([by_multihead_attention(ours, one[:n]) for one, n in zip(rows, counts, strict=True)])
    tiny.assert_near(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), rows)
    assert bool((gradient[~mask] == 0).all())
    assert bool((gradient[mask] != 0).any(-1).all())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 5}, r"heads of a resampler divide its width 12, found heads=5"),
        ({"queries": 0}, r"needs queries of at least 1, found 0"),
        ({"layers": -1}, r"needs layers of at least 1, found -1"),
    ],
)
def test_sizes_that_make_no_resampler(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Resampler(E, D, **{"queries": 2, "layers": 1, "heads": 2, **changes})


def test_new_weights_are_small_and_not_zero() -> None:
    """Queries of spread 0.02 that differ; everything finite."""
    torch.manual_seed(0)
    ours = Resampler(64, 32, 16, 2, 4)
    assert 0.018 < ours.queries.std().item() < 0.022
    features = ours(torch.randn(2, 9, 64))
    assert features.isfinite().all()
    assert features.std(1).min() > 0.001


# --- its config -------------------------------------------------------------------------------------------------------


def test_arguments_of_one_type_are_refused_by_others() -> None:
    with pytest.raises(ArgumentError, match=r"a mlp projector takes no queries; it is for resampler only"):
        MultimodalProjectorConfig(projection_type="mlp", queries=4)
    config = MultimodalProjectorConfig({"hidden_size": 16}, {"hidden_size": 24}, "resampler", heads=2)
    assert (config.queries, config.layers, config.heads) == (64, 2, 2)
    assert MultimodalProjectorConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert MultimodalProjectorConfig().queries is None
    with pytest.raises(ArgumentError, match=r"projector.queries|queries: is for `resampler` only, found linear"):
        parse_config("training: {steps: 1}\nmodel: {encoders: {vision: {path: x, projector: {queries: 4}}}}")


# --- in a model -------------------------------------------------------------------------------------------------------


def made(encoder: Any, dtype: torch.dtype = torch.float64, **options: Any) -> MultimodalModel:
    lm = tiny.language_model(dtype=dtype)
    options = {"queries": Q, "layers": 2, "heads": 4, **options}
    config = MultimodalProjectorConfig(encoder.config, lm.config, "resampler", **options)
    torch.manual_seed(9)
    projector = tiny.loud(MultimodalProjector(config), dtype)
    model = MultimodalModel({"x": ModalEncoderModule(encoder, projector)}, lm)
    model.set_modality_token_ids({"x": tiny.IMAGE})
    return model.eval()


def test_packed_inputs_are_resampled_one_by_one() -> None:
    """A Qwen2-VL tower yields the rows of all images in one tensor: each image gives what it gives alone."""
    model = made(tiny.encoder("qwen2-vl", torch.float64))
    grid = torch.tensor([[1, 4, 4], [1, 2, 4], [1, 2, 2]])
    patches = torch.randn(28, 3 * 2 * 4 * 4, dtype=torch.float64)
    found = model.encoders["x"](hidden_states=patches, grid_thw=grid)
    assert found.shape == (3, Q, 32)
    each = torch.split(patches, grid.prod(-1).tolist())
    alone = [model.encoders["x"](hidden_states=p, grid_thw=g[None]) for p, g in zip(each, grid, strict=True)]
    tiny.assert_near(found, torch.cat(alone))
    with pytest.raises(ArgumentError, match=r"packs its inputs and nothing tells which rows belong to which"):
        model.encoders["x"].project(torch.zeros(7, 40, dtype=torch.float64))


def test_padded_sounds_are_resampled_without_their_padding() -> None:
    """Wav2Vec2 with a mask: the batch gives what every sound gives alone. 3 rows of 5 and of 3 sounds' features."""
    model = made(tiny.encoder("wav2vec2", torch.float64))
    sounds = torch.randn(3, 100, dtype=torch.float64)
    lengths = [100, 60, 35]
    mask = (torch.arange(100) < torch.tensor(lengths)[:, None]).long()
    found = model.encoders["x"](input_values=sounds * mask, attention_mask=mask)
    assert found.shape == (3, Q, 32)
    projector = model.encoders["x"].projector
    rows = model.encoders["x"].module(sounds * mask, attention_mask=mask).last_hidden_state
    counts = model.encoders["x"].module._get_feat_extract_output_lengths(torch.tensor(lengths)).tolist()
    assert len(set(counts)) == 3
    for index, count in enumerate(counts):
        tiny.assert_near(found[index], projector(rows[index : index + 1, :count])[0])


def test_every_input_has_as_many_positions_as_queries() -> None:
    """For images by arithmetic, for sounds of several lengths, and a model that runs on what the processor gives."""
    for encoder, processor, media in (
        (parts.clip(), parts.clip_processor(), {"images": [parts.image(seed=i) for i in range(2)]}),
        (
            parts.wav2vec2(),
            parts.Wav2Vec2FeatureExtractor(return_attention_mask=True),
            {"raw_speech": [parts.sound(900), parts.sound(400)], "sampling_rate": 16000, "padding": True},
        ),
    ):
        lm = parts.llama()
        config = MultimodalProjectorConfig(encoder.config, lm.config, "resampler", queries=Q, heads=2)
        model = MultimodalModel({"x": ModalEncoderModule(encoder, MultimodalProjector(config))}, lm).eval()
        batch = MultimodalProcessor({"x": processor}, parts.tokenizer(), model)(
            {"x": media}, {"text": ["<x>a", "<x>b"]}, return_tensors="pt"
        )
        assert batch["input_ids"].shape == (2, Q + 1)
        assert model(**batch).logits.shape[:2] == (2, Q + 1)


def test_save_and_load(tmp_path: Path) -> None:
    """By name and arguments; weights bit-equal; another number of heads is not taken for the same."""
    model = made(tiny.encoder("clip", torch.float64), activation="silu")
    model.save_pretrained(tmp_path)
    loaded = MultimodalModel.from_pretrained(tmp_path)
    batch = tiny.vision_batch(rows=Q, dtype=torch.float64)
    assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert loaded.encoders["x"].projector.config.to_dict() == model.encoders["x"].projector.config.to_dict()
    projector = model.encoders["x"].projector
    assert not projector.is_custom
    projector.projection = Resampler(24, 32, Q, 2, 2, "silu")
    assert projector.is_custom


def test_training_frozen_checkpointed_and_in_lower_precision() -> None:
    """Checkpointed gradients are bit-equal; frozen has none; bfloat16 and autocast give features near those of fp32."""
    model = made(tiny.encoder("clip", torch.float32), torch.float32).train()
    batch = tiny.vision_batch(rows=Q)
    plain = gradients(model, batch)
    assert any("queries" in name for name in plain)
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, batch)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    model.gradient_checkpointing_disable()
    with torch.no_grad():
        expected = model.encoders["x"](pixel_values=batch["pixel_values"])
        with torch.autocast("cpu", torch.bfloat16):
            cast = model.encoders["x"](pixel_values=batch["pixel_values"])
        low = made(tiny.encoder("clip", torch.bfloat16), torch.bfloat16).encoders["x"](
            pixel_values=batch["pixel_values"].bfloat16()
        )
    for found in (cast, low):
        assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert low.dtype is torch.bfloat16
    model.train({"x": (True, False)})
    frozen = gradients(model, batch)
    assert not any(".projector." in name for name in frozen)
    assert any("x_encoder.module" in name for name in frozen)


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_pieces_and_widths() -> None:
    """A pipeline can be cut between its layers; a width that does not fit is refused with both sizes."""
    model = made(tiny.encoder("clip", torch.float64))
    names = [name for name in PipelineTemplate.get_modules(model.encoders["x"]) if name.startswith("projector.")]
    prefix = "projector.projection"
    assert names == [f"{prefix}.layers.0", f"{prefix}.layers.1", f"{prefix}.norm", f"{prefix}.linear"]
    with pytest.raises(ArgumentError, match=r"the projector takes width 12, the encoder yields width 16"):
        MultimodalModel(
            {"x": ModalEncoderModule(parts.clip(), MultimodalProjector(None, Resampler(12, 24, 2, 1, 2)))},
            parts.llama(),
        )


def test_from_a_config() -> None:
    text = CONFIG.replace("layers: [-1, -2]", "projector: {type: resampler, queries: 5, layers: 1, heads: 4}")
    model, processor = build_model(parse_config(text).model)
    projection = model.encoders["vision"].projector.projection
    assert (projection.in_features, projection.out_features, projection.heads) == (64, 24, 4)
    batch = processor({"vision": {"images": [parts.image()]}}, {"text": "<vision>?"}, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 6)
    assert model(**batch).logits.shape[:2] == (1, 6)


# --- one's own --------------------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """Somebody's own projector that looks at an input as a whole."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, embedding)

    def forward(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        weights = torch.ones_like(rows[..., :1]) if mask is None else mask[..., None].to(rows.dtype)
        return self.linear((rows * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True))


def test_ones_own_projector_gets_the_mask() -> None:
    """By the argument `mask` of its forward; packed inputs come to it padded."""
    lm = tiny.language_model(dtype=torch.float64)
    encoder = ModalEncoderModule(tiny.encoder("qwen2-vl", torch.float64), MultimodalProjector(None, Mean(40, 32)))
    model = MultimodalModel({"x": encoder.double()}, lm)
    grid = torch.tensor([[1, 4, 4], [1, 2, 4]])
    patches = torch.randn(24, 3 * 2 * 4 * 4, dtype=torch.float64)
    rows = torch.split(encoder.module(patches, grid_thw=grid).pooler_output, [4, 2])
    expected = torch.stack([encoder.projector.projection.linear(one.mean(0, keepdim=True)) for one in rows])
    tiny.assert_near(model.encoders["x"](hidden_states=patches, grid_thw=grid), expected)
