"""Agents and edges of a graph as they go over the wire and into files, and back.

The one place that knows all fields of both, so that a field added to ``kvflow.graph`` and to
``kvflow.protocol`` is taken everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvflow.graph import Agent, AgentStepGraph, Edge
from kvflow.protocol import AgentSpec, EdgeSpec

__all__ = [
    "agent_from",
    "agent_spec",
    "agents_from",
    "edge_from",
    "edge_spec",
    "edges_from",
    "graph_specs",
]


def agent_from(spec: AgentSpec) -> Agent:
    """The agent that was declared."""
    return Agent(spec.agent_id, spec.join, spec.fixed_prefix_tokens, spec.expected_duration_s)


def edge_from(spec: EdgeSpec) -> Edge:
    """The edge that was declared."""
    return Edge(
        source=spec.source,
        target=spec.target,
        kind=spec.kind,
        probability=spec.probability,
        expected_duration_s=spec.expected_duration_s,
        max_iterations=spec.max_iterations,
    )


def agents_from(specs: Iterable[AgentSpec]) -> list[Agent]:
    """``agent_from`` of each."""
    return [agent_from(spec) for spec in specs]


def edges_from(specs: Iterable[EdgeSpec]) -> list[Edge]:
    """``edge_from`` of each."""
    return [edge_from(spec) for spec in specs]


def agent_spec(agent: Agent) -> AgentSpec:
    """The agent on the wire. Not checked again: its graph was."""
    return AgentSpec.model_construct(
        agent_id=agent.agent_id,
        join=agent.join,
        fixed_prefix_tokens=agent.fixed_prefix_tokens,
        expected_duration_s=agent.expected_duration_s,
    )


def edge_spec(edge: Edge) -> EdgeSpec:
    """The edge on the wire, likewise."""
    return EdgeSpec.model_construct(
        source=edge.source,
        target=edge.target,
        kind=edge.kind,
        probability=edge.probability,
        expected_duration_s=edge.expected_duration_s,
        max_iterations=edge.max_iterations,
    )


def graph_specs(graph: AgentStepGraph) -> tuple[list[AgentSpec], list[EdgeSpec]]:
    """All agents and edges on the wire, in declaration order."""
    return [agent_spec(agent) for agent in graph.agents], [edge_spec(e) for e in graph.edges]
