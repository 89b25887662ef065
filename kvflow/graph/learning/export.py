"""What was learned, as an Agent Step Graph: to be shown, or declared as it is."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from math import floor
from typing import Final

from kvflow.errors import GraphError
from kvflow.graph.base import Agent, Edge, Join
from kvflow.graph.learning.model import TransitionModel
from kvflow.graph.step_graph import AgentStepGraph

__all__ = ["ALWAYS_FROM", "declarable_graph", "observed_graph"]

ALWAYS_FROM: Final = 0.95
"""Share of a source's finishes from which an edge counts as one that every finish takes."""

Seconds = Callable[[str], float | None]
Gap = Callable[[str, str], float | None]


def observed_graph(model: TransitionModel, agent_ids: Sequence[str]) -> AgentStepGraph:
    """These agents and what is known of the order they run in; not fit to be declared."""
    known = frozenset(agent_ids)
    edges = _edges(model, agent_ids, known, _unknown_gap)
    agents = [Agent(agent_id, _join(model, agent_id, edges)) for agent_id in agent_ids]
    return AgentStepGraph.observed(agents, edges, [a for a in model.entries() if a in known])


def declarable_graph(
    model: TransitionModel,
    seconds: Seconds = lambda agent_id: None,
    gap: Gap = lambda source, target: None,
) -> AgentStepGraph | None:
    """The agents that workflows of the family run, with edges and probabilities.

    An edge that (nearly) every finish of its source takes is ``always``, any other a ``choice``
    with its probability. An agent that (nearly) always comes after all of its sources waits for
    all of them, any other for the first. Agents that no likely way leads to are left out.

    Args:
        model: what was learned.
        seconds: how long an agent's run takes, if known.
        gap: from one agent's finish to another's start, if known.

    Returns:
        None if no workflow of the family was seen to begin.
    """
    entries = model.entries()
    reached: dict[str, None] = dict.fromkeys(entries)
    queue = list(entries)
    for source in queue:
        for target in model.successors(source):
            if target not in reached:
                reached[target] = None
                queue.append(target)
    if not reached:
        return None
    edges = _edges(model, queue, reached, gap)
    joins = {agent_id: _join(model, agent_id, edges) for agent_id in queue}
    if not _can_all_run(queue, edges, entries, joins):
        joins = dict.fromkeys(queue, "any")
    agents = [Agent(one, joins[one], expected_duration_s=seconds(one)) for one in queue]
    return AgentStepGraph(agents, edges, entries)


def _edges(
    model: TransitionModel, sources: Sequence[str], known: Container[str], gap: Gap
) -> list[Edge]:
    edges = []
    for source in sources:
        targets = [target for target in model.successors(source) if target in known]
        shares = {target: model.share(source, target) for target in targets}
        choices = [target for target in targets if shares[target] < ALWAYS_FROM]
        # What is not quite exclusive adds up to more than 1, and to a little more by counting.
        total = max(1.0, sum(shares[target] for target in choices))
        for target in targets:
            if target in choices:
                probability = floor(10_000 * shares[target] / total) / 10_000
                edges.append(Edge(source, target, "choice", probability, gap(source, target)))
            else:
                edges.append(Edge(source, target, expected_duration_s=gap(source, target)))
    return edges


def _join(model: TransitionModel, agent_id: str, edges: Sequence[Edge]) -> Join:
    sources = [edge.source for edge in edges if edge.target == agent_id]
    together = all(model.came_after(agent_id, source) >= ALWAYS_FROM for source in sources)
    return "all" if together or len(sources) < 2 else "any"


def _can_all_run(
    agent_ids: Sequence[str], edges: Sequence[Edge], entries: Sequence[str], joins: dict[str, Join]
) -> bool:
    try:
        AgentStepGraph([Agent(one, joins[one]) for one in agent_ids], edges, entries)
    except GraphError:
        return False
    return True


def _unknown_gap(source: str, target: str) -> float | None:
    return None
