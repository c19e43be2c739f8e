"""1. What a source yields: conversations with media in them, one by one, by number."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cornstarch.errors import ArgumentError

ROLES = ("system", "user", "assistant")
Message = Mapping[str, Any]
Place = tuple[int, int]  # a pass through the source (an epoch), and a sample's index


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation, in the form of chat messages with typed content.

    Attributes:
        messages: dicts with `role` (`system`, `user` or `assistant`) and `content`, a string or a list of parts:
            `{"type": "text", "text": str}`, or `{"type": kind, kind: medium}` where the kind is `image`, `audio`,
            `video` or a modality key, and the medium whatever the modality's processor reads (an image, a path, ...).
        name: where the sample comes from, for messages: a file and an entry, say.

    Raises:
        ArgumentError: for a role or a content that is none of these.
    """

    messages: tuple[Message, ...]
    name: str

    def __post_init__(self) -> None:
        for number, message in enumerate(self.messages):
            where = f"{self.name}: message {number}"
            if message.get("role") not in ROLES:
                raise ArgumentError(f"{where} has the role {message.get('role')!r}; known roles: {', '.join(ROLES)}")
            content = message.get("content")
            if not isinstance(content, str | list):
                raise ArgumentError(f"{where} must have text or a list of parts as content, found {content!r}")
            for part in content if isinstance(content, list) else []:
                if not isinstance(part, Mapping) or part.get("type") not in part:
                    raise ArgumentError(f"{where} has a part that names no type and its content: {part!r:.100}")

    @property
    def media(self) -> Iterator[tuple[str, Any]]:
        """(kind, medium) of every medium, in the order in which they stand."""
        for message in self.messages:
            for part in message["content"] if not isinstance(message["content"], str) else []:
                if part["type"] != "text":
                    yield part["type"], part[part["type"]]

    @property
    def prompt(self) -> "Sample":
        """The conversation up to the assistant's last turn, which is to be generated."""
        turns = [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]
        return Sample(messages=self.messages[: turns[-1]] if turns else self.messages, name=self.name)

    @property
    def answer(self) -> str:
        """The text of the assistant's last turn; empty where there is none."""
        turns = [message for message in self.messages if message["role"] == "assistant"]
        return text_of(turns[-1]) if turns else ""


def text_of(message: Message) -> str:
    """The text of a message, without its media."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL text that are not empty, numbered from 1; line breaks inside strings are none."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


class Source(Protocol):
    """Anything that has samples by number. What it yields depends on the arguments alone, never on what came before."""

    def __len__(self) -> int:
        """How many samples there are."""

    def sample(self, index: int, chance: random.Random) -> Sample:
        """One sample.

        Args:
            index: from 0.
            chance: random numbers for sources that vary what they show; its state depends on the run's seed, the epoch
                and the index, so that no order of access changes a sample.

        Returns:
            The sample.

        Raises:
            ArgumentError: if the entry cannot be used; the message names it.
            MediaError: if its media cannot be read.
        """
