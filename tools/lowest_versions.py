"""Print the lowest versions that pyproject.toml allows of everything the tests need, as pip requirements.

Arguments are requirements to use instead of a lowest one, such as `torch==2.13.0`.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
instead = {re.split(r"[=<>]", argument)[0]: argument for argument in sys.argv[1:]}


def lowest(requirements: list[str]) -> Iterator[str]:
    """Each requirement at its lowest version, and those of the package's own extras in its place."""
    for requirement in requirements:
        own = re.fullmatch(rf"{project['name']}\[([\w,]+)\]", requirement)
        if own is not None:
            for extra in own[1].split(","):
                yield from lowest(project["optional-dependencies"][extra])
            continue
        match = re.match(r"([\w-]+)>=([\w.]+)", requirement)
        if match is not None:
            yield instead.get(match[1], f"{match[1]}=={match[2]}")


for line in lowest([*project["dependencies"], f"{project['name']}[test]"]):
    print(line)
