"""Running the code blocks of a Markdown page, in order, in a folder of their own, as a reader would.

    ```python    runs, in one namespace a page
    ```yaml      with a model and how long to train it: a whole config. Otherwise keys to put into one, such as `BASE`.
                 Either way the model is built, what trains is chosen, and the optimizer made.
                 Begins with `# NAME.yaml`: is a file of that name, too
    ```json      is read; after `<!-- file: NAME -->` it is a file of that name, too
    ```console   lines after `$ ` run: `cornstarch` in this process, with few steps. Of `make` and `pip install`, which
                 would change the machine, targets and extras must be there
    ```text      is shown only

There is a picture `photo.jpg` in the folder, for pages that ask about one of the reader's.
"""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from cornstarch import build_model, choose, make_optimizer, make_schedule, parameter_groups, parse_config, to_yaml
from cornstarch.cli.main import main
from tests.hub import Hub

ROOT = Path(__file__).parent.parent
BASE = """
model:
  encoders: {vision: {path: openai/clip-vit-large-patch14}}
  language_model: {path: Qwen/Qwen3-0.6B}
data: {train: {source: digits, split: train}}
training: {steps: 10}
"""
# Put before a page's own arguments of `cornstarch train`, so that its own win.
QUICK = (
    "--training.epochs=null", "--training.steps=2", "--training.batch_size=4", "--training.device=cpu",
    "--evaluation.samples=4", "--evaluation.max_new_tokens=2",
)  # fmt: skip
_FENCE = re.compile(r"(?:^<!-- file: (?P<file>\S+) -->\n\n?)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block of a page: its language, text, line, and the file that a comment before it names."""

    language: str
    text: str
    line: int
    file: str | None


def blocks(page: str) -> Iterator[Block]:
    """The code blocks of a page's text; an error if there is code that is none of them."""
    found = list(_FENCE.finditer(page))
    assert not re.search(r"^ {4}", _FENCE.sub("", page), re.M), "an indented block has no language; fence it"
    assert 2 * len(found) == len(re.findall(r"^\s*(?:```|~~~)", page, re.M)), "a fence is indented or not closed"
    for match in found:
        line = page.count("\n", 0, match.start("language")) + 1
        yield Block(language=match["language"], text=match["text"], line=line, file=match["file"])


@dataclass
class Reader:
    """Somebody who does what a page says, in the current folder."""

    hub: Hub
    namespace: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Image.new("RGB", (64, 48), "orange").save("photo.jpg")

    def run(self, block: Block, where: str) -> None:
        """Run a block.

        Args:
            block: of a page.
            where: what the block is called in messages.
        """
        runners = {"python": self._python, "yaml": self._yaml, "json": self._json, "console": self._console}
        if block.language == "text":
            return
        assert block.language in runners, f"{where}: nothing runs blocks of {block.language!r}"
        runners[block.language](block, where)

    def _python(self, block: Block, where: str) -> None:
        exec(compile(self.hub.localized(block.text), where, "exec"), self.namespace)

    def _yaml(self, block: Block, where: str) -> None:
        text = self.hub.localized(block.text)
        named = re.match(r"# (\S+\.yaml)\b", text)
        if named:
            Path(named[1]).write_text(text, encoding="utf-8")
        values = yaml.safe_load(text)
        if "model" not in values or not {"steps", "epochs"} & set(values.get("training", {})):
            # Words such as 1e-3 are numbers in a config and text in YAML, so what is put together is text again.
            values = merged(yaml.load(self.hub.localized(BASE), yaml.BaseLoader), yaml.load(text, yaml.BaseLoader))
            text = plain_yaml(values)
        build(text, where)

    def _json(self, block: Block, where: str) -> None:
        try:
            json.loads(block.text)
        except json.JSONDecodeError:
            for line in block.text.splitlines():
                json.loads(line)
        if block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")

    def _console(self, block: Block, where: str) -> None:
        commands = re.findall(r"^\$ (.*(?:\\\n.*)*)", block.text, re.M)
        assert commands, f"{where}: no line begins with $"
        for command in commands:
            words = shlex.split(command, comments=True)
            if words[0] == "cornstarch":
                quick = QUICK if words[1:2] == ["train"] and "--help" not in words else ()
                code = main([*words[1:3], *quick, *words[3:]])
                assert code == 0, f"{where}: {command}: exit code {code}"
            else:
                check_offline(words, f"{where}: {command}")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with the keys of a part of one put in: two levels deep, and a saved model in place of parts."""
    whole = {**base, **{name: {**base.get(name, {}), **section} for name, section in changes.items()}}
    if "path" in changes.get("model", {}):
        whole["model"] = changes["model"]
    if "epochs" in changes.get("training", {}):
        whole["training"].pop("steps")
    return whole


def plain_yaml(values: Any) -> str:
    """YAML in which every scalar stands as it was written."""
    if isinstance(values, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {plain_yaml(value)}" for key, value in values.items()) + "}"
    if isinstance(values, list):
        return "[" + ", ".join(map(plain_yaml, values)) + "]"
    return values if re.fullmatch(r"[-+.\w]+", values) else json.dumps(values)


def build(text: str, where: str) -> None:
    """Build what a config describes, up to the first step."""
    config = parse_config(text, name=where)
    assert parse_config(to_yaml(config)) == config
    model, processor = build_model(config.model, config.data.template)
    added = config.model.language_model.added_tokens if config.model.language_model is not None else []
    choose(model, config.trains, [processor.llm_tokenizer.convert_tokens_to_ids(token) for token in added])
    make_optimizer(parameter_groups(model, config.optimizer, config.trains), config.optimizer)
    make_schedule(config.schedule.name, config.schedule.arguments)


def check_offline(words: list[str], where: str) -> None:
    """Check a command that is not run: targets of the Makefile, extras of the package."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in words[1:]:
            name, equals, _ = word.partition("=")
            known = rf"^{name} \?=|\$\({name}\)" if equals else rf"^{name}:"
            assert re.search(known, makefile, re.M), f"{where}: the Makefile knows no {name}"
        return
    assert words[:2] == ["pip", "install"], f"{where}: nothing runs this"
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        for name in extra.split(","):
            assert re.search(rf"^{name} = \[", pyproject, re.M), f"{where}: the package has no extra {name}"
