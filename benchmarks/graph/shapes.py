"""Workflow graphs to measure on, and walks through them."""

from __future__ import annotations

import random
from typing import NamedTuple

from kvflow.errors import GraphError
from kvflow.graph import Agent, AgentStepGraph, Edge, EdgeKind, Join, WorkflowState

__all__ = ["SHAPES", "WalkEvent", "build", "walk"]

_JOINS: tuple[Join, ...] = ("all", "any")
_KINDS: tuple[EdgeKind, ...] = ("always", "choice")

SHAPES = ("ring", "fan", "random", "dense")


def build(shape: str, agents: int, seed: int) -> AgentStepGraph:
    """Return a graph in which a workflow can go round for ever.

    ring: each agent leads to the next. A start changes the steps of nearly all agents.
    fan: the first leads to all others but the last, which joins them and leads back.
    random: an edge to each agent from an earlier one, as many again anywhere, joins and kinds
        mixed, and a way back to the first.
    dense: as random, with ten edges per agent.
    """
    ids = [f"agent-{i}" for i in range(agents)]
    if shape == "ring":
        edges = [Edge(a, b) for a, b in zip(ids, [*ids[1:], ids[0]], strict=True)]
        return AgentStepGraph([Agent(a) for a in ids], edges, ids[:1])
    if shape == "fan":
        edges = [Edge(ids[0], a) for a in ids[1:-1]] + [Edge(a, ids[-1]) for a in ids[1:-1]]
        return AgentStepGraph([Agent(a) for a in ids], [*edges, Edge(ids[-1], ids[0])], ids[:1])
    return _random(ids, 2 if shape == "random" else 10, random.Random(seed))


def _random(ids: list[str], edges_per_agent: int, rng: random.Random) -> AgentStepGraph:
    pairs = {(ids[rng.randrange(i)], ids[i]) for i in range(1, len(ids))}
    while len(pairs) < edges_per_agent * len(ids):
        pairs.add((rng.choice(ids), rng.choice(ids)))
    pairs.add((ids[-1], ids[0]))
    kinds = {pair: rng.choices(_KINDS, (3, 1))[0] for pair in sorted(pairs)}
    edges = [Edge(source, target, kind) for (source, target), kind in kinds.items()]
    joins: dict[str, Join] = {agent_id: rng.choice(_JOINS) for agent_id in ids}
    joins[ids[0]] = "any"
    while True:
        agents = [Agent(agent_id, join) for agent_id, join in joins.items()]
        try:
            return AgentStepGraph(agents, edges, ids[:1])
        except GraphError as error:
            joins.update(dict.fromkeys(error.agent_ids, "any"))


class WalkEvent(NamedTuple):
    """A start or finish of an agent; the two of a run have the run's number."""

    is_start: bool
    agent_id: str
    run: int


def walk(graph: AgentStepGraph, events: int, rng: random.Random) -> list[WalkEvent]:
    """Return events of a workflow that starts only agents that may start, up to three at a time.

    One that comes to an end begins again at its entry, by a misprediction.
    """
    state = WorkflowState(graph)
    running: list[tuple[str, int]] = []
    trace: list[WalkEvent] = []
    while len(trace) < events:
        ready = _ready(state, rng)
        if running and (len(running) == 3 or ready is None or rng.random() < 0.5):
            agent_id, run = running.pop(rng.randrange(len(running)))
            state.finish(agent_id, str(run))
            trace.append(WalkEvent(False, agent_id, run))
        else:
            agent_id, run = ready or graph.entry[0], len(trace)
            state.start(agent_id, str(run))
            running.append((agent_id, run))
            trace.append(WalkEvent(True, agent_id, run))
    return trace


def _ready(state: WorkflowState, rng: random.Random) -> str | None:
    """Return an agent that may start, any of them."""
    steps = state.steps_to_execution()
    for agent_id in rng.sample(state.graph.agent_ids, len(steps)):
        if steps[agent_id] == 1 and not state.copy().start(agent_id).misprediction:
            return agent_id
    return None
