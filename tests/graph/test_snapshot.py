"""A state that was stored goes on as the one it was made of."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.errors import KVFlowError
from kvflow.graph import Agent, AgentStepGraph, Edge, EventOutcome, WorkflowState
from kvflow.graph.marking import Marking
from kvflow.graph.runs import Runs
from kvflow.graph.snapshot import restore_state, state_values

NAMES = [f"a{i}" for i in range(5)]


def graph(rng: random.Random) -> AgentStepGraph:
    agents = [Agent(name, rng.choice(["all", "any"])) for name in NAMES]
    pairs = rng.sample([(a, b) for a in NAMES for b in NAMES], 8)
    edges = [
        Edge(a, b, rng.choice(["always", "choice"]), max_iterations=rng.choice([None, None, 1, 3]))
        for a, b in pairs
    ]
    return AgentStepGraph(agents, edges, NAMES)


def event(state: WorkflowState, rng: random.Random) -> EventOutcome | str:
    change = rng.choice([state.start, state.finish])
    step_id = rng.choice([None, f"s{rng.randrange(20)}"])
    try:
        return change(rng.choice(NAMES), step_id)
    except KVFlowError as error:
        return str(error)


@given(st.integers(0, 2**32), st.integers(0, 80))
def test_a_restored_state_goes_on_alike(seed: int, before: int) -> None:
    rng = random.Random(seed)
    state = WorkflowState(graph(rng))
    for _ in range(before):
        event(state, rng)

    stored = json.dumps(state_values(state))
    twin = restore_state(state.graph, json.loads(stored))

    for _ in range(60):
        assert twin.step_values() == state.step_values()
        assert json.dumps(state_values(twin)) == json.dumps(state_values(state))
        assert twin._marking.missing == state._marking.missing
        assert twin._marking.unmarked_out == state._marking.unmarked_out
        assert twin._marking.used_up_sources == state._marking.used_up_sources
        assert twin._runs._running == state._runs._running
        choices = rng.getstate()
        outcome = event(state, rng)
        rng.setstate(choices)
        assert event(twin, rng) == outcome


def test_nothing_of_the_state_is_forgotten() -> None:
    """Whoever adds to the state must add to the values too, and then to this list."""
    assert set(WorkflowState.__slots__) == {
        *("_graph", "_marking", "_mispredictions", "_runs", "_steps", "_steps_started", "_version")
    }
    assert set(Runs.__slots__) == {"_agent_ids", "_finished", "_running", "by_agent"}
    assert set(Marking.__slots__) == {
        *("_early_starts", "_finishes", "_runs", "_taken", "by_edge", "entry", "graph"),
        *("missing", "ready", "unmarked_out", "used_up", "used_up_sources"),
    }


def test_other_values_are_refused() -> None:
    values = state_values(WorkflowState(graph(random.Random(1))))
    del values["marks"]
    with pytest.raises(KeyError):
        restore_state(graph(random.Random(1)), values)
