"""A request that overtakes the events it is about."""

from __future__ import annotations

from math import inf
from typing import Any

from kvflow.eviction import Owner
from kvflow.protocol import RequestMetadata
from kvflow.sglang_plugin.anticipation import StartMemory
from kvflow.sglang_plugin.control import ServiceUpdate, WorkflowKey, WorkflowUpdate
from kvflow.sglang_plugin.weights import WorkflowWeights

KEY: WorkflowKey = ("client", "w")
FAMILY = "family"

# a leads to b or c, either leads to d, d to a.
BEGIN = {"a": 1.0, "b": 2.0, "c": 2.0, "d": 3.0}
A_RUNS = {"a": 0.0, "b": 1.0, "c": 1.0, "d": 2.0}
B_RUNS = {"a": 2.0, "b": 0.0, "c": 3.0, "d": 1.0}
C_RUNS = {"a": 2.0, "b": 3.0, "c": 0.0, "d": 1.0}
D_RUNS = {"a": 1.0, "b": 2.0, "c": 2.0, "d": 0.0}


class TestStartMemory:
    def test_recalls_what_came_with_the_last_start(self) -> None:
        memory = StartMemory()
        memory.learn(FAMILY, A_RUNS, B_RUNS)
        assert memory.recall(FAMILY, "b") == B_RUNS
        later = {**B_RUNS, "c": inf}
        memory.learn(FAMILY, A_RUNS, later)
        assert memory.recall(FAMILY, "b") == later
        assert memory.recall(FAMILY, "a") is None
        assert memory.recall("another", "b") is None

    def test_learns_nothing_of_a_beginning_two_starts_or_none(self) -> None:
        memory = StartMemory()
        memory.learn(FAMILY, None, A_RUNS)
        memory.learn(FAMILY, BEGIN, {**A_RUNS, "b": 0.0})
        memory.learn(FAMILY, A_RUNS, A_RUNS)
        memory.learn(FAMILY, {"a": 0.0}, {"a": 0.0, "new": 0.0})
        assert all(memory.recall(FAMILY, agent) is None for agent in [*BEGIN, "new"])

    def test_the_oldest_goes_when_there_is_no_room(self) -> None:
        memory = StartMemory(max_cells=8)
        memory.learn(FAMILY, BEGIN, A_RUNS)
        memory.learn(FAMILY, A_RUNS, B_RUNS)
        memory.learn(FAMILY, BEGIN, A_RUNS)  # again: it takes no more room than before
        memory.learn(FAMILY, A_RUNS, C_RUNS)
        assert memory.recall(FAMILY, "b") is None
        assert memory.recall(FAMILY, "a") == A_RUNS
        assert memory.recall(FAMILY, "c") == C_RUNS

    def test_a_vector_larger_than_all_the_room_is_not_kept(self) -> None:
        memory = StartMemory(max_cells=3)
        memory.learn(FAMILY, BEGIN, A_RUNS)
        assert memory.recall(FAMILY, "a") is None


class _Weights:
    """Weights with an owner of each agent's prefix."""

    def __init__(self) -> None:
        self.weights = WorkflowWeights(lambda owner: None, lambda owner: None)
        self.owners: dict[str, Owner[Any]] = {
            agent: self.weights.prefix_owner(KEY[0], agent, None) for agent in BEGIN
        }
        self._version = 0

    def told(self, *vectors: dict[str, float]) -> None:
        for steps in vectors:
            self._version += 1
            update = WorkflowUpdate(KEY, self._version, steps, {})
            self.weights.apply(ServiceUpdate((update,)))

    @property
    def steps(self) -> dict[str, float]:
        return {agent: owner.steps for agent, owner in self.owners.items()}


def test_a_request_ahead_of_its_event_brings_the_steps_it_brought_before() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS, B_RUNS, D_RUNS, A_RUNS)
    made.weights.called(KEY, "b")
    assert made.steps == B_RUNS
    near = {agent for _, agent in made.weights.near_agents}
    assert near == {"a", "c", "d"}


def test_what_the_service_says_next_counts() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS, B_RUNS, D_RUNS, A_RUNS)
    made.weights.called(KEY, "b")
    made.told(C_RUNS)
    assert made.steps == C_RUNS


def test_an_agent_that_was_never_seen_to_start_changes_nothing() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS)
    made.weights.called(KEY, "b")
    assert made.steps == A_RUNS


def test_a_further_request_of_a_running_agent_changes_nothing() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS, B_RUNS, {**D_RUNS, "b": 0.0})
    made.weights.called(KEY, "b")
    assert made.steps == {**D_RUNS, "b": 0.0}


def test_a_workflow_that_predicts_badly_governs_nothing_by_this_either() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS, B_RUNS, D_RUNS, A_RUNS)
    for _ in range(12):  # agents that nothing had predicted
        made.weights.called(KEY, "x")
        made.weights.called(KEY, "y")
    assert made.weights.trust.trust(KEY) == "none"
    made.weights.called(KEY, "b")
    assert set(made.steps.values()) == {inf}


def test_a_new_workflow_knows_what_its_family_has_learnt() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS, B_RUNS)
    other = ("client", "another")
    made.weights.apply(ServiceUpdate((WorkflowUpdate(other, 0, BEGIN, {}),), closed=(KEY,)))
    made.weights.called(other, "b")
    assert made.steps == B_RUNS


def test_steps_that_a_request_brings_itself_are_the_newest() -> None:
    made = _Weights()
    key = (KEY[0], "in-band")

    def call(agent: str, steps: dict[str, float]) -> None:
        brought = {one: None if n == inf else int(n) for one, n in steps.items()}
        metadata = RequestMetadata(
            client_id=key[0], workflow_id=key[1], agent_id=agent, steps_to_execution=brought
        )
        made.weights.apply_in_band(metadata)
        made.weights.called(key, agent, brings_steps=True)

    for agent, steps in (("a", A_RUNS), ("b", B_RUNS), ("d", D_RUNS), ("a", A_RUNS)):
        call(agent, steps)
    assert made.steps == A_RUNS
    over = dict.fromkeys(A_RUNS, inf)
    call("b", over)  # its last call, and nobody is going to be called any more
    assert made.steps == over
    assert not made.weights.near_agents


def test_but_the_service_is_asked_first() -> None:
    made = _Weights()
    made.told(BEGIN, A_RUNS, B_RUNS, D_RUNS, A_RUNS)
    made.weights.called(KEY, "b", brings_steps=True)
    assert made.steps == B_RUNS
