import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.prefetch import timing
from kvflow.prefetch.timing import StepTimer

ONE = ("client", "1")
TWO = ("client", "2")


def timed(**durations_s: float) -> StepTimer:
    """A timer that saw one step of each of these agents, in a workflow that has ended."""
    timer = StepTimer()
    for agent_id, duration_s in durations_s.items():
        timer.started(("client", "past"), agent_id, 100.0)
        timer.finished(("client", "past"), agent_id, 100.0 + duration_s)
    return timer


def test_nothing_is_estimated_before_a_step_was_timed() -> None:
    timer = StepTimer()
    timer.started(ONE, "a", 0.0)
    assert timer.due_in_s(ONE, 1, 5.0) is None
    assert timer.due_in_s(ONE, 0, 5.0) == 0
    timer.finished(ONE, "a", 6.0)
    assert timer.due_in_s(ONE, 2, 6.0) == 6.0
    assert timer.due_in_s(("other client", "1"), 2, 6.0) is None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("duration_s", [0.0, 3.0])
def test_what_cannot_run_is_never_due(known: bool, duration_s: float) -> None:
    timer = timed(a=duration_s) if known else StepTimer()
    assert timer.due_in_s(ONE, math.inf, 0.0) == math.inf


@pytest.mark.parametrize(
    ("steps", "elapsed_s", "expected_s"),
    [
        (0, 1.0, 0.0),
        (1, 0.0, 8.0),
        (1, 3.0, 5.0),
        (1, 6.0, 2.0),
        (1, 7.0, 2.0),  # a quarter of 8 s, from here on
        (1, 500.0, 2.0),
        (2, 3.0, 5.0 + 6.0),
        (4, 3.0, 5.0 + 18.0),
    ],
)
def test_due_after_what_runs_and_a_mean_step_for_each_between(
    steps: float, elapsed_s: float, expected_s: float
) -> None:
    timer = timed(a=8.0, b=4.0)
    timer.started(ONE, "a", 50.0)
    assert timer.due_in_s(ONE, steps, 50.0 + elapsed_s) == pytest.approx(expected_s)


@pytest.mark.parametrize(("steps", "expected_s"), [(1, 0.0), (2, 6.0), (3, 12.0)])
def test_where_nothing_runs_the_next_step_begins_at_once(steps: float, expected_s: float) -> None:
    timer = timed(a=8.0, b=4.0)
    timer.started(TWO, "a", 0.0)
    assert timer.due_in_s(ONE, steps, 1.0) == pytest.approx(expected_s)


def test_of_several_running_agents_the_first_to_end_counts() -> None:
    timer = timed(a=8.0, b=4.0)
    timer.started(ONE, "a", 10.0)
    timer.started(ONE, "b", 13.0)
    assert timer.due_in_s(ONE, 1, 13.0) == pytest.approx(4.0)
    assert timer.due_in_s(ONE, 1, 13.5) == pytest.approx(3.5)
    assert timer.due_in_s(ONE, 1, 16.5) == pytest.approx(1.0)
    timer.finished(ONE, "b", 16.5)
    assert timer.due_in_s(ONE, 1, 16.5) == pytest.approx(2.0)


def test_an_agent_never_timed_counts_with_the_mean_of_its_client() -> None:
    timer = timed(a=8.0, b=4.0)
    timer.started(ONE, "new", 0.0)
    assert timer.due_in_s(ONE, 1, 1.0) == pytest.approx(5.0)


def test_the_newest_duration_weighs_three_tenths() -> None:
    timer = timed(a=10.0)
    timer.started(ONE, "a", 0.0)
    timer.finished(ONE, "a", 20.0)
    assert timer.due_in_s(ONE, 2, 0.0) == pytest.approx(13.0)
    timer.started(TWO, "a", 0.0)
    assert timer.due_in_s(TWO, 1, 0.0) == pytest.approx(13.0)


def test_of_overlapping_runs_the_first_start_counts() -> None:
    timer = StepTimer()
    timer.started(ONE, "a", 0.0)
    timer.started(ONE, "a", 6.0)
    timer.finished(ONE, "a", 8.0)
    timer.finished(ONE, "a", 20.0)
    assert timer.due_in_s(ONE, 2, 20.0) == pytest.approx(8.0)


def test_a_forgotten_workflow_teaches_nothing_about_what_ran() -> None:
    timer = StepTimer()
    timer.update(ONE, {"a": 0}, 0.0)
    timer.forget(ONE)
    timer.forget(ONE)
    timer.update(ONE, {"a": 1}, 5.0)
    assert timer.due_in_s(ONE, 2, 5.0) is None


def test_a_clock_that_went_back_makes_no_negative_duration() -> None:
    timer = StepTimer()
    timer.started(ONE, "a", 5.0)
    timer.finished(ONE, "a", 1.0)
    assert timer.due_in_s(ONE, 3, 5.0) == 0


def test_updates_are_starts_and_finishes() -> None:
    timer = StepTimer()
    timer.update(ONE, {"a": 0, "b": 1, "c": 2}, 0.0)
    timer.update(ONE, {"a": 0, "b": 1, "c": 2}, 1.0)
    timer.update(ONE, {"a": math.inf, "b": 0, "c": 1}, 4.0)
    assert timer.due_in_s(ONE, 1, 5.0) == pytest.approx(3.0)  # b: known by a's 4 s alone
    timer.update(ONE, {"c": 0}, 6.0)  # b is gone, so it does not run any more
    assert timer.due_in_s(ONE, 1, 6.0) == pytest.approx(3.0)  # c: the mean of 4 s and 2 s


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ONE, TWO]),
            st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 1, math.inf])),
            st.floats(0, 10),
        ),
        max_size=30,
    )
)
@settings(deadline=None)
def test_updates_equal_the_starts_and_finishes_they_stand_for(
    updates: list[tuple[tuple[str, str], dict[str, float], float]],
) -> None:
    by_update, by_event = StepTimer(), StepTimer()
    running: dict[tuple[str, str], set[str]] = {ONE: set(), TWO: set()}
    now_s = 0.0
    for key, steps, pause_s in updates:
        now_s += pause_s
        by_update.update(key, steps, now_s)
        now_running = {agent_id for agent_id, value in steps.items() if value == 0}
        for agent_id in sorted(running[key] - now_running):
            by_event.finished(key, agent_id, now_s)
        for agent_id in sorted(now_running - running[key]):
            by_event.started(key, agent_id, now_s)
        running[key] = now_running
        for steps_away in (1, 2, 3):
            due_s = by_update.due_in_s(key, steps_away, now_s + 1)
            assert due_s == pytest.approx(by_event.due_in_s(key, steps_away, now_s + 1))
            assert due_s is None or due_s >= 0


def test_the_agent_timed_least_recently_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_AGENTS", 2)
    timer = timed(a=10.0, b=2.0)
    timer.started(("other", "1"), "x", 0.0)
    timer.finished(("other", "1"), "x", 1.0)
    assert timer.due_in_s(ONE, 2, 0.0) == pytest.approx(2.0)
    timer.started(("other", "1"), "y", 0.0)
    timer.finished(("other", "1"), "y", 3.0)
    assert timer.due_in_s(ONE, 2, 0.0) is None
    assert timer.due_in_s(("other", "1"), 2, 0.0) == pytest.approx(2.0)
