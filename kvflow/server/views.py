"""Workflow records in the form of the wire."""

from __future__ import annotations

from kvflow.graph_specs import edge_spec
from kvflow.protocol import AgentView, EventsResult, StepsView, WorkflowView
from kvflow.server.store import ExpectedTimes, WorkflowRecord
from kvflow.server.workflows import EventsApplied

__all__ = ["events_result", "steps_view", "workflow_view"]


def workflow_view(record: WorkflowRecord, now_s: float) -> WorkflowView:
    """The workflow in full. O(agents + edges)."""
    steps = record.wire_steps()
    return WorkflowView(
        workflow_id=record.workflow_id,
        client_id=record.client_id,
        name=record.name,
        ttl_s=record.ttl_s,
        expires_in_s=max(0.0, record.expires_at_s - now_s),
        version=record.version,
        agents=[
            AgentView(
                agent_id=agent.agent_id,
                join=agent.join,
                fixed_prefix_tokens=agent.fixed_prefix_tokens,
                expected_duration_s=agent.expected_duration_s,
                running=record.state.running(agent.agent_id),
                steps_to_execution=steps[agent.agent_id],
            )
            for agent in record.graph.agents
        ],
        edges=[edge_spec(edge) for edge in record.graph.edges],
        entry=list(record.graph.entry),
        steps_started=record.state.steps_started,
        mispredictions=record.state.mispredictions,
        learn=record.learned,
    )


def events_result(done: EventsApplied) -> EventsResult:
    """The answer to a request's events."""
    return EventsResult(
        version=done.record.version,
        applied=done.applied,
        duplicates=done.duplicates,
        mispredictions=done.mispredictions,
        steps_to_execution=done.record.wire_steps(),
    )


def steps_view(record: WorkflowRecord, expected: ExpectedTimes | None = None) -> StepsView:
    """The steps alone, with expected times where durations are known."""
    return StepsView(
        version=record.version,
        steps_to_execution=record.wire_steps(),
        expected_s_to_execution=None if expected is None else expected.wire(expected.at_s),
    )
