"""No code per model: files are named after none, and names of models stand in tables only."""

import importlib.util
from pathlib import Path

TOOL = Path(__file__).parent.parent / "tools" / "model_names.py"


def test_no_file_is_named_after_a_model_and_few_lines_name_one() -> None:
    """The lines are rows of tables (widths, counts, what was compared) and defaults; a new one is a decision."""
    spec = importlib.util.spec_from_file_location("model_names", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.files() == []
    lines = sum(len(tool.lines_of(path)) for path in tool.ROOT.rglob("*.py"))
    assert 0 < lines <= 45
