"""1f. Rules for the inputs of a modality: what their processor is told, and which text stands for one of them.

Without a rule a mark stands for an input. Some models were trained on more: signs around the features, or, for an image
that was cut into tiles, one run of features per tile with the tile's place before it.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cornstarch.errors import ArgumentError

# (outputs of the modality's processor, the token that stands for features, number of inputs) -> a text for each input
TextFunction = Callable[[Mapping[str, Any], str, int], list[str]]


@dataclass(frozen=True, kw_only=True)
class FramedPictures:
    """The text of an image that has signs around it, and perhaps crops of it behind it (Gemma 3).

    Attributes:
        before: text before the features of a picture.
        after: text behind them.
        whole: text before the whole image, if there are crops.
        crops: text before the first crop.
        between: text between crops.
    """

    before: str = ""
    after: str = ""
    whole: str = ""
    crops: str = ""
    between: str = ""

    def __call__(self, outputs: Mapping[str, Any], token: str, number: int) -> list[str]:
        """A text for each image.

        Args:
            outputs: of the image processor; `num_crops` says how many crops of each image follow it, none without it.
            token: stands for the features of one picture.
            number: of images.

        Returns:
            The texts.
        """
        picture = f"{self.before}{token}{self.after}"
        found = outputs.get("num_crops")
        return [
            f"{self.whole}{picture}{self.crops}{self.between.join([picture] * int(crops))}" if int(crops) else picture
            for crops in ([0] * number if found is None else found)
        ]


@dataclass(frozen=True, kw_only=True)
class TiledPictures:
    """The text of an image that may be cut into tiles: every picture behind a sign that says which it is (Idefics3).

    Attributes:
        edge: sign before every picture, and behind the last.
        tile: sign of a tile; `{row}` and `{column}` in it stand for its place, from 1.
        whole: sign of the whole image, which comes last.
    """

    edge: str
    tile: str
    whole: str

    def __call__(self, outputs: Mapping[str, Any], token: str, number: int) -> list[str]:
        """A text for each image.

        Args:
            outputs: of the image processor; `rows` and `cols` hold a list for each sample, with the rows and columns of
                tiles of each of its images, 0 for an image in one piece.
            token: stands for the features of one picture.
            number: of images.

        Returns:
            The texts.
        """
        rows = [count for sample in outputs["rows"] for count in sample]
        columns = [count for sample in outputs["cols"] for count in sample]
        return [self._text(*pair, token) for pair in zip(rows, columns, strict=True)]

    def _text(self, rows: int, columns: int, token: str) -> str:
        lines = [
            "".join(
                f"{self.edge}{self.tile.format(row=row + 1, column=column + 1)}{token}" for column in range(columns)
            )
            for row in range(rows)
        ]
        tiles = "".join(f"{line}\n" for line in lines)
        return f"{tiles}{chr(10) if tiles else ''}{self.edge}{self.whole}{token}{self.edge}"


TEXTS: dict[str, type] = {"framed_pictures": FramedPictures, "tiled_pictures": TiledPictures}


@dataclass(frozen=True, kw_only=True)
class InputRule:
    """How the inputs of one modality are processed and written.

    Attributes:
        arguments: for the modality's processor, in every call; what a call says itself wins.
        renamed: names in the processor's output to the names that the encoder has for them.
        nested: when the processor is given a list of inputs for each sample instead of a flat one: never, if the caller
            gave them so, or always.
        text: makes the text that stands for each input, from the processor's output. Wherever the token is in it, there
            is a run of the input's features; all runs of an input are of one length. It must depend on the input alone.
        token: stands for features in that text, and in `input_ids`; the modality's mark if None.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    nested: Literal["never", "as_given", "always"] = "never"
    text: TextFunction | None = None
    token: str | None = None

    def nesting(self, given: list[int] | None, marks: list[int]) -> list[int] | None:
        """How many inputs of each sample the processor is given in a list of their own.

        Args:
            given: as the caller nested them.
            marks: how many each sample has.

        Returns:
            The numbers; None for a flat list.
        """
        return {"never": None, "as_given": given, "always": marks}[self.nested]


def describe(rule: InputRule) -> dict[str, Any]:
    """A rule as JSON values; a text function that is not the package's own is named only, as `custom`."""
    name = next((name for name, cls in TEXTS.items() if type(rule.text) is cls), None)
    text: dict[str, Any] | None = None
    if name is not None:
        text = {"name": name, "arguments": dataclasses.asdict(rule.text)}  # type: ignore[call-overload]
    elif rule.text is not None:
        text = {"custom": getattr(rule.text, "__qualname__", type(rule.text).__qualname__)}
    return {
        "arguments": dict(rule.arguments),
        "renamed": dict(rule.renamed),
        "nested": rule.nested,
        "text": text,
        "token": rule.token,
    }


def build(description: Mapping[str, Any]) -> InputRule:
    """The rule that `describe` described.

    Args:
        description: its fields.

    Returns:
        The rule.

    Raises:
        ArgumentError: for a text function that the package does not have.
    """
    text = description["text"]
    if text is not None:
        cls = TEXTS.get(text.get("name"))
        known = list(inspect.signature(cls).parameters) if cls is not None else []
        if cls is None or not set(text["arguments"]) <= set(known):
            raise ArgumentError(f"unknown text of an input, {text}; known are {', '.join(TEXTS)}")
        text = cls(**text["arguments"])
    return InputRule(**{**description, "text": text})
