"""The promised import paths, and that nothing is exported by accident."""

import importlib

import pytest

import cornstarch

PROMISED = {
    "cornstarch.models.multimodal_language_model": [
        "MultimodalModel",
        "ModalEncoderModule",
        "MultimodalProjector",
        "MultimodalProjectorConfig",
        "MultimodalProcessor",
    ],
    "cornstarch.pipeline_template": ["PipelineTemplate"],
}


@pytest.mark.parametrize("path, name", [(path, name) for path, names in PROMISED.items() for name in names])
def test_promised_paths(path: str, name: str) -> None:
    assert getattr(importlib.import_module(path), name) is getattr(cornstarch, name)


def test_all_lists_every_public_name_and_nothing_else() -> None:
    """Those of the model are there at once; those of data and training when they are asked for."""
    imported = vars(cornstarch).items()
    ours = {name for name, value in imported if getattr(value, "__module__", "").startswith("cornstarch")}
    public = {name for name in ours if not name.startswith("_")}
    later = {
        name for module in ("data", "training") for name in importlib.import_module(f"cornstarch.{module}").__all__
    }
    assert public | later | {"__version__"} == set(cornstarch.__all__)
    assert len(set(cornstarch.__all__)) == len(cornstarch.__all__)
    assert all(getattr(cornstarch, name) is not None for name in cornstarch.__all__)
    assert set(cornstarch.__all__) <= set(dir(cornstarch))


def test_errors_are_the_built_in_ones_too() -> None:
    """Users who catch ValueError, TypeError or OSError catch ours; one base catches all."""
    expected = {
        "ArgumentError": ValueError,
        "ModalityMismatchError": ValueError,
        "SampleError": ValueError,
        "UnlabelledError": ValueError,
        "UnknownArgumentError": TypeError,
        "MediaError": ValueError,
        "CheckpointError": OSError,
        "MissingFileError": FileNotFoundError,
        "TrainingError": RuntimeError,
        "FrozenCostError": AssertionError,
    }
    for name, built_in in expected.items():
        error = getattr(cornstarch, name)
        assert issubclass(error, built_in)
        assert issubclass(error, cornstarch.CornstarchError)
