"""Print the lowest versions that pyproject.toml allows, as pip requirements: the package's own, the demo's, the tests'.

Arguments are requirements to use instead of a lowest one, such as `torch==2.13.0`.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
instead = {re.split(r"[=<>]", argument)[0]: argument for argument in sys.argv[1:]}
for requirement in [
    *project["dependencies"],
    *(r for name in ("demo", "peft", "trainer", "test") for r in extras[name]),
]:
    match = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if match:
        name, version = match.groups()
        print(instead.get(name, f"{name}=={version}"))
