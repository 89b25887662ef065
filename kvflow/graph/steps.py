"""Steps-to-execution: the earliest step at which each agent can run.

An agent that runs has 0. Any other has ``1 + max`` over its in-edges (join ``all``) or ``1 + min``
(join ``any``), where an edge that holds a mark counts 0 and one that does not counts its source's
steps. An agent that holds its entry mark has at most 1. The aggregation is that of the Agent Step
Graph (KVFlow, arXiv 2507.07400), extended to loops and to agents that cannot run.

On a cyclic graph this is a system of equations. It has one solution over the naturals and infinity:
by induction on k, the agents of value k are settled by those of smaller value, and an agent that no
k reaches is infinite. ``max`` and ``min`` plus one are superior functions in Knuth's sense (*A
generalization of Dijkstra's algorithm*, 1977), so one pass in ascending order of value finds it;
as each step weighs 1, the priority queue is a plain queue.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

from kvflow.graph.adjacency import Adjacency
from kvflow.graph.base import INFINITE_STEPS

__all__ = ["compute_steps", "steps_after_finish"]

_SETTLED = -1


def compute_steps(
    graph: Adjacency,
    running: Iterable[int],
    entry_marks: Iterable[int],
    marked_edges: Collection[int],
) -> tuple[float, ...]:
    """Return the steps of all agents, by position. O(V + E), no recursion.

    Args:
        graph: the compiled graph.
        running: agents with at least one run, each once.
        entry_marks: agents that still hold their entry mark, each once.
        marked_edges: edges that hold at least one mark, each once.
    """
    # How many more in-edges an agent waits for; it settles when the count reaches 0, once.
    needed = graph.needed.copy()
    steps = graph.unreached.copy()
    queue = list(running)
    for agent in queue:
        needed[agent] = _SETTLED
        steps[agent] = 0
    for agent in entry_marks:
        if needed[agent] != _SETTLED:
            needed[agent] = _SETTLED
            steps[agent] = 1
            queue.append(agent)
    successors: Sequence[Sequence[int]] = graph.successors
    if marked_edges:
        target = graph.target
        waiting: list[int] = []
        for edge in marked_edges:
            agent = target[edge]
            left = needed[agent] - 1
            needed[agent] = left
            if left == 0:
                steps[agent] = 1
                queue.append(agent)
            elif left > 0:
                waiting.append(edge)
        if waiting:
            successors = _without_counted_edges(graph, waiting, needed)
    for agent in queue:
        step = steps[agent] + 1
        for successor in successors[agent]:
            left = needed[successor] - 1
            needed[successor] = left
            if left == 0:
                steps[successor] = step
                queue.append(successor)
    return tuple(steps)


def steps_after_finish(
    graph: Adjacency, steps: tuple[float, ...], agent: int, marked_edges: Container[int]
) -> tuple[float, ...]:
    """Return the steps after the last run of ``agent`` has marked all its out-edges.

    Only its own value can change: its out-edges counted 0 for the run and count 0 for their marks,
    so nothing depends on the value. Half of all events need no pass over the graph thereby.

    Args:
        graph: the compiled graph.
        steps: what ``compute_steps`` gave before the finish.
        agent: the agent, not running and without an entry mark.
        marked_edges: after the finish.
    """
    counted = [
        0 if edge in marked_edges else steps[graph.source[edge]] for edge in graph.in_edges[agent]
    ]
    if not counted:
        own = INFINITE_STEPS
    elif graph.joins_any[agent]:
        own = 1 + min(counted)
    else:
        own = 1 + max(counted)
    return (*steps[:agent], own, *steps[agent + 1 :])


def _without_counted_edges(
    graph: Adjacency, marked_edges: Iterable[int], needed: Sequence[int]
) -> Sequence[Sequence[int]]:
    """Return successors without the marked edges into agents that still wait for others.

    Such an edge was counted for its mark and must not count again when its source settles. Into a
    settled agent it may: nothing looks at that count any more.
    """
    source, target = graph.source, graph.target
    counted: dict[int, set[int]] = {}
    for edge in marked_edges:
        agent = target[edge]
        if needed[agent] > 0:
            if source[edge] in counted:
                counted[source[edge]].add(agent)
            else:
                counted[source[edge]] = {agent}
    if not counted:
        return graph.successors
    successors: list[Sequence[int]] = list(graph.successors)
    for agent, targets in counted.items():
        successors[agent] = [other for other in successors[agent] if other not in targets]
    return successors
