"""What the demos share: a run, then its model asked about test data, a sheet of what it said, a line of figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cornstarch.data import Collator, Source, first_samples
from cornstarch.models.multimodal_language_model import MultimodalModel
from cornstarch.training.config import EvaluationConfig
from cornstarch.training.evaluation import answer
from cornstarch.training.reading import read_config
from cornstarch.training.run import train
from cornstarch.training.signals import EXIT_CODES

T = TypeVar("T")

SHEET = 24  # panels on the sheet of predictions


def run(words: Sequence[str], ask: Callable[[Path], str]) -> int:
    """Train, and ask what came of it; the last line printed is the figures.

    Args:
        words: the config, and keys of it to change.
        ask: folder of the finished run -> the line of figures.

    Returns:
        The exit code.
    """
    result = train(read_config(words[0], words[1:]))
    if result.stopped is not None:
        print(f"stopped by {result.stopped} after step {result.step}; go on with --run.resume true")
        return EXIT_CODES[result.stopped]
    print(ask(result.folder))
    return 0


def answers(model: MultimodalModel, collator: Collator, source: Source) -> list[str]:
    """What a model says to every question of a source."""
    return answer(model, collator, first_samples(source), EvaluationConfig(batch_size=256, max_new_tokens=12))


def chosen(answered: Sequence[T], is_right: Callable[[T], bool]) -> list[T]:
    """What a sheet shows: wrong ones first, at most half: worth seeing, but they should not look like the rule.

    Args:
        answered: all there are.
        is_right: whether one is.

    Returns:
        As many as a sheet has panels, or all if there are fewer.
    """
    wrong = [one for one in answered if not is_right(one)]
    right = [one for one in answered if is_right(one)]
    return (wrong[: SHEET // 2] + right)[:SHEET]
