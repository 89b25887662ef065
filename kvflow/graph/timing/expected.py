"""Expected time to execution: how many seconds from now each agent can run at the earliest.

The time counterpart of ``kvflow.graph.steps``, over the same marks. An agent that runs has 0. Any
other has the ``max`` (join ``all``) or ``min`` (join ``any``) over its in-edges of when the edge
lets it start:

* an edge that holds a mark: what is left of the time that usually lies between the two agents;
* one that is used up: never;
* any other: when its source is expected to finish, and the time that usually lies between. A
  running source finishes after what is left of its usual duration, any other after its own expected
  time and its duration.

An agent that holds its entry mark can start now. Durations do not shorten a way, so the functions
are superior ones in Knuth's sense (see ``kvflow.graph.steps``), and one pass in ascending order of
time settles every agent. An agent has a finite time if and only if it has finite steps.

Alternatives are counted as if each were taken, as in the steps: probabilities play no part.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from math import inf

from kvflow.graph.marking import Marking

__all__ = ["expected_times"]


def expected_times(
    marking: Marking,
    running: Collection[int],
    *,
    duration_s: Callable[[int], float],
    remaining_s: Callable[[int], float],
    gap_s: Callable[[int], float],
    gap_left_s: Callable[[int], float],
) -> tuple[float, ...]:
    """Return the seconds of all agents, by position. O((V + E) log V), no recursion.

    Args:
        marking: the marks.
        running: agents with at least one run.
        duration_s: per agent, how long a run takes.
        remaining_s: per running agent, how much longer its run takes.
        gap_s: per edge, from the source's finish to the target's start.
        gap_left_s: per marked edge, how much of that is left.
    """
    graph, by_edge, used_up = marking.graph, marking.by_edge, marking.used_up
    times = graph.unreached.copy()
    # What an unsettled agent has so far, and how many of its in-edges still have to say something.
    arrived = [0.0] * len(times)
    missing = graph.needed.copy()
    settled = [False] * len(times)
    heap: list[tuple[float, int]] = [(0.0, agent) for agent in running]
    heap += [(0.0, agent) for agent in marking.entry if agent not in running]
    heapq.heapify(heap)
    is_running = frozenset(running)

    def arrive(edge: int, at_s: float) -> None:
        target = graph.target[edge]
        if graph.joins_any[target]:
            heapq.heappush(heap, (at_s, target))
            return
        arrived[target] = max(arrived[target], at_s)
        missing[target] -= 1
        if missing[target] == 0:
            heapq.heappush(heap, (arrived[target], target))

    for edge in by_edge:
        arrive(edge, gap_left_s(edge))
    while heap:
        at_s, agent = heapq.heappop(heap)
        if settled[agent] or at_s == inf:
            continue
        settled[agent] = True
        times[agent] = at_s
        ends_s = remaining_s(agent) if agent in is_running else at_s + duration_s(agent)
        for edge in graph.out_edges[agent]:
            if edge not in by_edge and edge not in used_up:
                arrive(edge, ends_s + gap_s(edge))
    return tuple(times)
