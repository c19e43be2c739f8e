"""Projectors by name: identity. Reference: the encoder's own rows, bit-equal."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cornstarch import (
    ArgumentError,
    ModalEncoderModule,
    MultimodalModel,
    MultimodalProjector,
    MultimodalProjectorConfig,
    part_rows,
)
from tests import parts, tiny

# --- identity ---------------------------------------------------------------------------------------------------------


def test_identity_passes_rows_of_the_embeddings_width(tmp_path: Path) -> None:
    """A Qwen2-VL tower states the language model's width; its merged rows arrive as they are, also after a save."""
    tower = tiny.encoder("qwen2-vl", torch.float64)
    lm = tiny.language_model(dtype=torch.float64, hidden_size=40, num_attention_heads=5, num_key_value_heads=5)
    model = MultimodalModel({"vision": ModalEncoderModule(tower)}, lm, init_projector_type="identity").eval()
    grid = torch.tensor([[1, 4, 4], [1, 2, 4]])
    patches = torch.randn(24, 3 * 2 * 4 * 4, dtype=torch.float64)
    expected = tower(patches, grid_thw=grid).pooler_output
    model.save_pretrained(tmp_path)
    for one in (model, MultimodalModel.from_pretrained(tmp_path)):
        rows = one.encoders["vision"](hidden_states=patches, grid_thw=grid)
        assert [block.shape[0] for block in rows] == [4, 2]
        assert torch.equal(torch.cat(rows), expected)
        assert isinstance(one.encoders["vision"].projector.projection, nn.Identity)
        assert list(one.encoders["vision"].projector.parameters()) == []
    model.train(llm_mode=False)
    model.train({"vision": (True, True)})
    assert {row["part"]: row["parameters"] for row in part_rows(model)}["vision_projector"] == 0


def test_identity_refuses_two_widths() -> None:
    """With both sizes, when the model is made."""
    with pytest.raises(ArgumentError, match=r"'vision'.*yields width 16 and the language model embeds in width 24"):
        MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, parts.llama(), init_projector_type="identity")


def test_identity_is_described_by_its_widths() -> None:
    config = MultimodalProjectorConfig({"hidden_size": 8}, {"hidden_size": 8}, "identity")
    assert MultimodalProjectorConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projectors_without_bias(kind: str) -> None:
    """No linear layer has one, and the config says so again; types without linear layers refuse."""
    widths = {"hidden_size": 4}, {"hidden_size": 6}
    projector = MultimodalProjector(MultimodalProjectorConfig(*widths, kind, bias=False))
    assert not any("bias" in name for name, _ in projector.named_parameters())
    assert not projector.is_custom
    assert MultimodalProjectorConfig(**projector.config.to_dict()).bias is False
    with pytest.raises(ArgumentError, match="no linear layers whose bias"):
        MultimodalProjectorConfig(*widths, "resampler", bias=False)
