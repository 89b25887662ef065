"""Graphs in trace files and recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kvflow.errors import InvalidInputError
from kvflow.graph import AgentStepGraph, GraphPool
from kvflow.graph_specs import agents_from, edges_from, graph_specs
from kvflow.protocol import AgentSpec, EdgeSpec

__all__ = ["graph_in", "written_graph"]


class _HasGraph(Protocol):
    @property
    def agents(self) -> list[AgentSpec]: ...
    @property
    def edges(self) -> list[EdgeSpec]: ...
    @property
    def entry(self) -> list[str]: ...


def graph_in(line: _HasGraph, at: Sequence[str | int], graphs: GraphPool) -> AgentStepGraph:
    """The graph that a line declares; one object for equal ones.

    Args:
        at: file, line and field, for errors.

    Raises:
        InvalidInputError: the graph cannot work.
    """
    try:
        return graphs.graph(agents_from(line.agents), edges_from(line.edges), line.entry)
    except InvalidInputError as error:
        raise InvalidInputError([*at, *error.field], error.problem) from error


def written_graph(graph: AgentStepGraph) -> dict[str, Any]:
    """What ``graph_in`` reads, with all that was declared, as plain JSON values."""
    agents, edges = graph_specs(graph)
    return {
        "agents": [agent.model_dump(exclude_none=True) for agent in agents],
        "edges": [edge.model_dump(exclude_none=True) for edge in edges],
        "entry": list(graph.entry),
    }
