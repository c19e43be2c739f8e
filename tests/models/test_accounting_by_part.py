"""What a step costs, against PyTorch's own counters."""

import pytest

from cornstarch import StepCost, measure_step
from tests import costs
from tests.costs import PAIRS, REGIMES

Pair = tuple[str, str]
CELLS = pytest.mark.parametrize("regime", REGIMES)
EACH = pytest.mark.parametrize("pair", PAIRS, ids=" with ".join)


def largest_error(found: StepCost, expected: costs.Counted) -> float:
    """Of all operations, and of every part's in either direction."""
    pairs = [(found.flops, expected.total)]
    for name, part in found.parts.items():
        pairs.append((part.forward_flops, expected.forward[name]))
        pairs.append((part.backward_flops + part.recomputed_flops, expected.backward[name]))
    return max(abs(own - other) / max(other, 1) for own, other in pairs)


@EACH
@CELLS
def test_operations_are_those_of_the_counter(pair: Pair, regime: str) -> None:
    """All, and part by part; the weights' gradients of depthwise convolutions count too high in both."""
    model, given = costs.made(pair, regime), costs.batch(pair)
    expected = costs.counted(model, given)
    assert sum(expected.forward.values()) + sum(expected.backward.values()) == expected.total  # nothing is in no part
    error = largest_error(measure_step(model, given), expected)
    assert error <= 0.01, f"off by {error:.3%}"


@EACH
@pytest.mark.parametrize("regime", [regime for regime in REGIMES if regime != "checkpointed"])
def test_saved_bytes_are_those_that_autograd_holds(pair: Pair, regime: str) -> None:
    model, given = costs.made(pair, regime), costs.batch(pair)
    expected = costs.saved_bytes(model, given)
    found = sum(part.saved_bytes for part in measure_step(model, given).parts.values())
    assert abs(found - expected) <= 0.01 * expected, f"{found:,} bytes for {expected:,}"
