"""Workflows whose requests come under a ``cache_salt`` weigh what is cached under it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kvflow.eviction import Owner
from kvflow.sglang_plugin.control import LeaseLost, ServiceUpdate, WorkflowUpdate
from kvflow.sglang_plugin.salts import Namespace
from kvflow.sglang_plugin.weights import WorkflowWeights

W1 = ("c", "w1")
W2 = ("c", "w2")
UNSALTED = Namespace(None, None)
ONE = Namespace(None, "one")
TWO = Namespace(None, "two")
ALL = (UNSALTED, ONE, TWO)


class Weighed:
    """Copies of agent ``a``'s prefix under two salts and under none."""

    def __init__(self) -> None:
        self.changed: list[Owner[Any]] = []
        self.weights = WorkflowWeights(self.changed.append, lambda owner: None)
        self.owners = [self.weights.prefix_owner("c", "a", namespace) for namespace in ALL]

    def told(self, *keys: tuple[str, str], version: int = 1, **steps: float) -> None:
        updates = tuple(WorkflowUpdate(key, version, steps, {}) for key in keys)
        self.weights.apply(ServiceUpdate(updates))

    @property
    def steps(self) -> list[float]:
        return [owner.steps for owner in self.owners]

    def read_by(self, key: tuple[str, str]) -> list[bool]:
        """Which of the copies the workflow is going to read, for all that is known."""
        owners = self.weights.owners_of(("c", "a"), key)
        return [owner in owners for owner in self.owners]


@pytest.fixture
def seen() -> Weighed:
    return Weighed()


def test_all_count_until_a_request_has_come(seen: Weighed) -> None:
    seen.told(W1, a=1)
    assert seen.steps == [1, 1, 1]
    assert seen.read_by(W1) == [True] * 3


@pytest.mark.parametrize(
    ("salt", "read"),
    [(None, [True, False, False]), ("one", [False, True, False]), ("two", [False, False, True])],
)
def test_then_those_under_its_salt_alone(seen: Weighed, salt: str | None, read: list[bool]) -> None:
    seen.told(W1, a=1)
    seen.weights.under_salt(W1, salt)
    assert seen.read_by(W1) == read
    assert seen.steps == [1 if it_is else math.inf for it_is in read]
    seen.told(W1, version=2, a=4)
    assert seen.steps == [4 if it_is else math.inf for it_is in read]
    late = seen.weights.prefix_owner("c", "a", Namespace("lora", salt))
    assert late.steps == 4
    assert seen.weights.prefix_owner("c", "a", Namespace("lora", "three")).steps == math.inf


def test_the_nearest_workflow_that_reads_it_counts(seen: Weighed) -> None:
    seen.told(W1, a=1)
    seen.told(W2, a=3)
    seen.weights.under_salt(W1, "one")
    assert seen.steps == [3, 1, 3]  # the second workflow may still read any
    seen.weights.under_salt(W2, "two")
    assert seen.steps == [math.inf, 1, 3]
    seen.weights.apply(ServiceUpdate(closed=(W1,)))
    assert seen.steps == [math.inf, math.inf, 3]


def test_a_workflow_that_uses_several_reads_any(seen: Weighed) -> None:
    seen.told(W1, a=2)
    for salt in ("one", "two", "one"):
        seen.weights.under_salt(W1, salt)
    assert seen.steps == [2, 2, 2]
    assert seen.read_by(W1) == [True] * 3


def test_nothing_is_ranked_anew_by_further_requests(seen: Weighed) -> None:
    seen.told(W1, a=2)
    seen.weights.under_salt(W1, "one")
    seen.changed.clear()
    for _ in range(3):
        seen.weights.under_salt(W1, "one")
    assert seen.changed == []


def test_adapters_do_not_tell_whose_it_is(seen: Weighed) -> None:
    """``extra_key`` differs between agents of one workflow."""
    adapted = seen.weights.prefix_owner("c", "a", Namespace("lora", "one"))
    seen.told(W1, a=2)
    seen.weights.under_salt(W1, "one")
    assert adapted.steps == 2


def test_it_is_forgotten_with_the_workflow(seen: Weighed) -> None:
    for end in (ServiceUpdate(closed=(W1,)), LeaseLost()):
        seen.told(W1, a=2)
        seen.weights.under_salt(W1, "one")
        seen.weights.apply(end)
        assert seen.steps == [math.inf] * 3
        seen.told(W1, a=2)
        assert seen.steps == [2, 2, 2]
        seen.weights.apply(ServiceUpdate(closed=(W1,)))


def test_of_a_workflow_that_is_not_live_nothing_is_kept(seen: Weighed) -> None:
    seen.weights.under_salt(W1, "one")
    seen.told(W1, a=2)
    assert seen.steps == [2, 2, 2]


def test_histories_stay_with_their_workflow(seen: Weighed) -> None:
    conversation: Any = object()
    seen.told(W1, a=2)
    history = seen.weights.history_owner(W1, "a", conversation)
    seen.weights.under_salt(W1, "one")
    assert history.steps == 2
    assert history in seen.weights.owners_of(("c", "a"), W1)
    seen.told(W1, version=2, a=5)
    assert history.steps == 5


def test_the_same_in_an_order_by_time(seen: Weighed) -> None:
    seen.weights.order_by("time")
    due = WorkflowUpdate(W1, 1, {"a": 1}, {}, due_s={"a": 700.0})
    seen.weights.apply(ServiceUpdate((due,), received_s=100.0))
    assert [owner.due_s for owner in seen.owners] == [700.0] * 3
    seen.weights.under_salt(W1, "one")
    assert [owner.due_s for owner in seen.owners] == [math.inf, 700.0, math.inf]
