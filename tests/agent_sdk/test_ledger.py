from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow.agent_sdk import ledger as ledger_module
from kvflow.agent_sdk.ledger import MAX_HISTORY, MAX_PENDING, Event, Ledger
from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.protocol import AgentSpec, WorkflowSpec

AGENTS = ("a", "b", "c")
GRAPH = AgentStepGraph(
    [Agent(a, "any") for a in AGENTS], [Edge("a", "b"), Edge("b", "c"), Edge("c", "a")], ["a"]
)


def new_ledger() -> Ledger:
    return Ledger(
        WorkflowSpec(workflow_id="w", agents=[AgentSpec(agent_id=a) for a in AGENTS], entry=["a"])
    )


def start(step_id: str, agent_id: str = "a") -> Event:
    return Event("step_started", agent_id, step_id)


def finish(step_id: str, agent_id: str = "a") -> Event:
    return Event("step_finished", agent_id, step_id)


def test_events_wait_until_taken() -> None:
    ledger = new_ledger()
    for event in (start("1"), start("2", "b"), finish("1")):
        ledger.admit(event)
    assert [e.step_id for e in ledger.batch(2)] == ["1", "2"]
    ledger.taken(2)
    assert ledger.open == {"1": "a", "2": "b"}
    assert [(e.type, e.step_id) for e in ledger.batch(9)] == [("step_finished", "1")]
    ledger.taken(1)
    assert ledger.batch(9) == []
    assert ledger.open == ledger.running == {"2": "b"}


def test_a_lost_workflow_is_replayed_before_what_is_pending() -> None:
    ledger = new_ledger()
    events = [start("1"), finish("1"), start("2", "b"), finish("2", "b")]
    for event in events:
        ledger.admit(event)
    ledger.registered = True
    ledger.taken(3)
    ledger.lost()
    assert not ledger.registered
    assert not ledger.stale
    assert list(ledger.pending) == events


def test_what_fell_out_of_the_history_leaves_only_what_still_runs() -> None:
    ledger = new_ledger()
    ledger.admit(start("old"))
    ledger.admit(start("older finish", "b"))
    for n in range(MAX_HISTORY // 2):
        ledger.admit(start(f"n{n}", "c"))
        if n == 0:
            ledger.admit(finish("older finish", "b"))
        ledger.admit(finish(f"n{n}", "c"))
        ledger.taken(len(ledger.pending))
    ledger.lost()
    replay = list(ledger.pending)
    assert replay[0] == start("old")
    assert [e for e in replay if e.step_id == "older finish"] == []
    state = WorkflowState(GRAPH)
    for event in replay:
        apply(state, event)
    assert (state.running("a"), state.running("b"), state.running("c")) == (1, 0, 0)


def test_too_much_pending_keeps_the_running_steps_only() -> None:
    ledger = new_ledger()
    ledger.registered = True
    ledger.admit(start("long"))
    for n in range(MAX_PENDING):
        ledger.admit(start(str(n)))
        ledger.admit(finish(str(n)))
    assert len(ledger.pending) <= MAX_PENDING
    assert ledger.stale
    assert not ledger.registered
    assert ledger.pending[0] == start("long")


def apply(state: WorkflowState, event: Event) -> None:
    if event.type == "step_started":
        state.start(event.agent_id, event.step_id)
    else:
        state.finish(event.agent_id, event.step_id)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 40))
def test_the_service_ends_up_with_the_right_state(seed: int, events: int, history: int) -> None:
    """A service that takes batches, forgets now and then, and never refuses what it is sent."""
    rng = random.Random(seed)
    ledger = new_ledger()
    ledger.history = ledger_module.deque(maxlen=history)
    service: WorkflowState | None = None
    truth = WorkflowState(GRAPH)
    running: list[Event] = []
    for n in range(events):
        if running and rng.random() < 0.5:
            begun = running.pop(rng.randrange(len(running)))
            event = finish(begun.step_id, begun.agent_id)
        else:
            event = start(str(n), rng.choice(AGENTS))
            running.append(event)
        apply(truth, event)
        ledger.admit(event)
        if rng.random() < 0.15:
            service = None
        if rng.random() < 0.05:
            ledger.start_anew()
        if rng.random() < 0.4:
            service = deliver(ledger, service, rng)
    service = deliver(ledger, service, rng, everything=True)
    assert service is not None
    for agent_id in AGENTS:
        assert service.running(agent_id) == truth.running(agent_id)


def deliver(
    ledger: Ledger, service: WorkflowState | None, rng: random.Random, *, everything: bool = False
) -> WorkflowState:
    """What the reporter does, to a service that is a plain WorkflowState."""
    if ledger.stale:
        service = None
        ledger.stale = False
    if ledger.registered and service is None:
        ledger.lost()
    if not ledger.registered:
        service = service or WorkflowState(GRAPH)  # creating what is there changes nothing
        ledger.registered = True
    assert service is not None
    while batch := ledger.batch(rng.randint(1, 9)):
        for event in batch:
            apply(service, Event(event.type, event.agent_id, event.step_id))  # raises if refused
        if rng.random() < 0.2 and not everything:
            break  # it was applied, but the answer was lost: the same batch is sent again
        ledger.taken(len(batch))
    return service
