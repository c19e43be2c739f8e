"""Print the lines of the package that know a model's name: `python tools/model_names.py`.

A line counts if its code (not its comments and docstrings) has a word that is a model type of transformers, or a class
of one of its models. Files named after a model are listed too.
"""

import ast
import functools
import re
import sys
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import cornstarch

ROOT = Path(cornstarch.__file__).parent
# Model types that are words of the language, or of this package's own subject.
PLAIN_WORDS = {"align", "auto", "bit", "encoder-decoder", "flex", "sew", "whisper", "git", "led", "mask", "cornstarch"}


@functools.cache
def model_names() -> set[str]:
    """Model types, with underscores and with dashes, and the beginnings of class names."""
    types = {name for name in CONFIG_MAPPING_NAMES if len(name) > 2} - (PLAIN_WORDS - {"whisper"})
    return types | {name.replace("_", "-") for name in types}


@functools.cache
def class_names() -> set[str]:
    """Classes of models and of their configs and processors."""
    kinds = r"(Config|Model|ForCausalLM|ForConditionalGeneration)$"
    found = {name for name in dir(transformers) if re.search(kinds, name)}
    common = {"PretrainedConfig", "GenerationConfig", "BitsAndBytesConfig", "TorchAoConfig"}
    ours = set(cornstarch.__all__)
    return {name for name in found if not name.startswith(("Auto", "PreTrained"))} - common - ours


def lines_of(path: Path) -> dict[int, list[str]]:
    """Line number to the model names in its code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef)
        for node in owner.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    types, classes = model_names(), class_names()
    found: dict[int, list[str]] = {}
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words = [word for word in re.findall(r"[\w-]+", node.value) if word in types or word in classes]
        elif isinstance(node, ast.Name | ast.alias):
            name = node.id if isinstance(node, ast.Name) else node.name
            words = [name] if name in classes else []
        if words:
            found.setdefault(node.lineno, []).extend(words)
    return found


def files() -> list[Path]:
    """Files that are named after a model."""
    stems = {name.replace("-", "_") for name in model_names()}
    return [path for path in ROOT.rglob("*.py") if path.stem in stems]


def main() -> int:
    """Print them.

    Returns:
        The exit code.
    """
    total = 0
    for path in files():
        print(f"{path.relative_to(ROOT.parent)} is named after a model")
    for path in sorted(ROOT.rglob("*.py")):
        found = lines_of(path)
        total += len(found)
        for line, words in sorted(found.items()):
            print(f"{path.relative_to(ROOT.parent)}:{line}: {', '.join(dict.fromkeys(words))}")
    print(f"{total} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
