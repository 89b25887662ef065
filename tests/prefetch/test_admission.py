from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.prefetch.admission import WorkflowAdmission, WorkflowDemand

CAPACITY = 100


def key(name: str) -> tuple[str, str]:
    return ("client", name)


def waits(name: str, tokens: int, since_s: float) -> WorkflowDemand:
    return WorkflowDemand(key(name), tokens, since_s, running=False)


def runs(name: str, tokens: int) -> WorkflowDemand:
    return WorkflowDemand(key(name), tokens, None, running=True)


def pauses(name: str, tokens: int) -> WorkflowDemand:
    return WorkflowDemand(key(name), tokens, None, running=False)


def admit(
    admission: WorkflowAdmission,
    *demands: WorkflowDemand,
    now_s: float = 10.0,
    shared_tokens: int = 0,
) -> str | None:
    """The names of those admitted, in order; all names here are one letter."""
    admitted = admission.admitted(demands, CAPACITY, shared_tokens, now_s)
    return None if admitted is None else "".join(sorted(name for _, name in admitted))


@pytest.mark.parametrize(
    ("overcommit", "shared_tokens", "expected"),
    [(1.0, 0, None), (1.0, 1, "ab"), (1.2, 20, None), (1.2, 21, "ab"), (2.0, 60, None)],
)
def test_there_is_a_limit_only_under_pressure(
    overcommit: float, shared_tokens: int, expected: str | None
) -> None:
    admission = WorkflowAdmission(overcommit)
    demands = [runs("a", 30), runs("b", 30), pauses("c", 40)]
    assert admit(admission, *demands, shared_tokens=shared_tokens) == expected


@pytest.mark.parametrize(
    ("demands", "shared_tokens", "expected"),
    [
        # The longest waiting first, whatever the order of the demands.
        ([waits("a", 50, 3), waits("b", 50, 1), waits("c", 50, 2)], 0, "bc"),
        # Equal times go by the order of the demands.
        ([waits("b", 60, 1), waits("a", 60, 1)], 0, "b"),
        # A smaller one does not overtake.
        ([waits("a", 50, 1), waits("b", 60, 2), waits("c", 10, 3)], 0, "a"),
        # It may fill the plain capacity to the last token, not more.
        ([waits("a", 50, 1), waits("b", 50, 2), waits("c", 1, 3)], 0, "ab"),
        ([waits("a", 50, 1), waits("b", 51, 2)], 0, "a"),
        # Shared prefixes take room too.
        ([waits("a", 50, 1), waits("b", 50, 2)], 1, "a"),
        # What runs has a place and takes up room.
        ([waits("a", 40, 1), runs("b", 70)], 0, "b"),
        ([waits("a", 30, 1), waits("c", 30, 2), runs("b", 70)], 0, "ab"),
        # Whoever pauses without a place gets none.
        ([waits("a", 50, 1), pauses("b", 60)], 0, "a"),
        # One may run even if it fits nowhere.
        ([waits("a", 500, 2), waits("b", 400, 1)], 0, "b"),
        ([waits("a", 10, 1), waits("b", 10, 2)], 200, "a"),
        ([pauses("a", 500)], 0, ""),
    ],
)
def test_who_gets_a_place(demands: list[WorkflowDemand], shared_tokens: int, expected: str) -> None:
    assert admit(WorkflowAdmission(1.0), *demands, shared_tokens=shared_tokens) == expected


def test_a_place_is_kept_while_others_wait_longer() -> None:
    admission = WorkflowAdmission(1.0)
    assert admit(admission, waits("a", 60, 1), waits("b", 60, 2)) == "a"
    assert admit(admission, runs("a", 70), waits("b", 60, 2)) == "a"
    assert admit(admission, waits("a", 80, 9), waits("b", 60, 2)) == "a"


@pytest.mark.parametrize(("paused_s", "expected"), [(4.9, "a"), (5.0, "b")])
def test_a_place_survives_a_short_pause(paused_s: float, expected: str) -> None:
    admission = WorkflowAdmission(1.0, pause_s=5.0)
    assert admit(admission, runs("a", 60), now_s=10.0, shared_tokens=50) == "a"
    assert admit(admission, runs("a", 60), waits("b", 60, 9), now_s=12.0) == "a"
    # Someone with a place has to be active, else b would get one in any case.
    demands = [runs("c", 20), pauses("a", 60), waits("b", 60, 9)]
    assert admit(admission, *demands, now_s=12.0 + paused_s) == "".join(sorted("c" + expected))


def test_who_only_pauses_does_not_keep_all_others_out() -> None:
    admission = WorkflowAdmission(1.0)
    assert admit(admission, runs("a", 60), waits("b", 60, 9)) == "a"
    assert admit(admission, pauses("a", 60), waits("b", 60, 9), waits("c", 60, 9)) == "ab"


