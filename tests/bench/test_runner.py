from __future__ import annotations

from typing import Any

import pytest

from kvflow.bench.arms import ARMS
from kvflow.bench.needs import workload_needs
from kvflow.bench.runner import (
    BenchOptions,
    _check_fits,
    _engines_that_fit,
    _groups,
    _notes,
)
from kvflow.errors import InvalidInputError
from kvflow.workload import Scenario, build_workload, parse_scenario
from tests.bench.made_up import result, run


def given(**sections: Any) -> Scenario:
    return parse_scenario({"name": "x", "cache": {"device_tokens": 6144}, **sections})


def checked(scenario: Scenario) -> None:
    workload = build_workload(scenario)
    needs = workload_needs(workload.workflows(), scenario.cache.page_tokens)
    _check_fits(scenario, workload, needs)


def test_a_workload_that_fits_is_let_through() -> None:
    checked(given())


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"cache": {"device_tokens": 640}}, ("cache", "device_tokens")),
        ({"cache": {"device_tokens": 6144, "storage": True}}, ("cache", "host_tokens")),
    ],
)
def test_a_workload_that_cannot_run_is_refused(
    sections: dict[str, Any], field: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked(given(**sections))
    assert caught.value.field == field


def test_a_workload_that_is_all_warm_up_is_refused() -> None:
    # Two workflows of one round: the first is warm-up, and the second is not enough for two.
    scenario = given(agents={"agents": 2, "rounds": 1}, load={"workflows": 2}, warm_up_rounds=1)
    workload = build_workload(scenario)
    needs = workload_needs(workload.workflows(), 16)
    _check_fits(scenario, workload, needs)
    too_few = workload_needs(list(workload.workflows())[:1], 16)
    with pytest.raises(InvalidInputError, match="nothing to measure"):
        _check_fits(scenario, workload, too_few)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"repeats": 0}, "--repeats"),
        ({"engines_at_once": 0}, "--engines-at-once"),
        ({"arms": ()}, "--arms"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        BenchOptions(**{"scenario": given(), "arms": (ARMS["lru"],), **changes})
    assert caught.value.field == (field,)


def test_arms_are_grouped_by_how_many_engines_may_live() -> None:
    arms = tuple(ARMS.values())
    assert [len(group) for group in _groups(arms, 3)] == [3, 3, 1]
    assert [arm for group in _groups(arms, 3) for arm in group] == list(arms)


def test_at_least_one_engine_is_tried_however_little_memory_there_is() -> None:
    assert _engines_that_fit(0) == 1
    assert _engines_that_fit(24 * 10**9) > _engines_that_fit(12 * 10**9) > 1
    assert _engines_that_fit(None) == 1


def test_a_smaller_pool_and_a_refusal_are_noted() -> None:
    (one,) = result(("lru",)).arms
    assert list(_notes(one)) == []
    object.__setattr__(one, "actual_device_tokens", 1000)
    object.__setattr__(one, "runs", [run(refusals=["w0: no"])])
    smaller, refused = _notes(one)
    assert "1,000 device tokens, not the 1,600" in smaller
    assert "w0: no" in refused
