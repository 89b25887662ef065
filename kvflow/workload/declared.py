"""Graphs that are declared in the place of the right one."""

from __future__ import annotations

import random
from dataclasses import replace

from kvflow.graph import AgentStepGraph, Edge
from kvflow.workload.scenario import DeclaredGraph

__all__ = ["declare"]


def declare(
    graph: AgentStepGraph, kind: DeclaredGraph, rng: random.Random
) -> AgentStepGraph | None:
    """Return what is declared where ``graph`` is right. Only ``shuffled`` draws."""
    if kind == "none":
        return None
    if kind == "reversed":
        return _reversed(graph)
    return _shuffled(graph, rng) if kind == "shuffled" else graph


def _reversed(graph: AgentStepGraph) -> AgentStepGraph:
    """Every edge the other way round; it begins where the right one ends, if it does.

    What waits for any of several becomes a choice of these, and the other way round. How likely an
    edge is, and how often it can be taken, does not hold for its reverse.
    """
    has_choice = {edge.source for edge in graph.edges if edge.kind == "choice"}
    joins_any = {agent.agent_id for agent in graph.agents if agent.join == "any"}
    agents = [
        replace(agent, join="any" if agent.agent_id in has_choice else "all")
        for agent in graph.agents
    ]
    edges = [
        Edge(edge.target, edge.source, "choice" if edge.target in joins_any else "always")
        for edge in graph.edges
    ]
    sources = {edge.source for edge in graph.edges}
    ends = [agent_id for agent_id in graph.agent_ids if agent_id not in sources]
    return AgentStepGraph(agents, edges, ends or graph.entry)


def _shuffled(graph: AgentStepGraph, rng: random.Random) -> AgentStepGraph:
    """The same shape, each agent (of two or more) in the place of another."""
    places = list(range(len(graph.agents)))
    rng.shuffle(places)
    moved = {
        graph.agent_ids[place]: graph.agents[places[(i + 1) % len(places)]]
        for i, place in enumerate(places)
    }
    agents = [replace(moved[agent.agent_id], join=agent.join) for agent in graph.agents]
    edges = [
        replace(edge, source=moved[edge.source].agent_id, target=moved[edge.target].agent_id)
        for edge in graph.edges
    ]
    return AgentStepGraph(agents, edges, [moved[agent_id].agent_id for agent_id in graph.entry])
