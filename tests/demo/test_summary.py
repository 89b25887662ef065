from __future__ import annotations

from dataclasses import replace
from statistics import median, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.demo.summary import ArmResult, PrefetchedTokens, percentile
from tests.demo.conftest import METRICS, make_answer, make_arm, make_result


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0], 95, 3.0),
        ([1.0, 2.0], 50, 1.5),
        ([4.0, 1.0, 3.0, 2.0], 0, 1.0),
        ([4.0, 1.0, 3.0, 2.0], 100, 4.0),
        ([0.0, 10.0, 20.0, 30.0, 40.0], 95, 38.0),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_percentile_agrees_with_the_standard_library(values: list[float]) -> None:
    cuts = quantiles(values, n=100, method="inclusive")
    assert percentile(values, 95) == pytest.approx(cuts[94])
    assert percentile(values, 50) == pytest.approx(median(values))


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_hit_rates_count_tokens_of_the_rounds_asked_for() -> None:
    arm = make_arm("kvflow", warm_hits=60)
    assert arm.hit_rate() == pytest.approx(0.6)
    assert arm.hit_rate(1) == pytest.approx(0.4)
    assert arm.hit_rate(1, 1) == 0
    assert arm.optimal_hit_rate() == pytest.approx(0.8)
    assert arm.optimal_hit_rate(2, 2) == pytest.approx(0.8)


def test_a_hit_rate_weighs_calls_by_their_length() -> None:
    arm = make_arm("kvflow", rounds=2)
    long = make_answer(prompt_tokens=1100, cached_tokens=1100)
    records = [*arm.records[:-1], replace(arm.records[-1], answer=long)]
    assert replace(arm, records=records).hit_rate() == pytest.approx(1100 / (9 * 100 + 1100))


def test_an_unknown_optimum_stays_unknown() -> None:
    assert replace(make_arm("kvflow"), optimal_hits=None).optimal_hit_rate() is None


def test_the_optimum_of_a_mirroring_host_is_known_where_there_is_one() -> None:
    assert make_arm("kvflow").mirrored_hit_rate() is None
    arm = replace(make_arm("kvflow+hicache"), mirrored_hits=[0] * 10 + [50] * 20)
    assert arm.mirrored_hit_rate() == pytest.approx(0.5)


def _with_tiers(name: str, tiers: list[tuple[int, int]]) -> ArmResult:
    """An arm whose last calls found so many tokens in cache, and so many of these on the host."""
    arm = make_arm(name, rounds=2)
    records = list(arm.records)
    for place, (cached, host) in enumerate(tiers, start=len(records) - len(tiers)):
        answer = make_answer(cached_tokens=cached, host_tokens=host)
        records[place] = replace(records[place], answer=answer)
    return replace(arm, records=records)


@pytest.mark.parametrize(
    ("tiers", "served", "share"),
    [
        ([], 0.0, None),
        ([(80, 0)] * 10, 1.0, 1.0),
        ([(80, 80)] * 10, 0.0, 0.0),
        ([(80, 16)] * 10, 0.0, 0.8),
        ([(80, 0), (80, 0), (40, 40)], 0.2, 0.8),
        ([(80, 80)] * 10 + [(80, 0)] * 10, 1.0, 1.0),
    ],
)
def test_served_from_the_device_are_calls_that_hit_and_loaded_nothing(
    tiers: list[tuple[int, int]], served: float, share: float | None
) -> None:
    arm = _with_tiers("kvflow+hicache", tiers)
    assert arm.served_from_device() == pytest.approx(served)
    assert arm.device_share() == (None if share is None else pytest.approx(share))


def test_the_first_round_is_not_served_from_the_device_unless_asked_for() -> None:
    arm = _with_tiers("kvflow+hicache", [(80, 80)] * 10 + [(80, 0)] * 10)
    assert arm.served_from_device(1) == pytest.approx(0.5)
    assert arm.device_share(1) == pytest.approx(0.5)


def test_prefetched_tokens_are_the_plugins() -> None:
    arm = replace(make_arm("kvflow+hicache"), kvflow_metrics=METRICS)
    assert arm.prefetched == PrefetchedTokens(loaded=900, used=700, wasted=50, late=30)


def test_without_prefetch_or_its_figures_there_are_no_prefetched_tokens() -> None:
    without = replace(make_arm("kvflow+hicache-noprefetch"), kvflow_metrics=METRICS)
    assert without.prefetched is None
    partly = {name: tokens for name, tokens in METRICS.items() if "late" not in name}
    assert replace(make_arm("kvflow+hicache"), kvflow_metrics=partly).prefetched is None


def test_the_first_round_is_not_in_the_ttft_unless_asked_for() -> None:
    arm = make_arm("stock", ttft_s=1.0)
    assert arm.ttft_s(50) == arm.ttft_s(95) == 1.0
    assert arm.ttft_s(95, 1) == 2.0


def test_a_round_lasts_until_its_last_answer_is_complete() -> None:
    assert make_arm("stock", ttft_s=1.0).round_wall_s(2) == pytest.approx(9 + 1.5)


def test_ratios_above_one_are_in_kvflows_favour() -> None:
    stock = make_arm("stock", ttft_s=3.0, wall_s=60)
    kvflow = make_arm("kvflow", ttft_s=1.0, wall_s=40)
    (comparison,) = make_result(stock, kvflow).comparisons
    assert comparison.ttft_p50_ratio == pytest.approx(3.0)
    assert comparison.ttft_p95_ratio == pytest.approx(3.0)
    assert comparison.wall_ratio == pytest.approx(1.5)


def test_only_arms_of_one_setting_are_compared() -> None:
    arms = [make_arm(name) for name in ("stock", "kvflow", "kvflow+hicache")]
    (comparison,) = make_result(*arms).comparisons
    assert (comparison.stock.arm.name, comparison.kvflow.arm.name) == ("stock", "kvflow")
    assert make_result(arms[0], arms[2]).comparisons == ()


def test_each_kvflow_arm_is_compared_with_stock() -> None:
    names = ("stock", "kvflow", "stock+hicache", "kvflow+hicache", "kvflow+hicache-noprefetch")
    comparisons = make_result(*map(make_arm, names)).comparisons
    assert [(one.stock.arm.name, one.kvflow.arm.name) for one in comparisons] == [
        ("stock", "kvflow"),
        ("stock+hicache", "kvflow+hicache"),
        ("stock+hicache", "kvflow+hicache-noprefetch"),
    ]


def _with_other_answer(arm: ArmResult, index: int) -> ArmResult:
    records = list(arm.records)
    records[index] = replace(records[index], answer=make_answer("else", output_ids=(0,)))
    return replace(arm, records=records)


def test_outputs_are_identical_if_all_tokens_are() -> None:
    result = make_result(make_arm("stock"), make_arm("kvflow", warm_hits=60))
    assert result.outputs_identical is True
    assert result.differences == ()


def test_one_other_answer_is_a_difference_and_is_named() -> None:
    result = make_result(make_arm("stock"), _with_other_answer(make_arm("kvflow"), 13))
    assert result.outputs_identical is False
    (difference,) = result.differences
    assert (difference.round, difference.agent_id) == (2, "architect")
    assert (difference.first_arm, difference.arm) == ("stock", "kvflow")


def test_one_arm_alone_is_not_called_identical() -> None:
    assert make_result(make_arm("stock")).outputs_identical is None
