"""A sample as text: with colours for a terminal, with brackets around what is learnt for everything else."""

from collections.abc import Iterator

from cornstarch._visible import LINE_BREAK, visible
from cornstarch.data.view.pictures import pictures_of, scaled
from cornstarch.data.view.wording import (
    Segment,
    called,
    count,
    given,
    made,
    segments,
    summary,
)
from cornstarch.data.viewing import CutView, MediumView, SampleView

_LONGEST = 400  # characters of a text that are shown where little is wanted
_RESET, _BOLD, _FAINT, _LEARNT, _RED = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[1;4;32m", "\x1b[1;31m"
_MODALITIES = ("\x1b[36m", "\x1b[35m", "\x1b[33m", "\x1b[34m")
_COLUMNS = 24  # of a picture; a character is two pixels, one above the other
_OPEN, _CLOSE = "⟦", "⟧"


def view_as_text(view: SampleView, *, brief: bool = False, colours: bool = False, blocks: bool = False) -> str:
    """A sample as text.

    Args:
        view: the sample.
        brief: in a few lines, of a long text the beginning.
        colours: with ANSI colours; otherwise what is learnt stands in ⟦ ⟧.
        blocks: with pictures made of half blocks in 24 bits of colour.

    Returns:
        The text. No character of the sample can change how others look, or command a terminal.
    """
    paint = _Paint(view, colours)
    lines = [] if brief else [paint(visible(view.name, " "), _BOLD), *_origin(view)]
    if view.error is not None:
        lines += [paint(f"cannot be used: {visible(view.error, ' ')}", _RED)]
    if view.positions:
        lines += [summary(view)]
    if view.unlabelled is not None:
        lines += [paint(f"nothing is learnt: {visible(view.unlabelled, ' ')}", _RED)]
    indent = "  "
    for medium in view.media:
        lines += [f"{indent}{_line(medium, view, paint)}"]
        if blocks:
            lines += [f"{indent}{line}" for line in _blocks(view, medium)]
    if view.truncated is not None:
        lines += _cut(view.truncated, view, paint)
    if view.positions:
        lines += _brief(view, paint) if brief else _whole(view, paint)
    else:
        lines += [f"{role}: {visible(text, LINE_BREAK + ' ')}" for role, text in view.messages]
    return "\n".join(lines)


class _Paint:
    """Puts colours around text, or nothing."""

    def __init__(self, view: SampleView, colours: bool) -> None:
        self.colours = colours
        self._of = {key: _MODALITIES[place % len(_MODALITIES)] for place, key in enumerate(view.marks)}

    def __call__(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self.colours and text else text

    def modality(self, text: str, key: str) -> str:
        """In the colour of a modality."""
        return self(text, self._of.get(key, ""))


def _origin(view: SampleView) -> Iterator[str]:
    if view.source and view.index is not None:
        yield f"sample {view.index:,} of {visible(view.source, ' ')}"


def _line(medium: MediumView, view: SampleView, paint: _Paint) -> str:
    name = paint.modality(visible(called(medium, view)), medium.key)
    sizes = given(medium)
    return f"{name}: {sizes} -> {made(medium)}" if sizes else f"{name}: {made(medium)}"


def _cut(cut: CutView, view: SampleView, paint: _Paint) -> list[str]:
    lost = [called(medium, view) for medium in view.media if medium.left_out]
    labels = sum(position.label is not None for position in cut.left_out)
    left_out = ", ".join([*lost, f"{count(labels, 'label')}"])
    text = "".join(position.text for position in cut.left_out if position.modality is None)
    shown = visible(text, LINE_BREAK)
    return [
        paint(f"cut at {cut.max_length:,}: {cut.before:,} positions before, {cut.after:,} after", _BOLD)
        + f"; left out: {left_out}, and the text {_shortened(shown)!r}"
    ]


def _brief(view: SampleView, paint: _Paint) -> list[str]:
    reads = _shortened("".join(_shown(segment, view, paint, LINE_BREAK) for segment in segments(view)))
    return [f"  reads   {reads}", f"  learns  {_shortened(_learnt(view))}"]


def _whole(view: SampleView, paint: _Paint) -> list[str]:
    text = "".join(_shown(segment, view, paint, f"{LINE_BREAK}\n") for segment in segments(view))
    text = text.removesuffix("\n")
    legend = paint("what is learnt", _LEARNT) if paint.colours else f"{_OPEN}what is learnt{_CLOSE}"
    return ["", f"reads, {legend}", *(f"  {line}" for line in text.split("\n"))]


def _shown(segment: Segment, view: SampleView, paint: _Paint, line_break: str) -> str:
    medium = segment.medium
    if medium is not None:
        return paint.modality(f"{view.marks[medium.key]} x {len(segment.positions):,}", medium.key) + " "
    if not segment.learnt:
        pieces = [(visible(position.text, line_break), position.special) for position in segment.positions]
        return "".join(paint(text, _FAINT) if special else text for text, special in pieces)
    text = visible(segment.text, line_break)
    if not paint.colours:
        return f"{_OPEN}{text}{_CLOSE}"
    # A colour that goes over the end of a line colours the margin of the next.
    return "\n".join(paint(line, _LEARNT) for line in text.split("\n"))


def _learnt(view: SampleView) -> str:
    return visible("".join(segment.text for segment in segments(view) if segment.learnt), LINE_BREAK)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _blocks(view: SampleView, medium: MediumView) -> Iterator[str]:
    """The first picture that the encoder gets, two pixels a character."""
    found = pictures_of(medium, view.processors.get(medium.key))
    if not found or medium.kind not in ("image", "video"):
        return
    height, width = found[0].shape[:2]
    rows = 2 * max(1, round(_COLUMNS * height / width / 2))
    pixels = scaled(found[0], _COLUMNS, rows)
    for above, below in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(above, below, strict=True)
        )
        yield "".join(cells) + _RESET
