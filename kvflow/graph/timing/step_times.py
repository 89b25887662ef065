"""When the runs of one workflow started and finished."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from kvflow.graph.timing.durations import FamilyDurations

__all__ = ["OVERDUE_SHARE", "StepTimes"]

OVERDUE_SHARE: Final = 0.25
"""A run that has taken longer than its agent's usually do is expected to take this share of that
time more: it has not ended, and nothing says that it is about to."""


class StepTimes:
    """The times of one workflow's events; what they teach goes to ``durations``.

    All times are seconds on one clock, handed in. Finishes without a start that is known (the
    service was restarted in between) teach nothing. Memory: the runs under way, and two times per
    agent.
    """

    __slots__ = ("_finished_s", "_running", "_started_s", "durations")

    def __init__(self, durations: FamilyDurations) -> None:
        self.durations = durations
        self._running: dict[str, list[tuple[str | None, float]]] = {}
        self._started_s: dict[str, float] = {}
        self._finished_s: dict[str, float] = {}

    def copy(self) -> StepTimes:
        """Return an independent copy that teaches the same ``durations``."""
        twin = StepTimes(self.durations)
        twin._running = {agent_id: runs.copy() for agent_id, runs in self._running.items()}
        twin._started_s = self._started_s.copy()
        twin._finished_s = self._finished_s.copy()
        return twin

    def started(
        self, agent_id: str, step_id: str | None, sources: Iterable[str], now_s: float
    ) -> None:
        """A run started, after finishes of these agents.

        The latest of those finishes led to it. One that is older than the agent's last start led
        to that.
        """
        since_s = self._started_s.get(agent_id, -inf)
        latest = max(
            (
                (finished_s, source)
                for source in sources
                if (finished_s := self._finished_s.get(source, -inf)) >= since_s
                and source not in self._running
            ),
            default=(-inf, ""),
        )
        if latest[0] > -inf:
            self.durations.learn_gap(latest[1], agent_id, now_s - latest[0])
        self._running.setdefault(agent_id, []).append((step_id, now_s))
        self._started_s[agent_id] = now_s

    def finished(self, agent_id: str, step_id: str | None, now_s: float) -> None:
        """A run finished: the one named, or else the agent's oldest.

        One that started and finished at the same moment was reported in one go, afterwards: its
        duration is not known.
        """
        self._finished_s[agent_id] = now_s
        runs = self._running.get(agent_id)
        if runs is None:
            return
        place = next((i for i, (name, _) in enumerate(runs) if name == step_id), 0)
        _, started_s = runs.pop(place)
        if not runs:
            del self._running[agent_id]
        if now_s > started_s:
            self.durations.learn_run(agent_id, now_s - started_s)

    def remaining_s(self, agent_id: str, usual_s: float, now_s: float) -> float:
        """How much longer the agent's oldest run is expected to take.

        Of a run whose start is not known, all of the usual time.
        """
        runs = self._running.get(agent_id)
        elapsed_s = 0.0 if runs is None else now_s - runs[0][1]
        return max(usual_s - elapsed_s, OVERDUE_SHARE * usual_s)

    def since_finish_s(self, agent_id: str, now_s: float) -> float:
        """How long ago the agent last finished; 0 if that is not known."""
        return max(0.0, now_s - self._finished_s.get(agent_id, now_s))
