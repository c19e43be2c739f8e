"""The processor of an imported model: the original's ids and tensors, and the model's outputs on them."""

from pathlib import Path

import pytest

from cornstarch import ArgumentError, MultimodalModel, MultimodalProcessor
from tests import parts
from tests.models.original_processors import MADE, Saved


@pytest.fixture(params=MADE, scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return MADE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pair(saved: Saved) -> tuple[MultimodalModel, MultimodalProcessor]:
    model = MultimodalModel.from_pretrained_multimodal_model(saved.folder)
    return model, MultimodalProcessor.from_pretrained_multimodal_model(saved.folder, model)


def test_text_files_are_kept(saved: Saved, pair: tuple[MultimodalModel, MultimodalProcessor], tmp_path: Path) -> None:
    """As they are, also after saving and loading."""
    model, processor = pair
    names = {path.name for path in saved.folder.iterdir() if "processor" in path.name or "template" in path.name}
    assert names
    assert set(processor.origin_files) == names
    for name in names:
        assert processor.origin_files[name] == (saved.folder / name).read_text(encoding="utf-8")
    processor.save_pretrained(tmp_path)
    assert MultimodalProcessor.from_pretrained(tmp_path, model).origin_files == processor.origin_files


def test_only_for_imported_models(saved: Saved) -> None:
    with pytest.raises(ArgumentError, match="was not taken out of"):
        MultimodalProcessor.from_pretrained_multimodal_model(saved.folder, parts.vision_model())
