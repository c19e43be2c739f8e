"""Every Python block of README.md runs, in order, with small local checkpoints in place of the hub's."""

import re
from pathlib import Path

import pytest
import torch

from tests.hub import Hub

README = Path(__file__).parent.parent / "README.md"


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top to bottom in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 9
    hub = Hub(tmp_path / "hub")
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(hub.localized(block), f"README.md block {number}", "exec"), namespace)
    assert torch.isfinite(namespace["loss"])
    assert (tmp_path / "runs" / "mine" / "config.json").is_file()
    frozen = {
        part: not any(p.requires_grad for p in namespace["omni"].get_submodule(part).parameters())
        for part in ("vision_encoder.module", "audio_encoder.module", "audio_encoder.projector", "language_model")
    }
    assert frozen == {
        "vision_encoder.module": True,
        "audio_encoder.module": True,
        "audio_encoder.projector": False,
        "language_model": False,
    }


def test_pictures_are_there() -> None:
    """Every picture that the page shows is in the repository."""
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / picture).is_file(), picture
