"""Which waiting requests a batch passes over, and for how long."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.prefetch import Holding, WaitingRequest
from kvflow.prefetch.holding import GRACE_S


def ready(rid: str) -> WaitingRequest:
    return WaitingRequest(rid)


def to_device(rid: str, seconds: float = 1.0) -> WaitingRequest:
    return WaitingRequest(rid, arrives_in_s=seconds)


def to_host(rid: str, seconds: float = 1.0) -> WaitingRequest:
    return WaitingRequest(rid, arrives_in_s=seconds, into_host=True)


def barred(rid: str, seconds: float | None = None) -> WaitingRequest:
    return WaitingRequest(rid, arrives_in_s=seconds, barred=True)


@pytest.mark.parametrize(
    ("queue", "held"),
    [
        ([], ""),
        ([ready("a"), ready("b")], ""),
        ([to_device("a"), ready("b")], "a"),
        ([ready("a"), to_device("b")], "b"),
        ([to_device("a"), to_device("b")], ""),
        ([to_host("a")], "a"),
        ([to_host("a"), ready("b")], "a"),
        ([to_host("a"), to_device("b")], "a"),
        ([to_host("a"), to_device("b"), ready("c")], "ab"),
        ([barred("a")], "a"),
        ([barred("a"), to_device("b")], "a"),
        ([barred("a"), to_device("b"), ready("c")], "ab"),
        ([barred("a", 1.0), to_device("b")], "a"),
    ],
)
@pytest.mark.parametrize("now_s", [None, 5.0])
def test_a_batch_passes_over(queue: list[WaitingRequest], held: str, now_s: float | None) -> None:
    assert Holding().passed_over(queue, now_s) == set(held)


@pytest.mark.parametrize("coming", [to_host, to_device])
@pytest.mark.parametrize(("after_s", "is_held"), [(1.0, True), (1.25, True), (1.5, False)])
def test_the_wait_ends_when_the_copy_should_have_been_over(
    coming: Callable[[str, float], WaitingRequest], after_s: float, is_held: bool
) -> None:
    holding = Holding(grace_s=0.25)
    queue = [coming("a", 1.0), ready("b")]
    assert holding.passed_over(queue, 8.0) == {"a"}
    assert holding.passed_over(queue, 8.0 + after_s) == ({"a"} if is_held else set())


def test_the_grace_is_short_by_default() -> None:
    holding = Holding()
    holding.passed_over([to_host("a", 0.0)], 0.0)
    assert holding.passed_over([to_host("a", 0.0)], GRACE_S) == {"a"}
    assert holding.passed_over([to_host("a", 0.0)], 2 * GRACE_S) == set()


def test_an_overdue_request_counts_as_ready() -> None:
    holding = Holding()
    holding.passed_over([to_host("late", 1.0)], 0.0)
    assert holding.passed_over([to_host("late", 1.0), to_device("b", 9.0)], 2.0) == {"b"}


def test_each_request_has_its_own_time() -> None:
    holding = Holding()
    holding.passed_over([to_host("a")], 0.0)
    assert holding.passed_over([to_host("a"), to_host("b")], 2.0) == {"b"}


def test_without_a_clock_nobody_is_overdue_and_time_begins_with_it() -> None:
    holding = Holding()
    for _ in range(3):
        assert holding.passed_over([to_host("a")], None) == {"a"}
        assert holding.waiting  # so that there will be a clock
    assert holding.passed_over([to_host("a")], 100.0) == {"a"}
    assert holding.passed_over([to_host("a")], 101.0) == {"a"}
    assert holding.passed_over([to_host("a")], 102.0) == set()


def test_time_begins_anew_after_a_step_without_a_copy() -> None:
    holding = Holding()
    holding.passed_over([to_host("a")], 0.0)
    holding.passed_over([ready("a")], 1.0)
    assert holding.passed_over([to_host("a")], 2.0) == {"a"}


def test_time_does_not_run_while_barred() -> None:
    holding = Holding()
    holding.passed_over([barred("a", 1.0)], 0.0)
    assert holding.passed_over([to_host("a", 1.0)], 9.0) == {"a"}


@pytest.mark.parametrize(
    ("queue", "waiting"),
    [([], False), ([ready("a")], False), ([barred("a")], False), ([to_device("a")], True)],
)
def test_waiting_is_about_the_last_call(queue: list[WaitingRequest], waiting: bool) -> None:
    holding = Holding()
    holding.passed_over([to_host("z")], 0.0)
    assert holding.waiting
    holding.passed_over(queue, 1.0)
    assert holding.waiting == waiting


class NaiveHolding:
    """The rules one after the other, with the whole past at hand."""

    def __init__(self) -> None:
        self.past: list[tuple[set[str], float | None]] = []

    def since_s(self, rid: str) -> float | None:
        since_s = None
        for coming, now_s in reversed(self.past):
            if rid not in coming or now_s is None:
                break
            since_s = now_s
        return since_s

    def passed_over(self, requests: Sequence[WaitingRequest], now_s: float) -> set[str]:
        coming = {r.rid for r in requests if r.arrives_in_s is not None and not r.barred}
        self.past.append((coming, now_s))
        must: set[str] = set()
        may: set[str] = set()
        for request in requests:
            since_s = self.since_s(request.rid)
            if request.barred:
                must.add(request.rid)
            elif request.arrives_in_s is None or (
                since_s is not None and now_s - since_s > request.arrives_in_s + GRACE_S
            ):
                continue
            else:
                (must if request.into_host else may).add(request.rid)
        someone_else = len(must) + len(may) < len(requests)
        return must | may if someone_else else must


def queues() -> st.SearchStrategy[list[WaitingRequest]]:
    request = st.builds(
        WaitingRequest,
        st.sampled_from("abcd"),
        st.none() | st.integers(0, 4).map(float),
        st.booleans(),
        st.booleans(),
    )
    return st.lists(request, max_size=4, unique_by=lambda r: r.rid)


steps_of_time = st.lists(st.tuples(st.integers(0, 3), queues()), max_size=12)


@given(steps_of_time)
def test_agrees_with_the_rules_played_naively(
    steps: list[tuple[int, list[WaitingRequest]]],
) -> None:
    holding, naive, now_s = Holding(), NaiveHolding(), 0.0
    for passed_s, queue in steps:
        now_s += passed_s
        assert holding.passed_over(queue, now_s) == naive.passed_over(queue, now_s)


@given(queues(), st.none() | st.integers(0, 9).map(float))
def test_only_the_host_and_a_bar_can_hold_everybody(
    queue: list[WaitingRequest], now_s: float | None
) -> None:
    held = Holding().passed_over(queue, now_s)
    by_rid = {request.rid: request for request in queue}
    assert held <= set(by_rid)
    if len(held) == len(queue):
        assert all(by_rid[rid].into_host or by_rid[rid].barred for rid in held)


@given(queues())
def test_without_new_copies_all_but_the_barred_run_in_the_end(queue: list[WaitingRequest]) -> None:
    holding = Holding()
    for now_s in (0.0, 5.0):
        held = holding.passed_over(queue, now_s)
    assert held == {request.rid for request in queue if request.barred}
