"""Token buckets: nobody gets more than their rate, nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.server.rates import Buckets, retry_after
from tests.server.conftest import FakeClock


def test_a_burst_then_the_rate(clock: FakeClock) -> None:
    buckets = Buckets(burst_s=2, clock=clock)

    assert sum(buckets.take("a", 10) == 0 for _ in range(100)) == 20
    assert buckets.take("a", 10) == pytest.approx(0.1)
    clock.now_s += 1
    assert sum(buckets.take("a", 10) == 0 for _ in range(100)) == 10
    assert buckets.take("b", 10) == 0


def test_a_cost_above_the_burst_is_paid_later(clock: FakeClock) -> None:
    buckets = Buckets(burst_s=2, clock=clock)

    assert buckets.take("a", 10, cost=1020) == 0
    wait_s = buckets.take("a", 10)

    assert wait_s == pytest.approx(100.1)
    clock.now_s += wait_s
    assert buckets.take("a", 10) == 0


def test_looking_takes_nothing(clock: FakeClock) -> None:
    buckets = Buckets(burst_s=1, clock=clock)

    for _ in range(10):
        assert buckets.wait_s("a", 1) == 0
    assert buckets.take("a", 1) == 0
    assert buckets.wait_s("a", 1) > 0


def test_names_are_forgotten_when_there_are_too_many(clock: FakeClock) -> None:
    buckets = Buckets(burst_s=1, max_names=2, clock=clock)
    for name in ("a", "b", "c"):
        assert buckets.take(name, 1) == 0
    assert buckets.take("c", 1) > 0
    assert buckets.take("b", 1) > 0
    assert buckets.take("a", 1) == 0  # forgotten


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=60))
def test_over_time_none_gets_more_than_its_rate(asked: list[tuple[float, int]]) -> None:
    clock = FakeClock()
    began_s = clock.now_s
    buckets = Buckets(burst_s=2, clock=clock)
    got = largest = 0
    for wait_s, cost in asked:
        clock.now_s += wait_s
        if buckets.take("a", 10, cost) == 0:
            got += cost
            largest = max(largest, cost)
    assert got <= 20 + 10 * (clock.now_s - began_s) + largest + 1e-6


@given(st.floats(0.001, 1e6), st.integers(1, 100_000))
def test_waiting_as_told_is_enough(per_s: float, cost: int) -> None:
    clock = FakeClock()
    buckets = Buckets(burst_s=2, clock=clock)
    buckets.take("a", per_s, cost + 2 * per_s)

    clock.now_s += int(retry_after(buckets.take("a", per_s))["Retry-After"])

    assert buckets.take("a", per_s) == 0
