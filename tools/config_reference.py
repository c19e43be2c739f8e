"""Write the page that says what every key of a config takes, is by default, and means: from the config's docstrings."""

import sys
from collections.abc import Iterator
from pathlib import Path

from cornstarch.training.config import TrainConfig
from cornstarch.training.reading import describe_fields

_HEAD = """# Every key of a config

The same as `cornstarch train --help`, made from the code. `<key>` stands for a name of your own, `<n>` for a place in a
list, from 0. On the command line a key is written with dots: `--optimizer.learning_rate 1e-3`.

A *section* has keys of its own, listed below it. A section that is left out is as if all its keys were.
"""
_TABLE = "| key | takes | if left out | meaning |\n|---|---|---|---|"
_ALTERNATIVE = "source"  # the key that says which of several kinds of object an entry is


def write_reference(path: Path) -> None:
    """Write the page, unless it is there as it should be."""
    text = reference()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def reference() -> str:
    """The page, as Markdown."""
    sections: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for keys, field in describe_fields(TrainConfig):
        default = "must be given" if field.default is None else f"`{field.default}`"
        if field.default == "its fields' defaults":
            default = ""
        row = " | ".join(map(_cell, (field.kind, default, field.text)))
        sections.setdefault(keys[:-1], []).append((keys[-1], f"| `{keys[-1]}` | {row} |"))
    # The same fields in several places are described once.
    places: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for section, rows in sections.items():
        places.setdefault(tuple(rows), []).append(".".join(section))
    lines = [_HEAD]
    for described, names in places.items():
        level = "##" if "." not in names[0] else "###"
        if names == [""]:
            lines.append("## The sections of a config\n")
        else:
            lines.append(f"{level} {', '.join(f'`{name}`' for name in names)}\n")
        lines.extend(_tables(described))
    return "\n".join(lines)


def _tables(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    starts = [number for number, (key, _) in enumerate(rows) if key == _ALTERNATIVE] or [0]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield _TABLE
        yield from (row for _, row in rows[start:end])
        yield ""


def _cell(text: str) -> str:
    for character in "|*_<":
        if character in text and "`" not in text:
            text = text.replace(character, f"\\{character}")
    return text.replace("|", "\\|") if "`" in text else text


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
