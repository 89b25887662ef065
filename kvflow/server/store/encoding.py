"""Workflows as text, for stores that outlive the process. All of it is JSON in ASCII."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from kvflow.errors import KVFlowError
from kvflow.graph import AgentStepGraph, WorkflowState
from kvflow.graph.snapshot import restore_state, state_values
from kvflow.graph_specs import agents_from, edges_from, graph_specs
from kvflow.protocol import AgentSpec, EdgeSpec, StepEvent
from kvflow.server.store.base import WorkflowRecord

__all__ = [
    "UNREADABLE",
    "details_text",
    "events_text",
    "graph_from_text",
    "graph_text",
    "replay",
    "state_from_text",
    "state_is_due",
    "state_text",
]

UNREADABLE: Final = (KVFlowError, ValueError, KeyError, TypeError, IndexError)
"""What reading a workflow back raises if its texts are damaged or of another version."""

_JOURNAL_CHARS: Final = 4096


def graph_text(graph: AgentStepGraph) -> str:
    """The declaration. The same for graphs that were declared alike."""
    agents, edges = graph_specs(graph)
    return _text(
        {
            "agents": [agent.model_dump(exclude_none=True) for agent in agents],
            "edges": [edge.model_dump(exclude_none=True) for edge in edges],
            "entry": list(graph.entry),
        }
    )


def graph_from_text(text: str) -> AgentStepGraph:
    """The graph, checked again.

    Raises:
        ValueError, KVFlowError: it is none.
    """
    values = json.loads(text)
    return AgentStepGraph(
        agents_from([AgentSpec.model_validate(agent) for agent in values["agents"]]),
        edges_from([EdgeSpec.model_validate(edge) for edge in values["edges"]]),
        values["entry"],
    )


def details_text(record: WorkflowRecord) -> str:
    """What of a workflow never changes, but its key and graph: client_id, name, ttl_s."""
    return _text({"client_id": record.client_id, "name": record.name, "ttl_s": record.ttl_s})


def state_text(state: WorkflowState) -> str:
    """The whole state."""
    return _text(state_values(state))


def state_from_text(graph: AgentStepGraph, text: str | None) -> WorkflowState:
    """The state; that of a workflow without events if there is no text."""
    return WorkflowState(graph) if text is None else restore_state(graph, json.loads(text))


def events_text(events: Sequence[StepEvent]) -> str:
    """Events of one request, in order."""
    return _text(
        [[event.type == "step_started", event.agent_id, event.step_id] for event in events]
    )


def replay(state: WorkflowState, texts: Iterable[str]) -> None:
    """Apply what ``events_text`` wrote, in order.

    An event that no longer fits, as another version of KVFlow took it, is passed over: a
    workflow in nearly the right state is worth more than none.
    """
    for text in texts:
        for is_start, agent_id, step_id in json.loads(text):
            change = state.start if is_start else state.finish
            try:
                change(agent_id, step_id)
            except KVFlowError:
                continue


def state_is_due(journal_chars: int, state_chars: int) -> bool:
    """Whether to write the whole state and begin a new journal.

    When the journal has grown to the size of the state, so that over time no more is written for
    states than for events, however large the state is.
    """
    return journal_chars > _JOURNAL_CHARS + state_chars


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
