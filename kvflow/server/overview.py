"""What the dashboard shows, put together from workflows, streams and reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from kvflow import __version__
from kvflow.server.engine_reports import RECENT_SLOTS, EngineReports, ReportingEngine
from kvflow.server.overview_models import (
    EngineRow,
    HistoryPoint,
    Overview,
    WorkflowPicture,
    WorkflowRow,
    WorkflowRows,
)
from kvflow.server.report_views import agent_placement, engine_summary, figures
from kvflow.server.store import WorkflowRecord
from kvflow.server.stream import EngineStreams
from kvflow.server.subscription import Subscription
from kvflow.server.views import workflow_view
from kvflow.server.workflows import Workflows

__all__ = ["OverviewMaker"]

_SHOWN: Final = 5
_SCANNED_PER_PAGE: Final = 20_000
_SCAN_STEP: Final = 256
_AGENTS_AT_ONCE: Final = 50
_POINTS: Final = 60


class OverviewMaker:
    """Answers of ``/v1/overview``. Changes nothing.

    What takes long (a search through all workflows, the agents of a large one) is done in parts,
    between which other requests have their turn.
    """

    def __init__(
        self,
        workflows: Workflows,
        streams: EngineStreams,
        reports: EngineReports,
        clock: Callable[[], float],
    ) -> None:
        self._workflows = workflows
        self._streams = streams
        self._reports = reports
        self._clock = clock
        self._history: tuple[float, float, list[HistoryPoint]] = (-1.0, 0.0, [])

    def overview(self, engine_search: str, engines_limit: int) -> Overview:
        """Engines by id, and what was counted. O(engines)."""
        rows = self._engine_rows(engine_search.casefold(), engines_limit)
        now_s = self._clock()
        slot_s, points = self._points(now_s)
        return Overview(
            version=__version__,
            live_workflows=self._streams.live_workflows,
            engines_total=rows[0],
            engines=rows[1],
            recent=figures(self._reports.history.sum(now_s, RECENT_SLOTS)),
            slot_s=slot_s,
            history=points,
        )

    async def rows(
        self, search: str, running_only: bool, page: str | None, limit: int
    ) -> WorkflowRows:
        """Live workflows whose id, client or name has ``search`` in it, ``limit`` at most.

        One answer looks through 20,000 workflows at most, and may then be short of rows although
        there is a next page.
        """
        wanted = search.casefold()
        found: list[WorkflowRow] = []
        scanned = 0
        after = page
        while True:
            step = limit if not (wanted or running_only) else _SCAN_STEP
            records, following = await self._workflows.page(
                namespace=None, client_id=None, after=after, limit=step
            )
            now_s = self._clock()
            for record in records:
                if wanted and not _matches(record, wanted):
                    continue
                row = _row(record, now_s)
                if running_only and not row.running_count:
                    continue
                found.append(row)
                if len(found) == limit and record is not records[-1]:
                    return WorkflowRows(workflows=found, next_page="/".join(record.key))
            scanned += step
            after = following
            if after is None or len(found) == limit or scanned >= _SCANNED_PER_PAGE:
                return WorkflowRows(workflows=found, next_page=after)
            await asyncio.sleep(0)

    async def picture(self, namespace: str, workflow_id: str) -> WorkflowPicture:
        """One workflow with where its agents' prefixes are. O(agents x engines).

        Raises:
            WorkflowNotFoundError: there is no live workflow with this id.
        """
        record = await self._workflows.get(workflow_id, namespace=namespace)
        placements = []
        for number, agent in enumerate(record.graph.agents, start=1):
            found = self._reports.placements((record.client_id, agent.agent_id))
            placements.append(agent_placement(agent.agent_id, found))
            if number % _AGENTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return WorkflowPicture(
            namespace=record.namespace,
            workflow=workflow_view(record, self._clock()),
            placements=placements,
        )

    def _engine_rows(self, search: str, limit: int) -> tuple[int, list[EngineRow]]:
        now_s = self._clock()
        streams = {one.engine_id: one for one in self._streams.subscriptions}
        reports = {one.engine_id: one for one in self._reports.engines()}
        ids = sorted({*streams, *reports})
        ids = [engine_id for engine_id in ids if search in engine_id.casefold()]
        rows = [
            _engine_row(engine_id, streams.get(engine_id), reports.get(engine_id), now_s)
            for engine_id in ids[:limit]
        ]
        return len(ids), rows

    def _points(self, now_s: float) -> tuple[float, list[HistoryPoint]]:
        """Made once a second at most, however many look at it."""
        made_at_s, slot_s, points = self._history
        if not 0 <= now_s - made_at_s < 1.0:
            slot_s, slots = self._reports.history.merged(now_s, _POINTS)
            points = [
                HistoryPoint(ago_s=now_s - (slot.number + 1) * slot_s, **figures(slot).model_dump())
                for slot in slots
            ]
            self._history = (now_s, slot_s, points)
        return slot_s, points


def _engine_row(
    engine_id: str, stream: Subscription | None, engine: ReportingEngine | None, now_s: float
) -> EngineRow:
    state: Literal["live", "silent", "lost"] = "lost"
    if engine is not None and engine.lease_left_s(now_s) > 0:
        state = "live"
    elif stream is not None:
        state = "silent"
    return EngineRow(
        engine_id=engine_id,
        state=state,
        connected_for_s=None if stream is None else now_s - stream.connected_at_s,
        pending=None if stream is None else stream.pending,
        report=None if engine is None else engine_summary(engine, now_s),
    )


def _matches(record: WorkflowRecord, wanted: str) -> bool:
    texts = (record.workflow_id, record.client_id, record.name or "")
    return any(wanted in text.casefold() for text in texts)


def _row(record: WorkflowRecord, now_s: float) -> WorkflowRow:
    steps = record.wire_steps()
    running = [agent_id for agent_id, n in steps.items() if n == 0]
    soon = [agent_id for agent_id, n in steps.items() if n == 1]
    expires_in_s = max(0.0, record.expires_at_s - now_s)
    return WorkflowRow(
        namespace=record.namespace,
        workflow_id=record.workflow_id,
        client_id=record.client_id,
        name=record.name,
        agents=len(record.graph.agents),
        running=running[:_SHOWN],
        running_count=len(running),
        next=soon[:_SHOWN],
        steps_started=record.state.steps_started,
        mispredictions=record.state.mispredictions,
        idle_s=max(0.0, record.ttl_s - expires_in_s),
        expires_in_s=expires_in_s,
    )
