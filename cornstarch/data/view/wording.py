"""What the forms of a view share: positions in runs that are shown as one, and sizes in words."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cornstarch._visible import visible
from cornstarch.data.viewing import MediumView, PositionView, SampleView


class Segment(NamedTuple):
    """Neighbouring positions that are shown as one.

    Attributes:
        start: the first position.
        positions: all of them.
        medium: the input whose features come there; None for text.
        learnt: whether they carry a loss.
    """

    start: int
    positions: Sequence[PositionView]
    medium: MediumView | None
    learnt: bool

    @property
    def text(self) -> str:
        """Of all its positions."""
        return "".join(position.text for position in self.positions)


def segments(view: SampleView) -> Iterator[Segment]:
    """The positions of a sample in runs of one medium, and of text that is learnt or not."""
    owner: dict[int, tuple[int, int]] = {}  # position to medium and run
    for place, own in enumerate(view.media):
        for run, (start, end) in enumerate(own.positions):
            owner |= dict.fromkeys(range(start, end), (place, run))
    numbered = enumerate(view.positions)
    groups = itertools.groupby(
        numbered, key=lambda pair: (owner.get(pair[0]), pair[0] > 0 and pair[1].label is not None)
    )
    for (owned, learnt), group in groups:
        found = list(group)
        medium = view.media[owned[0]] if owned is not None else None
        yield Segment(found[0][0], [position for _, position in found], medium, learnt)


def count(number: int, one: str, more: str | None = None) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def shape(sizes: Sequence[int]) -> str:
    """`3 x 336 x 336`."""
    return " x ".join(map(str, sizes)) or "one number"


def called(medium: MediumView, view: SampleView) -> str:
    """`image 0`, with its modality where that says more: another has the same kind, or it is no known kind."""
    name = medium.key if medium.kind == "other" else medium.kind
    others = {other.key for other in view.media if other.kind == medium.kind}
    return f"{name} {medium.index}" + (f" ({medium.key})" if medium.key != name and len(others) > 1 else "")


def given(medium: MediumView) -> str:
    """Sizes of a medium as it was given: `640 x 480`, `1.50 s`."""
    size = f"{medium.size[0]} x {medium.size[1]}" if medium.size is not None else ""
    if medium.frames is not None:
        return f"{count(medium.frames, 'frame')} of {size}"
    if medium.seconds is not None:
        return f"{medium.seconds:.2f} s at {medium.sampling_rate:,} Hz"
    return size


def made(medium: MediumView) -> str:
    """What the encoder gets of it: `pixel_values 3 x 336 x 336, 576 positions`."""
    if medium.error is not None:
        return f"cannot be read: {visible(medium.error, ' ')}"
    if medium.left_out:
        return "left out"
    if not medium.inputs and not medium.positions:
        return "read"
    number = sum(end - start for start, end in medium.positions)
    runs = f" in {len(medium.positions)} runs" if len(medium.positions) > 1 else ""
    inputs = [f"{name} {shape(sizes)}" for name, sizes in medium.inputs.items()]
    return ", ".join([*inputs, f"{count(number, 'position')}{runs}"])


def summary(view: SampleView) -> str:
    """How many positions there are, and of what."""
    features = sum(position.modality is not None for position in view.positions)
    return f"{count(len(view.positions), 'position')}, {features:,} of them of inputs, {view.labelled:,} labelled"
