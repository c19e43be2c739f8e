"""`cornstarch data WORD CONFIG.yaml ...`: look at what a config trains on; a file for each word."""

import sys
from collections.abc import Sequence

from cornstarch.cli.main import guarded, usage

# Word to what it does; `cornstarch/cli/data_<word>.py` does it.
COMMANDS = {
    "check": "look for samples that cannot be used, and say what an epoch comes to",
    "view": "show a sample exactly as the model gets it",
}


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.
    """
    if not words or words[0] not in COMMANDS:
        asked = bool({"--help", "-h"} & set(words[:1]))
        print(usage(COMMANDS, "data "), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return guarded(f"data_{words[0]}", words[1:])
