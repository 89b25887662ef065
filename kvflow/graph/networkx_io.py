"""Exchange with networkx, for drawing, analysis and the file formats it reads and writes.

networkx is an optional dependency (``pip install 'kvflow[graph]'``) and is imported on first use;
``to_dot`` and ``to_mermaid`` need nothing.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from kvflow.errors import EnvironmentProblemError, InvalidInputError
from kvflow.graph.base import INFINITE_STEPS, Agent, Edge
from kvflow.graph.drawing import to_dot, to_mermaid
from kvflow.graph.state import WorkflowState
from kvflow.graph.step_graph import AgentStepGraph

if TYPE_CHECKING:
    import networkx


_IF_KNOWN = ("probability", "expected_duration_s", "max_iterations")

__all__ = ["from_networkx", "to_dot", "to_mermaid", "to_networkx"]


def to_networkx(graph: AgentStepGraph, state: WorkflowState | None = None) -> networkx.DiGraph[str]:
    """Return the graph as a ``networkx.DiGraph`` whose nodes are agent_ids.

    Nodes have ``join``, ``entry`` (bool) and, if known, ``fixed_prefix_tokens`` and
    ``expected_duration_s``; edges have ``kind`` and, if known, ``probability``,
    ``expected_duration_s`` and ``max_iterations``. With a state, nodes have ``running``,
    ``entry_mark`` (bool) and, unless infinite, ``steps_to_execution``; edges have ``marks``. All
    are plain str, int, float and bool, never None, so that GraphML, GEXF and JSON take them.

    Raises:
        EnvironmentProblemError: networkx is not installed.
    """
    result: networkx.DiGraph[str] = _networkx().DiGraph()
    entry = frozenset(graph.entry)
    for agent in graph.agents:
        attributes: dict[str, object] = {"join": agent.join, "entry": agent.agent_id in entry}
        if agent.fixed_prefix_tokens is not None:
            attributes["fixed_prefix_tokens"] = agent.fixed_prefix_tokens
        if agent.expected_duration_s is not None:
            attributes["expected_duration_s"] = agent.expected_duration_s
        result.add_node(agent.agent_id, **attributes)
    for edge in graph.edges:
        known = {name: getattr(edge, name) for name in _IF_KNOWN if getattr(edge, name) is not None}
        result.add_edge(edge.source, edge.target, kind=edge.kind, **known)
    if state is not None:
        _add_state(result, state)
    return result


def _add_state(result: networkx.DiGraph[str], state: WorkflowState) -> None:
    entry_marks = state.entry_marks()
    for agent_id, steps in state.steps_to_execution().items():
        node = result.nodes[agent_id]
        node["running"] = state.running(agent_id)
        node["entry_mark"] = agent_id in entry_marks
        if steps != INFINITE_STEPS:
            node["steps_to_execution"] = steps
    marks = state.marks()
    for source, target, attributes in result.edges(data=True):
        attributes["marks"] = marks.get((source, target), 0)


def from_networkx(graph: networkx.DiGraph[Any]) -> AgentStepGraph:
    """Return the Agent Step Graph of a directed networkx graph.

    Reads the attributes that ``to_networkx`` writes and ignores all others; the state, if there is
    one, is not read. Absent attributes have the usual defaults. If no node says ``entry``, the
    agents without in-edges are the entry.

    Raises:
        InvalidInputError: the graph is undirected, allows parallel edges, has nodes that are not
            strings, or is wrong as an ``AgentStepGraph`` can be.
        GraphError: some agents could never run.
    """
    if not graph.is_directed():
        raise InvalidInputError(("edges",), "are undirected; pass a networkx.DiGraph")
    if graph.is_multigraph():
        raise InvalidInputError(
            ("edges",), "may be parallel in this graph type; pass a networkx.DiGraph"
        )
    agents = [
        Agent(
            agent_id=node,
            join=attributes.get("join", "all"),
            fixed_prefix_tokens=attributes.get("fixed_prefix_tokens"),
            expected_duration_s=attributes.get("expected_duration_s"),
        )
        for node, attributes in graph.nodes(data=True)
    ]
    edges = [
        Edge(
            source,
            target,
            kind=attributes.get("kind", "always"),
            probability=attributes.get("probability"),
            expected_duration_s=attributes.get("expected_duration_s"),
            max_iterations=attributes.get("max_iterations"),
        )
        for source, target, attributes in graph.edges(data=True)
    ]
    if any("entry" in attributes for _, attributes in graph.nodes(data=True)):
        entry = [node for node, is_entry in graph.nodes(data="entry") if is_entry]
    else:
        entry = [node for node, in_degree in graph.in_degree() if in_degree == 0]
    return AgentStepGraph(agents, edges, entry)


def _networkx() -> ModuleType:
    try:
        import networkx
    except ModuleNotFoundError as missing:
        raise EnvironmentProblemError(
            "networkx is not installed", "pip install 'kvflow[graph]'"
        ) from missing
    return networkx
