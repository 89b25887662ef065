"""Measurements that count once the events they are of are stored."""

from __future__ import annotations

from kvflow.graph.timing import FamilyDurations

__all__ = ["PendingDurations"]


class PendingDurations(FamilyDurations):
    """Answers as ``known`` does and holds what it is taught, until ``hand_on``.

    Events that the store refuses, or that are applied again as another service was faster, are
    measured each time; they must teach once.
    """

    __slots__ = ("_gaps_s", "_known", "_runs_s")

    def __init__(self, known: FamilyDurations) -> None:
        super().__init__()
        self._known = known
        self._runs_s: list[tuple[str, float]] = []
        self._gaps_s: list[tuple[str, str, float]] = []

    def hand_on(self) -> FamilyDurations:
        """Teach ``known`` what was measured, and return it."""
        for agent_id, seconds in self._runs_s:
            self._known.learn_run(agent_id, seconds)
        for source, target, seconds in self._gaps_s:
            self._known.learn_gap(source, target, seconds)
        return self._known

    @property
    def known(self) -> bool:
        return self._known.known

    def learn_run(self, agent_id: str, seconds: float) -> None:
        self._runs_s.append((agent_id, seconds))

    def learn_gap(self, source: str, target: str, seconds: float) -> None:
        self._gaps_s.append((source, target, seconds))

    def run_s(self, agent_id: str, declared_s: float | None = None) -> float | None:
        return self._known.run_s(agent_id, declared_s)

    def gap_s(self, source: str, target: str, declared_s: float | None = None) -> float:
        return self._known.gap_s(source, target, declared_s)

    def measured_run_s(self, agent_id: str) -> float | None:
        return self._known.measured_run_s(agent_id)

    def measured_gap_s(self, source: str, target: str) -> float | None:
        return self._known.measured_gap_s(source, target)
