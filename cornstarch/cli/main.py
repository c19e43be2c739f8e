"""The command `cornstarch`: a command each in a file of its own, and what a person sees when something is wrong."""

import importlib
import sys
from collections.abc import Mapping, Sequence

from cornstarch._visible import visible
from cornstarch.errors import CornstarchError
from cornstarch.version import __version__

COMMANDS = {
    "train": "train what a config describes",
    "eval": "check a trained model: its loss, and how many answers are exactly right",
    "generate": "have a model answer",
    "info": "what a model is made of",
    "inspect": "what a step costs, part by part: memory and operations, measured and forecast",
    "data": "look at what a config trains on, before it does",
    "export": "write a model as a checkpoint that plain transformers loads",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `cornstarch`; the process's own by default.

    Returns:
        The exit code: 0, 1 for an error, 2 for a command line that cannot be understood, 130 and 143 for a run that
        was stopped by a signal.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        print(f"cornstarch {__version__}")
        return 0
    if not words or words[0] not in COMMANDS:
        asked = words[:1] in (["--help"], ["-h"])
        print(usage(COMMANDS), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return guarded(words[0], words[1:])


def guarded(command: str, words: Sequence[str]) -> int:
    """Run a command; a mistake becomes a message and an exit code.

    Args:
        command: the module's name in this package.
        words: its arguments.

    Returns:
        The exit code.
    """
    try:
        code: int = importlib.import_module(f"cornstarch.cli.{command}").main(words)
    except (CornstarchError, ImportError, OSError) as error:
        print(f"error: {visible(str(error), chr(10))}", file=sys.stderr)  # names of files may command a terminal
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return code


def usage(commands: Mapping[str, str], before: str = "") -> str:
    """What is printed of a table of commands.

    Args:
        commands: name to what it does.
        before: words between `cornstarch` and the name.

    Returns:
        Lines of text.
    """
    width = max(map(len, commands))
    lines = [f"  cornstarch {before}{name.ljust(width)}  {text}" for name, text in commands.items()]
    return "\n".join(["usage:", *lines, "", f"cornstarch {before}COMMAND --help says more."])


if __name__ == "__main__":
    sys.exit(main())
