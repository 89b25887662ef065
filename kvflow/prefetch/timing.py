"""When an agent will run: how long steps take, learned from the steps that ran."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kvflow.graph import INFINITE_STEPS

__all__ = ["StepTimer"]

MAX_AGENTS: Final = 65_536

NEWEST_WEIGHT: Final = 0.3
"""Of the newest duration in an agent's mean."""

OVERDUE_SHARE: Final = 0.25
"""A step that has taken longer than it usually does is expected to take this share of its mean
more: it has not ended, and nothing says that it is about to."""

_Key = tuple[str, str]
"""``(client_id, workflow_id)``"""


@dataclass(slots=True)
class _Client:
    """Sum of the mean durations of a client's agents, and how many agents those are."""

    sum_s: float = 0.0
    agents: int = 0


class StepTimer:
    """Learns the duration of steps per agent of a client, and estimates when others are due.

    All times are seconds on one clock, handed in; it should not run backwards (a step that ends
    before it began counts 0 s). Durations are exponentially weighted means. The agent that
    finished a step least recently is forgotten first. Runs of a live workflow are kept until they
    finish or the workflow is forgotten. Not thread-safe. Each operation is O(1), ``update``
    O(agents of the workflow), ``due_in_s`` O(agents running in it).
    """

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._clients: dict[str, _Client] = {}
        self._running: dict[_Key, dict[str, float]] = {}

    def update(self, key: _Key, steps: Mapping[str, float], now_s: float) -> None:
        """Take the present steps-to-execution of a workflow: who has 0 runs, all others do not.

        An agent that runs in the first vector is held to have started just now.
        """
        running = self._running.get(key, {})
        for agent_id in [agent for agent in running if steps.get(agent) != 0]:
            self.finished(key, agent_id, now_s)
        for agent_id, value in steps.items():
            if value == 0:
                self.started(key, agent_id, now_s)

    def started(self, key: _Key, agent_id: str, now_s: float) -> None:
        """A step began; of an agent's overlapping runs the first counts."""
        self._running.setdefault(key, {}).setdefault(agent_id, now_s)

    def finished(self, key: _Key, agent_id: str, now_s: float) -> None:
        """A step ended; ignored if it is not known to have begun."""
        running = self._running.get(key)
        if running is None or agent_id not in running:
            return
        duration_s = max(0.0, now_s - running.pop(agent_id))
        if not running:
            del self._running[key]
        self._learn((key[0], agent_id), duration_s)

    def forget(self, key: _Key) -> None:
        """The workflow ended; of steps still running nothing is learned."""
        self._running.pop(key, None)

    def due_in_s(self, key: _Key, steps: float, now_s: float) -> float | None:
        """Estimate in how many seconds an agent of the workflow runs that is ``steps`` away.

        The step of the workflow that ends first, plus one of the client's mean duration for each
        step between. Where several agents run, that is the earliest it can be: a join may wait
        for the others. Where none runs, the next is held to begin at once. An agent whose
        duration is not known counts with the client's mean, the mean over its agents.

        Returns:
            0 for an agent that runs; ``math.inf`` for one that cannot; None if no step of the
            client has ever been timed.
        """
        if steps <= 0:
            return 0.0
        if steps == INFINITE_STEPS:
            return INFINITE_STEPS
        client = self._clients.get(key[0])
        if client is None:
            return None
        mean_s = max(0.0, client.sum_s / client.agents)  # the sum's rounding may go below 0
        remaining_s = min(
            (
                _remaining_s(self._means.get((key[0], agent_id), mean_s), now_s - start_s)
                for agent_id, start_s in self._running.get(key, {}).items()
            ),
            default=0.0,
        )
        return remaining_s + (steps - 1) * mean_s

    def _learn(self, agent: tuple[str, str], duration_s: float) -> None:
        client = self._clients.setdefault(agent[0], _Client())
        known_s = self._means.get(agent)
        if known_s is None:
            mean_s = duration_s
            client.agents += 1
            client.sum_s += mean_s
        else:
            mean_s = known_s + NEWEST_WEIGHT * (duration_s - known_s)
            client.sum_s += mean_s - known_s
        self._means[agent] = mean_s
        self._means.move_to_end(agent)
        if len(self._means) > MAX_AGENTS:
            (client_id, _), forgotten_s = self._means.popitem(last=False)
            others = self._clients[client_id]
            others.agents -= 1
            others.sum_s -= forgotten_s
            if others.agents == 0:
                del self._clients[client_id]


def _remaining_s(mean_s: float, elapsed_s: float) -> float:
    return max(mean_s - elapsed_s, OVERDUE_SHARE * mean_s)
