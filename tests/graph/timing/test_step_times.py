import pytest

from kvflow.graph.timing import FamilyDurations, StepTimes
from kvflow.graph.timing.durations import MAX_KEYS, RECENT


def test_the_median_of_the_latest_runs_counts() -> None:
    durations = FamilyDurations()
    for seconds in (2.0, 2.0, 100.0, 2.0):
        durations.learn_run("a", seconds)
    assert durations.run_s("a") == 2.0
    for _ in range(RECENT):
        durations.learn_run("a", 5.0)
    assert durations.run_s("a") == 5.0


def test_what_was_not_measured_counts_with_the_mean() -> None:
    durations = FamilyDurations()
    assert durations.run_s("x") is None
    assert durations.gap_s("a", "b") == 0.0
    durations.learn_run("a", 1.0)
    durations.learn_run("b", 3.0)
    durations.learn_gap("a", "b", 4.0)
    assert durations.run_s("x") == 2.0
    assert durations.run_s("x", 9.0) == 9.0
    assert durations.gap_s("b", "a") == 4.0
    assert durations.measured_run_s("x") is None
    assert durations.measured_gap_s("a", "b") == 4.0


def test_memory_is_bounded_and_the_mean_stays_right() -> None:
    durations = FamilyDurations()
    for number in range(MAX_KEYS + 10):
        durations.learn_run(f"a{number}", float(number))
    assert durations.measured_run_s("a9") is None
    assert durations.run_s("new") == pytest.approx(10 + (MAX_KEYS - 1) / 2)


def test_runs_side_by_side_are_told_by_their_step_ids() -> None:
    durations = FamilyDurations()
    times = StepTimes(durations)
    times.started("a", "one", (), 10.0)
    times.started("a", "two", (), 12.0)
    times.finished("a", "two", 13.0)
    assert durations.run_s("a") == 1.0
    assert times.remaining_s("a", 8.0, 14.0) == 4.0
    times.finished("a", "one", 20.0)
    assert durations.run_s("a") == 5.5


def test_a_tool_is_what_lies_between() -> None:
    durations = FamilyDurations()
    times = StepTimes(durations)
    for base in (0.0, 100.0):
        times.started("a", None, (), base)
        times.finished("a", None, base + 1)
        times.started("b", None, ("a",), base + 4)
        times.finished("b", None, base + 5)
    assert durations.measured_gap_s("a", "b") == 3.0
    times.started("b", None, ("a",), 200.0)  # its finish led to the start before
    assert durations.measured_gap_s("a", "b") == 3.0


def test_what_was_reported_in_one_go_was_not_measured() -> None:
    durations = FamilyDurations()
    times = StepTimes(durations)
    times.started("a", None, (), 5.0)
    times.finished("a", None, 5.0)
    times.finished("a", None, 9.0)
    assert not durations.known
