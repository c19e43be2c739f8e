"""`cornstarch data view CONFIG.yaml [--sample N] [--format terminal|html|json] [--any.key value ...]`."""

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.
    """
    raise NotImplementedError
