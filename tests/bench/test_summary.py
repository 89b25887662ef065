from __future__ import annotations

import pytest

from kvflow.bench.rows import Run
from kvflow.bench.summary import differences, prefetch_figures, ratios, summarize
from tests.bench.made_up import METRICS, row, run


def test_only_what_is_counted_is_summed_up() -> None:
    figures = summarize([run(1), run(2)])
    assert figures["calls"] == 4
    assert figures["prompt_tokens"] == 400
    assert figures["hit_rate"] == 0.5
    assert figures["hit_rate_by_tier"] == {"device": 0.3, "host": 0.2, "storage": 0.0}


def test_the_warm_up_is_not_part_of_the_wall_time() -> None:
    assert run().wall_s == 2.0
    assert Run(1, [row(0, counted=True)], 0.0).wall_s == 1.0


def test_percentiles_are_over_all_repeats_and_wall_times_are_spread() -> None:
    figures = summarize([run(1, speed=1.0), run(2, speed=2.0), run(3, speed=4.0)])
    assert figures["wall_s"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert figures["ttft_p50_s"] == 0.25
    assert figures["ttft_p95_s"] == 0.5
    assert figures["calls_per_s"]["median"] == 2.0
    assert figures["output_tokens_per_s"]["max"] == 32.0


def test_nothing_counted_is_an_error() -> None:
    with pytest.raises(ValueError, match="counted"):
        summarize([Run(1, [row(0)], 0.0)])


def test_the_bound_is_over_the_repeats_it_was_worked_out_for() -> None:
    known = run(1, bound_hits=[90, 90, 60, 70], mirrored_hits=[0, 0, 10, 20])
    figures = summarize([known, run(2)])
    assert figures["bound_hit_rate"] == 0.65
    assert figures["mirrored_hit_rate"] == 0.15
    assert summarize([run(1)])["bound_hit_rate"] is None


def test_ratios_set_each_repeat_against_the_same_one() -> None:
    arms = {
        "lru": [run(1, speed=1.0), run(2, speed=2.0), run(3, speed=1.0)],
        "kvflow": [run(1, speed=2.0), run(2, speed=3.0), run(3, speed=4.0)],
    }
    (one,) = ratios(arms, ["lru"])
    assert (one["arm"], one["to"]) == ("kvflow", "lru")
    for metric in ("wall_s", "ttft_p50_s", "ttft_p99_s", "calls_per_s"):
        assert one[metric] == pytest.approx({"median": 2.0, "min": 1.5, "max": 4.0})


def test_ratios_are_to_every_reference_that_ran() -> None:
    arms = {"limit": [run(speed=4.0)], "lru": [run()], "kvflow": [run(speed=2.0)]}
    found = {
        (one["arm"], one["to"]): one["wall_s"]["median"]
        for one in ratios(arms, ["limit", "lru", "hicache-write-back"])
    }
    assert found == pytest.approx(
        {
            ("limit", "lru"): 4.0,
            ("lru", "limit"): 0.25,
            ("kvflow", "limit"): 0.5,
            ("kvflow", "lru"): 2.0,
        }
    )


def test_what_the_plugin_counted() -> None:
    figures = prefetch_figures(METRICS)
    assert figures is not None
    assert figures["loaded_tokens"] == 900
    assert figures["fetched_bytes"] == 1000
    assert (figures["used_tokens"], figures["used_bytes"]) == (700, 7000)
    assert (figures["wasted_tokens"], figures["wasted_bytes"]) == (50, 500)
    assert figures["late_tokens"] == 0
    assert figures["stall_load_s"] == 0.25
    assert (figures["predictions_hit"], figures["predictions_miss"]) == (8, 0)
    assert prefetch_figures({}) is None


def test_same_answers_differ_nowhere() -> None:
    assert differences({"lru": [run(1), run(2)], "kvflow": [run(1)]}) == []


def test_another_answer_and_a_missing_call_are_differences() -> None:
    rows = list(run().calls)
    other = Run(1, [*rows[:1], row(1, output_hash="else"), rows[2]], 0.0)
    found = differences({"lru": [run()], "kvflow": [other]})
    assert [(one.position, one.arm) for one in found] == [(1, "kvflow"), (3, "kvflow")]


def test_repeats_of_an_arm_are_compared_too() -> None:
    other = Run(2, [row(n, output_hash="else") for n in range(4)], 0.0)
    assert [one.repeat for one in differences({"lru": [run(), other]})] == [2, 2, 2, 2]
