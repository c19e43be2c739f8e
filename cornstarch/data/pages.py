"""Pages that need nothing else: no network, no script; whatever the data hold is only text on them."""

from collections.abc import Iterable

# Should anything of the data get by: a browser loads nothing and runs nothing on such a page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Colours of the light and the dark scheme have the same names.
_STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1d1c1a;--soft:#6c6962;--line:#e5e2da;--bad:#b3261e;
--bad-paper:#fdeceb}
@media (prefers-color-scheme:dark){:root{--paper:#141517;--card:#1c1e21;--ink:#e9e7e2;--soft:#9b988f;--line:#31343a;
--bad:#ff8f86;--bad-paper:#3a1b1a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h2{font-size:.8rem;font-weight:600;letter-spacing:.06em;text-transform:uppercase;color:var(--soft);
margin:2.25rem 0 .6rem}
.soft{color:var(--soft)}
.figures{display:flex;flex-wrap:wrap;margin:1.1rem 0 .8rem}
.figures div{font-size:.85rem;color:var(--soft)}
.figures b{display:block;font-size:1.5rem;line-height:1.2;font-weight:600;color:var(--ink);
font-variant-numeric:tabular-nums}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.15rem}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
table{border-collapse:collapse;font-size:.9rem}
"""
_NARROW = """
@media (max-width:36rem){main{padding:1.2rem .8rem 3rem}.card{padding:.8rem .85rem}.figures{gap:.35rem 1.3rem}
.figures b{font-size:1.25rem}}
"""


def document(title: str, style: str, body: Iterable[str]) -> str:
    """A page.

    Args:
        title: HTML.
        style: of this kind of page, beside what all have.
        body: HTML, piece by piece.

    Returns:
        HTML, whole in itself.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}{style}{_NARROW}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
