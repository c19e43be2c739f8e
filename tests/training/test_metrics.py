"""How fast steps were, as lines of metrics and the progress bar say it."""

from io import StringIO

import pytest

from cornstarch import StepRecord
from cornstarch.training.metrics import as_line, speed_of
from cornstarch.training.progress import Progress
from cornstarch.training.step_flops import Work


def record(step: int, needed: int, again: int, seconds: float) -> StepRecord:
    work = Work(
        needed={"vision_encoder": 0, "language_model": needed}, again={"vision_encoder": 0, "language_model": again}
    )
    return StepRecord(
        step=step, loss=1.0, tokens=10, labelled_tokens=5, samples=1, seconds=seconds, learning_rates={}, grad_norm=1.0,
        grad_norms={}, work=work,
    )  # fmt: skip


def test_mfu_leaves_out_what_is_computed_again() -> None:
    """Two steps of two seconds, 80 operations needed and 20 computed again in each, on a device that can do 100."""
    records = [record(1, 80, 20, 2.0), record(2, 80, 20, 2.0)]
    assert speed_of(records, 4.0, 100.0) == (50.0, 0.4)
    assert speed_of(records, 4.0, None) == (50.0, None)
    line = as_line(records, 100.0)
    assert (line["flops"], line["flops_per_second"], line["mfu"]) == (100, 50.0, 0.4)
    assert line["flops/language_model"] == 100
    assert line["flops/vision_encoder"] == 0


def test_steps_without_figures_have_none() -> None:
    bare = StepRecord(
        step=1, loss=1.0, tokens=10, labelled_tokens=5, samples=1, seconds=1.0, learning_rates={}, grad_norm=1.0,
        grad_norms={},
    )  # fmt: skip
    assert speed_of([bare, record(2, 1, 0, 1.0)], 2.0, 100.0) is None
    assert not {"flops", "flops_per_second", "mfu"} & as_line([bare], 100.0).keys()


@pytest.mark.parametrize("peak, told", [(1e15, "FLOP/s, MFU "), (None, "FLOP/s  ")])
def test_progress_says_the_speed(peak: float | None, told: str) -> None:
    shown = StringIO()
    with Progress(1, shown, peak) as progress:
        progress.start(0)
        progress.update(record(1, 3 * 10**12, 0, 1.0))
    assert told in shown.getvalue()
