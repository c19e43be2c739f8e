"""A sample as one page that needs nothing else: no network, no script; whatever the data hold is only text on it."""

import html
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cornstarch._visible import code_of, is_hidden
from cornstarch.data.pages import document
from cornstarch.data.view import sounds
from cornstarch.data.view.pictures import (
    Numbers,
    Pixels,
    as_address,
    heat,
    originals_of,
    pictures_of,
    scaled,
    spectrogram_of,
    wave_of,
)
from cornstarch.data.view.style import HUES, STYLE
from cornstarch.data.view.wording import Segment, called, count, given, made, segments, shape
from cornstarch.data.viewing import CutView, MediumView, PositionView, SampleView

_LONGEST = 640  # pixels of an original's longer side; what the encoder gets is shown to the pixel
_SMALL = 64  # pixels of a picture that is shown enlarged, in squares
_MOST = 32  # frames or tiles that are shown
_BLANKS = {"\n": "n", "\t": "h"}  # to the class of a sign before it, which is no text


class _Seen(NamedTuple):
    """What is drawn of a medium, made once: a page shows some of it for every run."""

    originals: Sequence[Pixels]
    pictures: Sequence[Pixels]
    table: Numbers | None
    samples: Numbers | None


def view_as_html(view: SampleView) -> str:
    """A sample as a page.

    Args:
        view: the sample.

    Returns:
        HTML, whole in itself.
    """
    title = f"{view.name} - {view.source}" if view.source else view.name
    seen = [_seen(medium, view.processors.get(medium.key)) for medium in view.media]
    body = [*_header(view), *_text(view, seen), *_media(view, seen), *_inputs(view)]
    return document(_attribute(title), STYLE, body)


def _seen(medium: MediumView, processor: Any) -> _Seen:
    return _Seen(
        originals=originals_of(medium),
        pictures=pictures_of(medium, processor),
        table=spectrogram_of(medium, processor),
        samples=wave_of(medium),
    )


# --- the head of the page ---------------------------------------------------------------------------------------------


def _header(view: SampleView) -> Iterator[str]:
    yield f"<h1>{_marked(view.name)}</h1>"
    if view.source and view.index is not None:
        yield f'<p class="soft">sample {view.index:,} of {_marked(view.source)}</p>'
    if view.error is not None:
        yield f'<div class="card bad"><b>This sample cannot be used.</b><p>{_marked(view.error)}</p></div>'
    if not view.positions:
        return
    features = sum(position.modality is not None for position in view.positions)
    figures = [
        (len(view.positions), "position", "positions"),
        (features, "of them of inputs", "of them of inputs"),
        (view.labelled, "is learnt", "are learnt"),
    ]
    shown = (f"<div><b>{number:,}</b>{one if number == 1 else more}</div>" for number, one, more in figures)
    yield f'<div class="figures">{"".join(shown)}</div>'
    yield _map(view)
    if view.unlabelled is not None:
        yield f'<div class="card bad"><b>Nothing is learnt of this sample.</b><p>{_marked(view.unlabelled)}</p></div>'


def _map(view: SampleView) -> str:
    """All positions as one bar."""
    pieces = []
    for segment in segments(view):
        kind = f'class="m" style="--hue:{_hue(view, segment.medium.key)};' if segment.medium is not None else None
        kind = kind or ('class="l" style="' if segment.learnt else 'style="')
        pieces.append(f'<i {kind}flex-grow:{len(segment.positions)}"></i>')
    ends = f'<div class="ends"><span>0</span><span>{len(view.positions):,}</span></div>'
    return f'<div class="map">{"".join(pieces)}</div>{ends}'


# --- text -------------------------------------------------------------------------------------------------------------


