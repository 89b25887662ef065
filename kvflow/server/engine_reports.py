"""What engines last reported of themselves, for as long as they go on reporting.

A report holds for a lease of three of the engine's intervals. Then the engine is ``lost``: where
prefixes were is no longer known, its figures are shown for ten minutes more. All of this is in
memory; after a restart of the service the engines' next reports bring it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from kvflow.protocol import EngineReport, PrefixPlacement, ReportReceipt
from kvflow.server.event_bus import EventBus
from kvflow.server.report_history import COUNTED, Growth, History

__all__ = ["EngineReports", "ReportingEngine"]

INTERVALS_PER_LEASE: Final = 3
MIN_LEASE_S: Final = 5.0
LOST_KEPT_S: Final = 600.0
MAX_ENGINES: Final = 10_000
MAX_PLACEMENTS: Final = 500_000
"""Agents' prefixes remembered, of all engines; some 300 bytes each."""

SLOT_S: Final = 10.0
SLOTS: Final = 360
RECENT_SLOTS: Final = 6

AgentKey = tuple[str, str]


@dataclass(slots=True)
class ReportingEngine:
    """One engine's last report, and what it counted of late."""

    engine_id: str
    report: EngineReport
    reported_at_s: float
    lease_s: float
    agents: dict[AgentKey, PrefixPlacement] = field(default_factory=dict)
    recent: History = field(default_factory=lambda: History(SLOT_S, RECENT_SLOTS))

    def lease_left_s(self, now_s: float) -> float:
        """0 once it is over."""
        return max(0.0, self.reported_at_s + self.lease_s - now_s)


class EngineReports:
    """The engines that report. Belongs to one event loop; no method waits.

    Args:
        clock: the time in seconds.
        bus: told of each report, as ``engine.report``.
    """

    def __init__(self, clock: Callable[[], float], bus: EventBus) -> None:
        self._clock = clock
        self._bus = bus
        self._engines: dict[str, ReportingEngine] = {}
        self._placements = 0
        self.history = History(SLOT_S, SLOTS)

    def accept(self, engine_id: str, report: EngineReport) -> ReportReceipt:
        """Take a report. O(agents in it).

        The first report of a run counts for the history from nothing only if the engine has just
        started: what it counted before this service knew it belongs to no time that can be named.
        """
        now_s = self._clock()
        known = self._engines.get(engine_id)
        same_run = known is not None and known.report.run_id == report.run_id
        follows = (
            known is not None
            and same_run
            and report.number == known.report.number + 1
            and known.lease_left_s(now_s) > 0
        )
        if known is None:
            self._make_room(now_s)
            known = self._engines[engine_id] = ReportingEngine(engine_id, report, now_s, 0.0)
            before = None
        else:
            before = known.report if same_run else None
        growth = _growth(before, report)
        known.report = report.model_copy(update={"agents": [], "forgotten": []})
        known.reported_at_s = now_s
        known.lease_s = max(MIN_LEASE_S, INTERVALS_PER_LEASE * report.interval_s)
        if growth is not None:
            known.recent.add(growth, now_s)
            self.history.add(growth, now_s)
        send_all = not self._place(known, report, follows=follows)
        self._publish(known)
        return ReportReceipt(send_all=send_all)

    def engines(self) -> list[ReportingEngine]:
        """All of them by id, those that were lost in the last ten minutes too."""
        self._forget_lost(self._clock())
        return [self._engines[engine_id] for engine_id in sorted(self._engines)]

    def get(self, engine_id: str) -> ReportingEngine | None:
        """The engine, if it has reported."""
        return self._engines.get(engine_id)

    def placements(self, agent: AgentKey) -> Iterator[tuple[ReportingEngine, PrefixPlacement]]:
        """Where the agent's prefix is, on each engine that knows it now. O(engines)."""
        now_s = self._clock()
        for engine in self._engines.values():
            placement = engine.agents.get(agent)
            if placement is not None and engine.lease_left_s(now_s) > 0:
                yield engine, placement

    def _place(self, known: ReportingEngine, report: EngineReport, *, follows: bool) -> bool:
        """Take over where the agents' prefixes are; False if the report builds on what is not
        here."""
        before = len(known.agents)
        if report.agents_are == "all":
            known.agents.clear()
        elif not follows:
            known.agents.clear()
            self._placements -= before
            return False
        for key in report.forgotten:
            known.agents.pop(key, None)
        room = MAX_PLACEMENTS - self._placements + before
        for placement in report.agents:
            key = (placement.client_id, placement.agent_id)
            if key in known.agents or len(known.agents) < room:
                known.agents[key] = placement
        self._placements += len(known.agents) - before
        return True

    def _publish(self, engine: ReportingEngine) -> None:
        if not self._bus.wanted("engine.report"):
            return
        report = engine.report
        self._bus.publish(
            "engine.report",
            {
                "engine_id": engine.engine_id,
                "model": report.model,
                "waiting_requests": report.waiting_requests,
                "running_requests": report.running_requests,
                "device": report.device and report.device.model_dump(),
                "host": report.host and report.host.model_dump(),
                "totals": report.totals.model_dump(),
                "agents": len(engine.agents),
            },
            namespace=None,
        )

    def _make_room(self, now_s: float) -> None:
        if len(self._engines) < MAX_ENGINES:
            return
        self._forget_lost(now_s)
        while len(self._engines) >= MAX_ENGINES:
            oldest = min(self._engines.values(), key=lambda engine: engine.reported_at_s)
            self._drop(oldest)

    def _forget_lost(self, now_s: float) -> None:
        for engine in list(self._engines.values()):
            if now_s - engine.reported_at_s - engine.lease_s > LOST_KEPT_S:
                self._drop(engine)
            elif engine.agents and engine.lease_left_s(now_s) <= 0:
                self._placements -= len(engine.agents)
                engine.agents.clear()

    def _drop(self, engine: ReportingEngine) -> None:
        self._placements -= len(engine.agents)
        del self._engines[engine.engine_id]


def _growth(before: EngineReport | None, report: EngineReport) -> Growth | None:
    """What was counted since the report before; None where that cannot be told."""
    counts = {name: getattr(report.totals, name) for name in COUNTED}
    bounds_s = tuple(report.first_token.bounds_s)
    times = tuple(report.first_token.counts)
    if before is None:
        return Growth(counts, bounds_s, times) if report.number == 1 else None
    for name in COUNTED:
        counts[name] = max(0, counts[name] - getattr(before.totals, name))
    earlier = before.first_token
    if tuple(earlier.bounds_s) == bounds_s and len(earlier.counts) == len(times):
        times = tuple(max(0, a - b) for a, b in zip(times, earlier.counts, strict=True))
    else:
        times = ()
    return Growth(counts, bounds_s, times)
