"""Text of others, such as names of files and what data hold, in which nothing is hidden. Known to all layers."""

import unicodedata

# Control characters, marks of direction and of width zero, halves of characters, line ends that are none.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# And what is drawn as nothing though it is a letter, a mark or not assigned: Unicode's Default_Ignorable_Code_Point
# without those above. Emoji have some of it, and whole texts have been hidden in it.
_DRAWN_AS_NOTHING = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF),
)  # fmt: skip
LINE_BREAK, TAB = "↵", "⇥"


def is_hidden(character: str) -> bool:
    """Whether a character would not be seen, or change how others are seen; line breaks and tabs are shown apart."""
    if character <= "~":
        return character < " " and character not in "\n\t"
    drawn_as_nothing = any(first <= ord(character) <= last for first, last in _DRAWN_AS_NOTHING)
    return drawn_as_nothing or unicodedata.category(character) in _HIDDEN


def code_of(character: str) -> str:
    """What stands for a hidden character, such as `U+202E`."""
    return f"U+{ord(character):04X}"


def visible(text: str, line_break: str = f"{LINE_BREAK}\n") -> str:
    """A text in which what is hidden is written as `⟨U+202E⟩`, so that it can neither hide nor command a terminal.

    Args:
        text: any.
        line_break: what stands for one.

    Returns:
        The text.
    """
    shown = "".join(f"⟨{code_of(character)}⟩" if is_hidden(character) else character for character in text)
    return shown.replace("\n", line_break).replace("\t", TAB)