def _text(view: SampleView, seen: Sequence[_Seen]) -> Iterator[str]:
    if not view.positions:
        if view.messages:
            yield "<h2>Conversation</h2>"
            for role, text in view.messages:
                said = f'<div class="text">{_marked(text)}</div>'
                yield f'<div class="card"><p class="soft">{_marked(role)}</p>{said}</div>'
        return
    yield "<h2>What the model reads</h2>"
    yield _legend(view)
    yield f'<div class="card text">{"".join(_segment(view, segment, seen) for segment in segments(view))}</div>'
    if view.truncated is not None:
        yield from _cut(view, view.truncated)


def _legend(view: SampleView) -> str:
    entries = [
        ("background:var(--learnt);border-bottom:2px solid var(--learnt-line)", "learnt"),
        ("background:var(--odd)", "read only"),
    ]
    if any(position.special for position in view.positions if position.modality is None):
        entries.append(("box-shadow:inset 0 0 0 1px var(--soft)", "special token"))
    used = {medium.key for medium in view.media}
    for key in view.marks:
        if key in used:
            style = f"--hue:{_hue(view, key)};background:hsl(var(--hue) var(--deep))"
            entries.append((style, f"input of {_marked(key)}"))
    shown = (f'<span><i style="{style}"></i>{text}</span>' for style, text in entries)
    return f'<div class="legend">{"".join(shown)}<span>point at a token for its id, label and position</span></div>'


def _segment(view: SampleView, segment: Segment, seen: Sequence[_Seen]) -> str:
    if segment.medium is not None:
        return _run(view, segment, segment.medium, seen)
    return "".join(
        _token(position, segment.start + number, segment.learnt) for number, position in enumerate(segment.positions)
    )


def _token(position: PositionView, place: int, learnt: bool) -> str:
    names = ["t", *(["o"] if place % 2 else []), *(["l"] if learnt else ["s"] if position.special else [])]
    label = "no label" if position.label is None else f"label {position.label}"
    title = f"id {position.id}, {label}, position {place}"
    return f'<span class="{" ".join(names)}" title="{title}">{_marked(position.text)}</span>'


def _run(view: SampleView, segment: Segment, medium: MediumView, seen: Sequence[_Seen]) -> str:
    """A run of positions of an input, beside a small picture of it."""
    place = view.media.index(medium)
    end = segment.start + len(segment.positions)
    picture = _thumbnail(medium, seen[place], [start for start, _ in medium.positions].index(segment.start))
    return (
        f'<a class="run" href="#medium-{place}" style="--hue:{_hue(view, medium.key)}">{picture}<span>'
        f"<b>{_marked(view.marks[medium.key])} &times; {len(segment.positions):,}</b>"
        f"<small>{_marked(called(medium, view))}, positions {segment.start:,} to {end - 1:,}</small></span></a>"
    )


def _thumbnail(medium: MediumView, seen: _Seen, run: int) -> str:
    """Of an input; where each of its runs is a picture of its own, such as a tile, of this."""
    if 1 < len(seen.pictures) == len(medium.positions):
        pixels: Pixels | None = seen.pictures[run]
    else:
        pixels = next(iter(seen.originals or seen.pictures), None)
    if pixels is None and seen.table is not None:
        pixels = scaled(heat(seen.table), 208, 112)
    if pixels is None:
        return ""
    style = ' style="image-rendering:pixelated;width:56px"' if max(pixels.shape[:2]) <= _SMALL else ""
    return f'<img src="{as_address(pixels, 208)}" alt=""{style}>'


def _cut(view: SampleView, cut: CutView) -> Iterator[str]:
    lost = [called(medium, view) for medium in view.media if medium.left_out]
    labels = sum(position.label is not None for position in cut.left_out)
    what = ", ".join([*lost, count(labels, "label")])
    yield "<h2>What was cut off</h2>"
    yield (
        f'<div class="card"><p><b>Cut at {cut.max_length:,} positions:</b> {cut.before:,} before, {cut.after:,} after. '
        f'Left out: {_marked(what)}.</p><div class="text lost">'
        + "".join(
            _token(position, cut.after + number, position.label is not None)
            for number, position in enumerate(cut.left_out)
            if position.modality is None
        )
        + "</div></div>"
    )


