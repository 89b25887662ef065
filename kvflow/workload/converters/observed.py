"""What recorded calls say about the order of a workflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kvflow.errors import GraphError
from kvflow.graph import Agent, AgentStepGraph, Edge

__all__ = ["calls_before", "observed_graph"]


def calls_before(spans: Sequence[tuple[float, float]]) -> list[tuple[int, ...]]:
    """Return, for each call, the positions of those it directly came after.

    A call came after all that had ended when it began. Named are those of them that ended after the
    last of them began; the others came before that one.

    Args:
        spans: begin and end of each call, in the order in which they begin.
    """
    by_end = sorted(range(len(spans)), key=lambda call: spans[call][1])
    frontier: list[int] = []
    latest_begin = float("-inf")
    ended = 0
    before = []
    for call, (begin, _) in enumerate(spans):
        while ended < len(by_end) and spans[by_end[ended]][1] <= begin and by_end[ended] < call:
            over = by_end[ended]
            ended += 1
            latest_begin = max(latest_begin, spans[over][0])
            frontier = [*(one for one in frontier if spans[one][1] > latest_begin), over]
        before.append(tuple(sorted(frontier)))
    return before


def observed_graph(
    workflows: Iterable[Sequence[tuple[str, tuple[int, ...]]]], fixed_tokens: Mapping[str, int]
) -> AgentStepGraph:
    """Return a graph that allows for what was seen: what a user would declare in hindsight.

    Where every run of an agent was followed by the same agents, all of them follow always; else
    they are a choice. Where every run came after all the agents that ever came before it, it waits
    for all; else for any.

    Args:
        workflows: each workflow's calls, as agent_id and ``after``.
        fixed_tokens: per agent.
    """
    entry: dict[str, None] = {}
    followed: dict[str, list[frozenset[str]]] = {}
    preceded: dict[str, list[frozenset[str]]] = {}
    for calls in workflows:
        successors: list[set[str]] = [set() for _ in calls]
        for agent_id, after in calls:
            for before in after:
                successors[before].add(agent_id)
            sources = frozenset(calls[before][0] for before in after)
            preceded.setdefault(agent_id, [])
            if sources:
                preceded[agent_id].append(sources)
            else:
                entry[agent_id] = None
        for (agent_id, _), following in zip(calls, successors, strict=True):
            if following:
                followed.setdefault(agent_id, []).append(frozenset(following))
    agents = [
        Agent(agent_id, "all" if len(set(seen)) <= 1 else "any", fixed_tokens.get(agent_id))
        for agent_id, seen in preceded.items()
    ]
    edges = [
        Edge(source, target, "always" if len(set(seen)) == 1 else "choice")
        for source, seen in followed.items()
        for target in sorted(frozenset().union(*seen))
    ]
    try:
        return AgentStepGraph(agents, edges, list(entry))
    except GraphError:
        relaxed = [replace(one, join="any") for one in agents]
        return AgentStepGraph(relaxed, edges, list(entry))
