"""Bodies and values that several tests of the service use."""

from __future__ import annotations

from typing import Any

from kvflow.graph import Agent, AgentStepGraph, Edge, WorkflowState
from kvflow.server.store import WorkflowRecord


def cycle(workflow_id: str | None = "w", agents: int = 3, **fields: Any) -> dict[str, Any]:
    """A create body: agents a0 -> a1 -> ... -> a0."""
    names = [f"a{i}" for i in range(agents)]
    body: dict[str, Any] = {
        "agents": [{"agent_id": name, "join": "any"} for name in names],
        "edges": [
            {"source": name, "target": names[(i + 1) % agents]} for i, name in enumerate(names)
        ],
        "entry": [names[0]],
    }
    if workflow_id is not None:
        body["workflow_id"] = workflow_id
    return body | fields


def started(agent_id: str, step_id: str | None = None) -> dict[str, Any]:
    return {"type": "step_started", "agent_id": agent_id, "step_id": step_id}


def finished(agent_id: str, step_id: str | None = None) -> dict[str, Any]:
    return {"type": "step_finished", "agent_id": agent_id, "step_id": step_id}


def record(
    workflow_id: str,
    *,
    client_id: str = "c",
    expires_at_s: float = 100.0,
    agent_id: str = "a",
    namespace: str = "",
) -> WorkflowRecord:
    """A workflow of an agent that loops to itself."""
    agent = Agent(agent_id, join="any", fixed_prefix_tokens=7)
    graph = AgentStepGraph([agent], [Edge(agent_id, agent_id)], [agent_id])
    return WorkflowRecord(
        workflow_id=workflow_id,
        client_id=client_id,
        name=None,
        ttl_s=100.0,
        graph=graph,
        state=WorkflowState(graph),
        expires_at_s=expires_at_s,
        namespace=namespace,
    )