# --- media ------------------------------------------------------------------------------------------------------------


def _media(view: SampleView, seen: Sequence[_Seen]) -> Iterator[str]:
    if view.media:
        yield "<h2>What it sees and hears</h2>"
    for place, (medium, own) in enumerate(zip(view.media, seen, strict=True)):
        out = " out" if medium.left_out else ""
        sizes = f"{given(medium)} &rarr; " if given(medium) else ""
        yield (
            f'<section class="card medium{out}" id="medium-{place}" style="--hue:{_hue(view, medium.key)}">'
            f"<h3>{_marked(called(medium, view))} <em>{sizes}{_marked(made(medium))}</em></h3>"
            f'<div class="pair">{"".join(_figures(medium, own, view.processors.get(medium.key)))}</div></section>'
        )


def _figures(medium: MediumView, seen: _Seen, processor: Any) -> Iterator[str]:
    originals, pictures, table, samples = seen
    if medium.kind == "video":
        if originals:
            yield _strip(f"as given, {count(len(originals), 'frame')}", originals)
        if pictures:
            yield _strip(f"as the encoder gets it, {count(len(pictures), 'frame')}", pictures)
        return
    if originals:
        yield _picture("as given", originals[0], _LONGEST)
    if len(pictures) == 1:
        yield _picture("as the encoder gets it", pictures[0], None)
    elif pictures:
        yield _strip(f"as the encoder gets it, {count(len(pictures), 'picture')}", pictures)
    if table is not None:
        drawing = sounds.spectrogram(table, processor, medium.seconds)
        yield _figure("wide", f"as the encoder gets it: {count(table.shape[0], 'band')} over time", drawing)
    if samples is not None:
        drawing = sounds.waveform(samples, medium.sampling_rate, medium.seconds)
        yield _figure("wide", "as the encoder gets it: samples over time", drawing)


def _picture(caption: str, pixels: Pixels, longest: int | None) -> str:
    height, width = pixels.shape[:2]
    image = f'<img src="{as_address(pixels, longest)}" alt="">'
    return _figure("small" if max(height, width) <= _SMALL else "whole", f"{caption}, {width} x {height}", image)


def _strip(caption: str, pictures: Sequence[Pixels]) -> str:
    height, width = pictures[0].shape[:2]
    images = "".join(f'<img src="{as_address(pixels, _LONGEST)}" alt="">' for pixels in pictures[:_MOST])
    more = f", the first {_MOST} shown" if len(pictures) > _MOST else ""
    small = " small" if max(height, width) <= _SMALL else ""
    return _figure("", f"{caption} of {width} x {height}{more}", f'<div class="strip{small}">{images}</div>')


def _figure(kind: str, caption: str, inner: str) -> str:
    return f'<figure class="{kind}"><figcaption>{caption}</figcaption>{inner}</figure>'


def _inputs(view: SampleView) -> Iterator[str]:
    if view.inputs:
        rows = (f"<tr><td><code>{_marked(name)}</code></td><td>{shape(s)}</td></tr>" for name, s in view.inputs.items())
        yield f'<h2>What the model is called with</h2><div class="card scroll"><table>{"".join(rows)}</table></div>'


# --- text of the data -------------------------------------------------------------------------------------------------


def _hue(view: SampleView, key: str) -> str:
    keys = list(view.marks)
    return HUES[keys.index(key) % len(HUES)] if key in keys else HUES[-1]


def _marked(text: str) -> str:
    """Text of the data, in which nothing is markup and nothing is hidden."""
    return "".join(
        f'<b class="c">{code_of(character)}</b>'
        if is_hidden(character)
        else f'<b class="{_BLANKS[character]}"></b>{character}'
        if character in _BLANKS
        else html.escape(character)
        for character in text
    )


def _attribute(text: str) -> str:
    return html.escape("".join(code_of(c) if is_hidden(c) or c in _BLANKS else c for c in text))
