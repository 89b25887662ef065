from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.prefetch import Link, LoadChoice, RateEstimator, choose_load

SIZES = (128, 1024, 4096, 512, 2048, 256, 8192)


def estimated(samples: Iterable[tuple[int, float]]) -> Link:
    estimator = RateEstimator()
    for tokens, seconds in samples:
        estimator.observe(tokens, seconds)
    link = estimator.link()
    assert link is not None
    return link


def copies(link: Link, count: int) -> list[tuple[int, float]]:
    return [(size, link.seconds(size)) for size in (SIZES * count)[:count]]


class TestRateEstimator:
    def test_nothing_is_known_before_the_first_sample(self) -> None:
        assert RateEstimator().link() is None

    def test_one_sample_gives_a_rate(self) -> None:
        assert estimated([(500, 0.25)]) == Link(2000)

    @pytest.mark.parametrize(
        ("tokens", "seconds"),
        [(0, 1), (-5, 1), (100, 0), (100, -1), (100, math.nan), (100, math.inf)],
    )
    def test_impossible_samples_are_ignored(self, tokens: int, seconds: float) -> None:
        estimator = RateEstimator()
        estimator.observe(tokens, seconds)
        assert estimator.link() is None
        for known in copies(Link(1e5, 0.001), 5):
            estimator.observe(*known)
        before = estimator.link()
        estimator.observe(tokens, seconds)
        assert estimator.link() == before

    @settings(deadline=None)
    @given(st.floats(1e2, 1e7), st.floats(0.0001, 0.1))
    def test_an_exact_line_is_found(self, tokens_per_s: float, latency_s: float) -> None:
        link = estimated(copies(Link(tokens_per_s, latency_s), 30))
        assert link.tokens_per_s == pytest.approx(tokens_per_s, rel=1e-3)
        assert link.latency_s == pytest.approx(latency_s, rel=1e-3, abs=1e-6 * 8192 / tokens_per_s)

    @pytest.mark.parametrize("seed", range(10))
    def test_a_noisy_line_is_found(self, seed: int) -> None:
        noise = random.Random(seed)
        true = Link(1e5, 0.01)
        link = estimated((n, s * noise.uniform(0.95, 1.05)) for n, s in copies(true, 60))
        assert link.tokens_per_s == pytest.approx(true.tokens_per_s, rel=0.15)
        assert link.seconds(4096) == pytest.approx(true.seconds(4096), rel=0.1)
        assert 0 <= link.latency_s < 0.02

    @pytest.mark.parametrize("sizes", [(1024,), (1000, 1024, 1050)])
    def test_about_one_size_gives_a_rate_only(self, sizes: tuple[int, ...]) -> None:
        noise = random.Random(0)
        samples = [(n, (0.01 + n / 1e5) * noise.uniform(0.9, 1.1)) for n in sizes * 20]
        link = estimated(samples)
        assert link.latency_s == 0
        assert link.seconds(1024) == pytest.approx(0.01 + 1024 / 1e5, rel=0.1)

    def test_latency_is_never_negative(self) -> None:
        """Time that grows faster than size, as where a large copy is slowed by others."""
        link = estimated((n, (n / 1000) ** 2) for n in SIZES * 3)
        assert link.latency_s == 0
        assert link.tokens_per_s > 0

    def test_larger_ones_that_take_less_give_a_rate_through_the_origin(self) -> None:
        assert estimated([(100, 2.0), (1000, 1.0)] * 2).latency_s == 0

    def test_a_changed_load_is_followed(self) -> None:
        estimator = RateEstimator()
        for rate in (1e5, 2e4, 3e5):
            for sample in copies(Link(rate), 60):
                estimator.observe(*sample)
            link = estimator.link()
            assert link is not None
            assert link.seconds(4096) == pytest.approx(4096 / rate, rel=0.1)

    def test_a_hundred_times_slower_is_reached(self) -> None:
        link = estimated(copies(Link(1e6), 20) + copies(Link(1e4), 60))
        assert link.seconds(4096) == pytest.approx(4096 / 1e4, rel=0.1)

    def test_one_stall_moves_the_line_a_little(self) -> None:
        steady = copies(Link(1e5), 28)
        assert estimated([*steady, (2048, 60.0)]).seconds(2048) < 2 * 2048 / 1e5
        assert estimated([*steady, (2048, 60.0), *copies(Link(1e5), 28)]).seconds(
            2048
        ) == pytest.approx(2048 / 1e5, rel=0.1)

    def test_a_slow_first_copy_is_forgotten(self) -> None:
        link = estimated([(1024, 5.0), *copies(Link(1e5), 60)])
        assert link.seconds(4096) == pytest.approx(4096 / 1e5, rel=0.1)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 1e4)), min_size=1))
    def test_whatever_comes_the_link_is_usable(self, samples: list[tuple[int, float]]) -> None:
        link = estimated(samples)
        assert 0 < link.tokens_per_s < math.inf
        assert 0 <= link.latency_s <= max(seconds for _, seconds in samples)
        assert estimated(samples) == link


FAST = Link(1000)
SLOW = Link(100)


@pytest.mark.parametrize(
    ("tokens", "load_link", "prefill_link", "expected"),
    [
        (500, None, None, "load"),
        (500, SLOW, None, "load"),
        (500, None, FAST, "load"),
        (500, FAST, SLOW, "load"),
        (500, SLOW, FAST, "recompute"),
        (500, Link(1000), Link(1000), "load"),
        (500, Link(1000), Link(1090), "load"),
        (500, Link(1000), Link(1110), "recompute"),
        (500, Link(1000), Link(1000, latency_s=9), "load"),
        (500, SLOW, Link(1000, latency_s=9), "recompute"),
        (500, Link(1000, latency_s=0.04), Link(1000), "load"),
        (500, Link(1000, latency_s=0.06), Link(1000), "recompute"),
        (100, Link(2000, latency_s=1), Link(1000), "recompute"),
        (5000, Link(2000, latency_s=1), Link(1000), "load"),
        (0, SLOW, FAST, "load"),
    ],
)
def test_choose_load(
    tokens: int, load_link: Link | None, prefill_link: Link | None, expected: LoadChoice
) -> None:
    assert choose_load(tokens, load_link, prefill_link) == expected


@pytest.mark.parametrize("forced", ["load", "recompute"])
@pytest.mark.parametrize(("load_link", "prefill_link"), [(SLOW, FAST), (FAST, SLOW), (None, None)])
def test_a_forced_choice_is_taken(
    forced: Literal["load", "recompute"], load_link: Link | None, prefill_link: Link | None
) -> None:
    assert choose_load(500, load_link, prefill_link, forced) == forced


@pytest.mark.parametrize(("margin", "expected"), [(9, "recompute"), (11, "load")])
def test_the_margin(margin: float, expected: LoadChoice) -> None:
    assert choose_load(500, SLOW, FAST, margin=margin) == expected
