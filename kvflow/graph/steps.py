"""Steps-to-execution: the earliest step at which each agent can run.

An agent that runs has 0. Any other has ``1 + max`` over its in-edges (join ``all``) or ``1 + min``
(join ``any``), where an edge that holds a mark counts 0, one that is used up infinitely many, and
any other its source's steps. An agent that holds its entry mark has at most 1. The aggregation is
that of the Agent Step Graph (KVFlow, arXiv 2507.07400), extended to loops and to agents that cannot
run.

On a cyclic graph this is a system of equations. It has one solution over the naturals and infinity:
by induction on k, the agents of value k are settled by those of smaller value, and an agent that no
k reaches is infinite. ``max`` and ``min`` plus one are superior functions in Knuth's sense (*A
generalization of Dijkstra's algorithm*, 1977), so one pass in ascending order of value finds it;
as each step weighs 1, the priority queue is a plain queue.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvflow.graph.base import INFINITE_STEPS
from kvflow.graph.marking import Marking

__all__ = ["compute_steps", "steps_after_finish"]

_SETTLED = -1


def compute_steps(marking: Marking, running: Collection[int]) -> tuple[float, ...]:
    """Return the steps of all agents, by position. O(V + E), no recursion.

    Args:
        marking: the marks.
        running: agents with at least one run, each once.
    """
    graph = marking.graph
    steps = graph.unreached.copy()
    # How many unmarked in-edges an agent waits for. It settles when the count gets to 0; a count
    # below 0 is that of a settled agent, for which further arrivals do nothing.
    missing = marking.missing.copy()
    queue = list(running)
    for agent in queue:
        missing[agent] = _SETTLED
        steps[agent] = 0
    for startable in (marking.entry, marking.ready):
        for agent in startable:
            if steps[agent] > 1:
                missing[agent] = _SETTLED
                steps[agent] = 1
                queue.append(agent)
    unmarked_out, used_up_sources = marking.unmarked_out, marking.used_up_sources
    all_successors: Sequence[Sequence[int]] = graph.successors
    for agent in queue:
        if agent in unmarked_out:
            # A marked edge counts 0 for its target whatever its source's steps.
            if unmarked_out[agent] == 0:
                continue
            successors: Sequence[int] = _unmarked_successors(marking, agent)
        elif agent in used_up_sources:
            successors = _unmarked_successors(marking, agent)
        else:
            successors = all_successors[agent]
        step = steps[agent] + 1
        for successor in successors:
            left = missing[successor] - 1
            missing[successor] = left
            if left == 0:
                steps[successor] = step
                queue.append(successor)
    return tuple(steps)


def _unmarked_successors(marking: Marking, agent: int) -> list[int]:
    target, by_edge, used_up = marking.graph.target, marking.by_edge, marking.used_up
    return [
        target[edge]
        for edge in marking.graph.out_edges[agent]
        if edge not in by_edge and edge not in used_up
    ]


def steps_after_finish(steps: tuple[float, ...], agent: int, marking: Marking) -> tuple[float, ...]:
    """Return the steps after the last run of ``agent`` has marked all its out-edges.

    Only its own value can change: its out-edges counted 0 for the run and count 0 for their marks,
    so nothing depends on the value. Half of all events need no pass over the graph thereby.

    Args:
        steps: what ``compute_steps`` gave before the finish.
        agent: the agent, not running and without an entry mark.
        marking: after the finish.
    """
    graph, by_edge, used_up = marking.graph, marking.by_edge, marking.used_up
    counted = [
        0 if edge in by_edge else (INFINITE_STEPS if edge in used_up else steps[graph.source[edge]])
        for edge in graph.in_edges[agent]
    ]
    if not counted:
        own = INFINITE_STEPS
    elif graph.joins_any[agent]:
        own = 1 + min(counted)
    else:
        own = 1 + max(counted)
    return (*steps[:agent], own, *steps[agent + 1 :])
