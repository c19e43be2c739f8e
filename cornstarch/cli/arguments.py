"""What the commands' argument parsers have in common."""

import argparse


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows defaults and takes no abbreviations.

    Args:
        command: after `cornstarch`.
        description: what it does.

    Returns:
        The parser.
    """
    return argparse.ArgumentParser(
        prog=f"cornstarch {command}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def positive(text: str) -> int:
    """A whole number above 0.

    Args:
        text: as written.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, found {text!r}")
    return int(text)
