"""Encoders and language models of every kind, composed; what each check is, `checks.py` says."""

import itertools

import pytest
import transformers

from tests import tiny
from tests.zoo import page, run
from tests.zoo.checks import CHECKS
from tests.zoo.table import ENCODERS, LANGUAGE_MODELS

# Each row at least once, with changing partners; the checks that other tests make of some models too, in turn.
PAIRS = list(zip(itertools.cycle(ENCODERS), LANGUAGE_MODELS, strict=False))
OFTEN = ["forward", "backward", "padded", "generates"]
IN_TURN = itertools.cycle([check for check in CHECKS if check not in OFTEN])
CELLS = [(*pair, check) for pair in PAIRS for check in (*OFTEN, next(IN_TURN))]


@pytest.mark.parametrize("encoder, language_model, check", CELLS)
def test_every_row_with_a_partner(encoder: str, language_model: str, check: str) -> None:
    for row in (ENCODERS[encoder], LANGUAGE_MODELS[language_model]):
        try:
            tiny.find(row.cls)
        except (AttributeError, ImportError):
            pytest.skip(f"transformers {transformers.__version__} has no {row.cls}")
    CHECKS[check](encoder, language_model)


def test_every_row_is_among_them() -> None:
    assert {encoder for encoder, _ in PAIRS} == set(ENCODERS)
    assert {text for _, text in PAIRS} == set(LANGUAGE_MODELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", [job for job in run.all_jobs() if not job.by_itself], ids=lambda job: " with ".join(map(str, job))
)
def test_everything(job: run.Job) -> None:
    """What `make zoo` runs."""
    assert [cell for cell in run.run(job) if cell.reason] == []


def test_the_page_is_of_these_rows() -> None:
    """`make zoo` was run since the table last changed, and every check passed then."""
    text = page.PAGE.read_text(encoding="utf-8")
    for row in (*ENCODERS, *LANGUAGE_MODELS):
        assert f"| {row} |" in text, f"{row} is not in {page.PAGE.name}: run `make zoo`"
    assert "## What fails\n\nNothing." in text
