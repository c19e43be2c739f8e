"""The documentation: every code block of every page runs, messages are the code's own, all public names are there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import cornstarch
from cornstarch.models.multimodal_language_model.callbacks import CALLBACKS
from cornstarch.models.multimodal_language_model.configuration import PROJECTION_TYPES
from cornstarch.training import pictures
from tests import pages
from tests.hub import Hub

DOCS = pages.ROOT / "docs"
SOURCES = Path(cornstarch.__file__).parent
MADE = {"config.md"}  # when the site is built; see tools/config_reference.py
PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.rglob("*.md")
    if "_build" not in path.parts and path.name not in MADE
)
# Blocks of README.md in Python are run by tests/test_readme.py.
README = "../README.md"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Stand-ins that all pages share."""
    return Hub(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("name", [*PAGES, README])
def test_every_block_runs(name: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top to bottom: Python, configs, commands; and nothing that looks like code is left out."""
    page = (DOCS / name).read_text(encoding="utf-8")
    found = [block for block in pages.blocks(page) if not block.language.startswith("{")]
    directives = {block.language for block in pages.blocks(page)} - {block.language for block in found}
    assert directives <= {"{toctree}", "{eval-rst}"}
    monkeypatch.chdir(tmp_path)
    # Drawing takes longer than the few steps of these runs, and is tested by itself.
    monkeypatch.setattr(pictures, "draw_losses", lambda path, *_: Image.new("RGB", (8, 8)).save(path))
    torch.manual_seed(0)
    reader = pages.Reader(hub=hub)
    for block in found:
        if name == README and block.language == "python":
            continue
        reader.run(block, f"{name}, line {block.line}")


def test_everything_ready_made_is_on_the_page() -> None:
    """Callbacks by name and by class, and types of projectors."""
    page = (DOCS / "callbacks.md").read_text(encoding="utf-8")
    classes = [cls.__name__ for cls in CALLBACKS.values()]
    assert [name for name in (*CALLBACKS, *classes, *PROJECTION_TYPES) if f"`{name}`" not in page] == []


def test_messages_are_the_codes() -> None:
    """Every message that troubleshoot.md shows is one that the code has, or the beginning of one; numbers, names and
    `...` stand for what differs."""
    known = [pieces for path in SOURCES.rglob("*.py") for pieces in _messages(path)]
    shown = [
        line.removeprefix("error: ").removeprefix("warning: ").removesuffix("...").rstrip(" (.,;:")
        for block in pages.blocks((DOCS / "troubleshoot.md").read_text(encoding="utf-8"))
        if block.language == "text"
        for line in block.text.splitlines()
    ]
    assert len(shown) >= 15
    for line in shown:
        found = max(_in_common(line, pieces) for pieces in known)
        assert found >= min(20, len(line.replace("...", "")) / 2), f"no message of the code is {line!r}"
    assert max(_in_common("nothing to learn: every weight of the model is frozen", pieces) for pieces in known) < 20


def _messages(path: Path) -> Iterator[list[str]]:
    """The texts of a file, in pieces between what is put into them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield [str(entry.value) for entry in node.values if isinstance(entry, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield [node.value]


def _in_common(line: str, pieces: list[str]) -> int:
    """How many characters of a line are pieces in their order, up to one that the line breaks off in."""
    place, common = 0, 0
    for piece in pieces:
        found = line.find(piece, place)
        if found < 0:
            return common + next(n for n in range(len(piece), -1, -1) if line[place:].endswith(piece[:n]))
        place, common = found + len(piece), common + len(piece)
    return common


def test_all_public_names_are_in_the_reference() -> None:
    """Every public name is on one page of the reference, and nothing else is."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^\.\. (?:auto\w+|py:data):: cornstarch\.(\w+)$", text, re.M)
    assert len(named) == len(set(named))
    assert set(named) == set(cornstarch.__all__) - {"__version__"}


@pytest.mark.slow
def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    """As `make docs` does it; links, headings, docstrings and the reference of the config's keys."""
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pages.ROOT)
    assert done.returncode == 0, done.stderr
    assert "learning_rate" in (tmp_path / "config.html").read_text(encoding="utf-8")


def test_all_pages_are_in_a_table_of_contents() -> None:
    """The site's own check makes this an error too, but only where Sphinx is installed."""
    listed = set()
    for name in PAGES:
        for block in pages.blocks((DOCS / name).read_text(encoding="utf-8")):
            if block.language == "{toctree}":
                entries = [line for line in block.text.splitlines() if line and not line.startswith(":")]
                listed |= {(Path(name).parent / f"{entry}.md").as_posix() for entry in entries}
    assert listed - MADE == set(PAGES) - {"index.md"}
