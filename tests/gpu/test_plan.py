"""What fits into the time, the most valuable first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.plan import Pace, Task, Unit, make_plan


def unit(name: str, start_s: float, *estimates_s: float, obstacle: str = "") -> Unit:
    tasks = tuple(Task(f"{name}{n}", seconds) for n, seconds in enumerate(estimates_s))
    return Unit(name, name, start_s, tasks, obstacle)


def ids(plan: object) -> list[str]:
    return [task.id for step in plan.steps for task in step.tasks]  # type: ignore[attr-defined]


def test_in_order_while_there_is_time() -> None:
    plan = make_plan([unit("a", 10, 50, 50), unit("b", 10, 30, 30)], 170)
    assert ids(plan) == ["a0", "a1", "b0"]
    assert plan.estimate_s == 150
    assert [one.id for one in plan.left_out] == ["b1"]


def test_a_shorter_one_takes_the_place_of_one_that_does_not_fit() -> None:
    plan = make_plan([unit("a", 0, 100, 20), unit("b", 5, 10)], 40)
    assert ids(plan) == ["a1", "b0"]


def test_why_something_is_left_out() -> None:
    plan = make_plan([unit("a", 10, 50), unit("b", 10, 30)], 60)
    (left,) = plan.left_out
    assert left.id == "b0"
    assert left.reason == "no time left: takes about 30 s and 10 s to start, 0 s are left"


def test_a_unit_that_cannot_run_here_costs_nothing() -> None:
    plan = make_plan([unit("a", 10, 50, obstacle="takes 99 GB"), unit("b", 10, 30)], 40)
    assert ids(plan) == ["b0"]
    assert [(one.id, one.reason) for one in plan.left_out] == [("a0", "takes 99 GB")]


def test_what_is_done_is_neither_run_nor_left_out() -> None:
    plan = make_plan([unit("a", 10, 50, 60)], 75, done={"a0"})
    assert (ids(plan), plan.left_out) == (["a1"], ())
    assert make_plan([unit("a", 10, 50, 60)], 75, done={"a0", "a1"}).steps == ()


@given(
    st.lists(st.tuples(st.floats(0, 100), st.lists(st.floats(0.1, 200), max_size=5)), max_size=6),
    st.floats(0, 600),
)
def test_it_never_takes_longer_than_there_is_and_says_of_all_what_becomes_of_it(
    shapes: list[tuple[float, list[float]]], budget_s: float
) -> None:
    units = [unit(f"u{n}-", start_s, *tasks) for n, (start_s, tasks) in enumerate(shapes)]
    plan = make_plan(units, budget_s)
    assert plan.estimate_s <= budget_s + 1e-6
    everything = sorted(task.id for one in units for task in one.tasks)
    assert sorted([*ids(plan), *(one.id for one in plan.left_out)]) == everything


def test_pace() -> None:
    pace = Pace()
    assert pace.factor == 1
    pace.note(1, 10)
    assert pace.factor == pytest.approx(70 / 61)
    for _ in range(200):
        pace.note(60, 120)
    assert pace.factor == pytest.approx(2, rel=0.01)
