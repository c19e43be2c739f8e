"""How a `SampleView` looks: as text for a terminal, as a page, as JSON. Nothing here knows where samples come from.

Files: visible (characters that would not be seen, runs of positions) and pictures (numbers back into pictures), then
text, page and values, one for each form.
"""

from cornstarch.data.view.page import view_as_html
from cornstarch.data.view.text import view_as_text
from cornstarch.data.view.values import view_as_json

__all__ = ["view_as_html", "view_as_json", "view_as_text"]
