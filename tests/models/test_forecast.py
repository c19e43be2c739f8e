"""What a step will cost by shapes alone, against what it is measured to cost."""

import pytest

from cornstarch import forecast_step, measure_step
from tests import costs
from tests.costs import PAIRS, REGIMES


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("pair", PAIRS, ids=" with ".join)
def test_every_part_costs_what_is_measured(pair: tuple[str, str], regime: str) -> None:
    """Operations and all bytes of every part, exactly."""
    model, given = costs.made(pair, regime), costs.batch(pair)
    assert forecast_step(model, given).parts == measure_step(model, given).parts
