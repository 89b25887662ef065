"""Steps-to-execution by brute force: iterate the equations from infinity until nothing changes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from kvflow.graph import Agent, Edge, WorkflowState


def solve(
    agents: Sequence[Agent],
    edges: Sequence[Edge],
    running: Collection[str],
    entry_marks: Collection[str],
    marked: Collection[tuple[str, str]],
    used_up: Collection[tuple[str, str]] = (),
) -> dict[str, float]:
    values: dict[str, float] = {agent.agent_id: math.inf for agent in agents}
    while True:
        after = {
            agent.agent_id: _right_side(agent, edges, running, entry_marks, marked, used_up, values)
            for agent in agents
        }
        if after == values:
            return values
        values = after


def _right_side(
    agent: Agent,
    edges: Sequence[Edge],
    running: Collection[str],
    entry_marks: Collection[str],
    marked: Collection[tuple[str, str]],
    used_up: Collection[tuple[str, str]],
    values: dict[str, float],
) -> float:
    if agent.agent_id in running:
        return 0
    counted = [
        0
        if (edge.source, edge.target) in marked
        else (math.inf if (edge.source, edge.target) in used_up else values[edge.source])
        for edge in edges
        if edge.target == agent.agent_id
    ]
    aggregate = max if agent.join == "all" else min
    by_edges = 1 + aggregate(counted) if counted else math.inf
    return min(1, by_edges) if agent.agent_id in entry_marks else by_edges


def solve_state(state: WorkflowState) -> dict[str, float]:
    return solve(
        state.graph.agents,
        state.graph.edges,
        [agent_id for agent_id in state.graph.agent_ids if state.running(agent_id)],
        state.entry_marks(),
        state.marks(),
        state.used_up(),
    )