def test_a_workflow_that_ended_leaves_its_place() -> None:
    admission = WorkflowAdmission(1.0)
    assert admit(admission, runs("a", 60), waits("b", 60, 9)) == "a"
    assert admit(admission, waits("b", 60, 9), waits("c", 60, 9)) == "b"
    assert admit(admission, runs("b", 60), waits("a", 60, 1)) == "b"


@pytest.mark.parametrize(("waited_s", "expected"), [(30.0, "a"), (30.1, "abc")])
def test_nobody_is_held_for_longer_than_the_limit(waited_s: float, expected: str) -> None:
    admission = WorkflowAdmission(1.0, max_hold_s=30.0)
    demands = [runs("a", 90), waits("b", 500, 10), waits("c", 500, 10), waits("d", 1, 20)]
    assert admit(admission, *demands, now_s=10 + waited_s) == expected


def test_places_outlast_a_moment_without_pressure() -> None:
    admission = WorkflowAdmission(1.0)
    assert admit(admission, runs("a", 60), waits("b", 60, 9)) == "a"
    assert admit(admission, waits("a", 60, 10), now_s=11.0) is None
    assert admit(admission, waits("b", 60, 9), waits("a", 60, 10), now_s=11.0) == "a"


demands_lists = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.tuples(st.integers(0, 150), st.none() | st.floats(0, 100), st.booleans()),
    ),
    max_size=6,
    unique_by=lambda demand: demand[0],
)


@given(
    st.lists(st.tuples(demands_lists, st.integers(0, 120), st.floats(0, 20)), max_size=8),
    st.floats(0.5, 2),
)
@settings(deadline=None)
def test_the_rules_hold_whatever_happens(
    calls: list[tuple[list[tuple[str, tuple[int, float | None, bool]]], int, float]],
    overcommit: float,
) -> None:
    admission = WorkflowAdmission(overcommit, pause_s=5.0, max_hold_s=30.0)
    now_s = 100.0
    before: frozenset[tuple[str, str]] = frozenset()
    for rows, shared_tokens, pause_s in calls:
        now_s += pause_s
        demands = [WorkflowDemand(key(name), *rest) for name, rest in rows]
        admitted = admission.admitted(demands, CAPACITY, shared_tokens, now_s)
        needed = shared_tokens + sum(demand.context_tokens for demand in demands)
        assert (admitted is None) == (needed <= overcommit * CAPACITY)
        if admitted is None:
            before = frozenset()
            continue
        active = [d for d in demands if d.running or d.waiting_since_s is not None]
        inside = [d for d in demands if d.key in admitted]
        assert admitted <= {d.key for d in demands}
        assert bool(active) == any(d in inside for d in active)
        assert all(d in inside for d in active if d.running or d.key in before)
        held = [d.waiting_since_s or 0.0 for d in active if d not in inside]
        new = [
            d.waiting_since_s or 0.0
            for d in inside
            if not d.running and d.key not in before and d.waiting_since_s is not None
        ]
        assert all(now_s - since_s <= 30.0 for since_s in held)
        if before:
            assert max(new, default=0.0) <= min(held, default=math.inf)
        before = admitted


@dataclass
class Simulated:
    """A workflow of some calls, each as long, with pauses between them."""

    demand_tokens: int
    calls_left: int
    waiting_since_s: float | None = 0.0
    ends_s: float = 0.0
    running: bool = False


@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(1, 4)), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(0, 8),
    st.sampled_from([20.0, math.inf]),
)
@settings(deadline=None)
def test_every_workflow_gets_in_and_ends(
    workflows: list[tuple[int, int]], call_s: int, pause_s: int, max_hold_s: float
) -> None:
    admission = WorkflowAdmission(1.0, pause_s=5.0, max_hold_s=max_hold_s)
    live = {key(str(n)): Simulated(*workflow) for n, workflow in enumerate(workflows)}
    now_s = 0.0
    longest_s = sum(calls * (call_s + pause_s + 8) for _, calls in workflows)
    while live:
        assert now_s <= longest_s, "somebody never gets in"
        for name, workflow in list(live.items()):
            if workflow.running and workflow.ends_s <= now_s:
                workflow.running = False
                workflow.calls_left -= 1
                if workflow.calls_left == 0:
                    del live[name]
            elif not workflow.running and workflow.ends_s + pause_s <= now_s:
                workflow.waiting_since_s = (
                    now_s if workflow.waiting_since_s is None else workflow.waiting_since_s
                )
        demands = [
            WorkflowDemand(name, w.demand_tokens, w.waiting_since_s, w.running)
            for name, w in live.items()
        ]
        admitted = admission.admitted(demands, CAPACITY, 0, now_s)
        for name, workflow in live.items():
            if workflow.waiting_since_s is not None and (admitted is None or name in admitted):
                workflow.waiting_since_s = None
                workflow.running, workflow.ends_s = True, now_s + call_s
            if workflow.waiting_since_s is not None:
                assert now_s - workflow.waiting_since_s <= max_hold_s
        now_s += 1.0
