"""The documentation site: Markdown pages, and references that are made from the code when the site is built."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from cornstarch.version import __version__  # noqa: E402
from tools.config_reference import write_reference  # noqa: E402

project = "Cornstarch"
author = "the Cornstarch authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

default_role = "code"  # docstrings put code between single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
toc_object_entries = False

html_theme = "furo"
html_title = f"Cornstarch {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"

write_reference(DOCS / "config.md")
