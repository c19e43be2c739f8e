"""The documentation: every code block of every page runs, messages are the code's own, all public names are there."""

import ast
import re
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

import cornstarch
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


@pytest.mark.parametrize("name", [*PAGES, README])
def test_every_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top to bottom: Python, configs, commands; and nothing that looks like code is left out."""
    page = (DOCS / name).read_text(encoding="utf-8")
    found = [block for block in pages.blocks(page) if not block.language.startswith("{")]
    directives = {block.language for block in pages.blocks(page)} - {block.language for block in found}
    assert directives <= {"{toctree}", "{eval-rst}"}
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    reader = pages.Reader(hub=Hub(tmp_path / "hub"))
    logging.set_verbosity_error()
    for block in found:
        if name == README and block.language == "python":
            continue
        reader.run(block, f"{name}, line {block.line}")


def test_messages_are_the_codes() -> None:
    """Every message that troubleshoot.md shows is one that the code has; `...` stands for what differs."""
    patterns = [pattern for path in SOURCES.rglob("*.py") for pattern in _messages(path)]
    shown = [
        line
        for block in pages.blocks((DOCS / "troubleshoot.md").read_text(encoding="utf-8"))
        if block.language == "text"
        for line in block.text.splitlines()
    ]
    assert len(shown) >= 15
    for line in shown:
        plain = line.removeprefix("error: ").removeprefix("warning: ")
        assert any(pattern.search(plain) for pattern in patterns), f"no message of the code is {line!r}"


def _messages(path: Path) -> list[re.Pattern[str]]:
    """Patterns of the strings in a file that are long enough to be messages."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            pieces = [entry.value if isinstance(entry, ast.Constant) else None for entry in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            pieces = [node.value]
        else:
            continue
        if sum(len(piece) for piece in pieces if piece is not None) >= 20:
            found.append(re.compile("".join(".*" if piece is None else re.escape(piece) for piece in pieces)))
    return found


def test_all_public_names_are_in_the_reference() -> None:
    """Every public name is on one page of the reference, and nothing else is."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^\.\. auto\w+:: cornstarch\.(\w+)$", text, re.M)
    assert len(named) == len(set(named))
    assert set(named) == set(cornstarch.__all__) - {"__version__"}


def test_all_pages_are_in_a_table_of_contents() -> None:
    """The site's own check makes this an error too, but only where Sphinx is installed."""
    listed = set()
    for name in PAGES:
        for block in pages.blocks((DOCS / name).read_text(encoding="utf-8")):
            if block.language == "{toctree}":
                entries = [line for line in block.text.splitlines() if line and not line.startswith(":")]
                listed |= {(Path(name).parent / f"{entry}.md").as_posix() for entry in entries}
    assert listed - MADE == set(PAGES) - {"index.md"}
