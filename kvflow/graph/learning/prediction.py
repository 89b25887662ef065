"""Steps-to-execution where nothing is declared: the fewest likely transitions to each agent."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping

from kvflow.graph.base import INFINITE_STEPS
from kvflow.graph.learning.history import Finished
from kvflow.graph.learning.model import TransitionModel
from kvflow.graph.timing import StepTimes

__all__ = ["next_probability", "predicted_steps", "predicted_times"]


def predicted_steps(
    model: TransitionModel,
    agent_ids: Iterable[str],
    running: Collection[str],
    frontier: Iterable[Finished],
    *,
    begun: bool,
) -> dict[str, float]:
    """Return the steps of these agents. O(agents + transitions).

    Running ones have 0. Those that are predicted to follow the latest finishes, or a running
    agent's, have 1, those after them 2, and so on; an agent that nothing likely leads to has
    INFINITE_STEPS. Of the alternatives of a finish only those are left that can still follow
    beside what has followed already. Of a join the nearest source counts, as if any were enough.

    Args:
        begun: whether the workflow has begun; if not, what it may begin with has 1.
    """
    steps: dict[str, float] = dict.fromkeys(running, 0)
    queue = list(running)
    nearest: dict[str, None] = {}
    if not begun:
        nearest.update(dict.fromkeys(model.entries()))
    for finished in frontier:
        nearest.update(dict.fromkeys(_still_to_come(model, finished)))
    for agent_id in nearest:
        if agent_id not in steps:
            steps[agent_id] = 1
            queue.append(agent_id)
    for source in queue:
        step = steps[source] + 1
        for target in model.successors(source):
            if target not in steps:
                steps[target] = step
                queue.append(target)
    return {agent_id: steps.get(agent_id, INFINITE_STEPS) for agent_id in agent_ids}


def predicted_times(
    model: TransitionModel,
    steps: Mapping[str, float],
    frontier: Collection[Finished],
    times: StepTimes,
    now_s: float,
) -> tuple[float, ...]:
    """Return the seconds after which these agents run, over the transitions that ``steps`` counts.

    In their order; ``math.inf`` where the steps are. O((agents + transitions) log agents).
    """
    durations = times.durations
    settled: dict[str, float] = {}
    heap = [(0.0, agent_id) for agent_id, n in steps.items() if n == 0]
    if not heap and not frontier:  # What it may begin with can begin now.
        heap = [(0.0, agent_id) for agent_id, n in steps.items() if n == 1]
    for finished in frontier:
        since_s = times.since_finish_s(finished.agent_id, now_s)
        for target in _still_to_come(model, finished):
            gap_s = durations.gap_s(finished.agent_id, target)
            heap.append((max(0.0, gap_s - since_s), target))
    heapq.heapify(heap)
    while heap:
        at_s, source = heapq.heappop(heap)
        if source in settled:
            continue
        settled[source] = at_s
        usual_s = durations.run_s(source) or 0.0
        is_running = steps.get(source) == 0
        ends_s = times.remaining_s(source, usual_s, now_s) if is_running else at_s + usual_s
        for target in model.successors(source):
            if target not in settled:
                heapq.heappush(heap, (ends_s + durations.gap_s(source, target), target))
    return tuple(settled.get(agent_id, INFINITE_STEPS) for agent_id in steps)


def _still_to_come(model: TransitionModel, finished: Finished) -> list[str]:
    """The agents predicted after a finish that can still follow it, beside those that have."""
    return [
        agent_id
        for agent_id in model.successors(finished.agent_id)
        if agent_id not in finished.followers
        and all(
            model.both_follow(finished.agent_id, agent_id, other) for other in finished.followers
        )
    ]


def next_probability(model: TransitionModel, frontier: Iterable[Finished], agent_id: str) -> float:
    """Return how likely this agent was to start now: the most that any of the finishes says."""
    return max((model.probability(one.agent_id, agent_id) for one in frontier), default=0.0)
