"""The documentation site: Markdown pages, and references that are made from the code when the site is built."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from sphinx.application import Sphinx  # noqa: E402
from sphinx.ext.napoleon import Config, GoogleDocstring  # noqa: E402

from cornstarch.training import config as configs  # noqa: E402
from cornstarch.version import __version__  # noqa: E402
from tools.config_reference import write_reference  # noqa: E402

project = "Cornstarch"
author = "the Cornstarch authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

default_role = "code"  # docstrings put code between single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 100
toc_object_entries = False

html_theme = "furo"
html_title = f"Cornstarch {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"

_GOOGLE = Config(napoleon_use_rtype=False, napoleon_use_ivar=True)
configs.TrainConfig.__annotations__["trains"] = dict[str, configs.TrainsConfig]  # without how it is checked


def google_docstring(app: Sphinx, what: str, name: str, entry: Any, options: Any, lines: list[str]) -> None:
    """Read docstrings in Google's style; but for those under fields, which are sentences that may have a colon."""
    if what not in ("attribute", "property"):
        lines[:] = GoogleDocstring(lines, _GOOGLE, app, what, name, entry, options).lines()


def no_signature(app: Sphinx, what: str, name: str, entry: Any, *given: Any) -> tuple[str, None] | None:
    """Leave out the signature of a config's class, whose fields are listed below it."""
    return ("", None) if dataclasses.is_dataclass(entry) and entry.__module__ == configs.__name__ else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", google_docstring)
    app.connect("autodoc-process-signature", no_signature)
    write_reference(DOCS / "config.md")
