"""Graphs that are declared in the place of the right one."""

from __future__ import annotations

import random

from kvflow.graph import Agent, AgentStepGraph, Edge
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

    What waits for any of several becomes a choice of these, and the other way round.
    """
    has_choice = {edge.source for edge in graph.edges if edge.kind == "choice"}
    joins_any = {agent.agent_id for agent in graph.agents if agent.join == "any"}
    agents = [
        Agent(
            agent.agent_id,
            join="any" if agent.agent_id in has_choice else "all",
            fixed_prefix_tokens=agent.fixed_prefix_tokens,
        )
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
    agents = [
        Agent(moved[agent.agent_id].agent_id, agent.join, moved[agent.agent_id].fixed_prefix_tokens)
        for agent in graph.agents
    ]
    edges = [
        Edge(moved[edge.source].agent_id, moved[edge.target].agent_id, edge.kind)
        for edge in graph.edges
    ]
    return AgentStepGraph(agents, edges, [moved[agent_id].agent_id for agent_id in graph.entry])
