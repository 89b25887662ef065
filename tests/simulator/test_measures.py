from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.simulator.measures import RELATIVE_ERROR, Durations


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_quantiles_are_as_near_as_promised(values: list[float], share: float) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert durations.quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.0001)


def test_nothing_and_next_to_nothing() -> None:
    durations = Durations()
    assert math.isnan(durations.quantile(0.5))
    durations.add(0.0)
    assert durations.quantiles((0.5,))[0.5] == pytest.approx(1e-9, rel=RELATIVE_ERROR)
