"""``POST /v1/engines/{engine_id}/report``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from kvflow.protocol import EngineReport, Identifier, ReportReceipt
from kvflow.server.engine_reports import EngineReports
from kvflow.server.openapi import problems

__all__ = ["report_routes"]


def report_routes(reports: EngineReports) -> APIRouter:
    """Where engines say what their caches hold and did."""
    router = APIRouter(prefix="/v1/engines", tags=["engines"])

    @router.post("/{engine_id}/report", responses=problems(400, 413, 415, 422))
    async def post_report(
        engine_id: Annotated[Identifier, Path(description="As on the stream.")],
        report: EngineReport,
    ) -> ReportReceipt:
        """Take an engine's report. It holds for three of the engine's intervals."""
        return reports.accept(engine_id, report)

    return router
