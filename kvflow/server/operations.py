"""The routes for whoever operates the service: health, readiness, metrics."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from kvflow.protocol import Health
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.openapi import problems
from kvflow.server.problems import problem_response

__all__ = ["operation_routes"]


def operation_routes(
    metrics: ServiceMetrics, unready_because: Callable[[], str | None]
) -> APIRouter:
    """``/health``, ``/ready`` and ``/metrics``; ``unready_because()`` is ``None`` when ready."""
    router = APIRouter(tags=["operations"])

    @router.get("/health")
    async def health() -> Health:
        """The process answers. Restart it if it does not."""
        return Health(status="ok")

    @router.get("/ready", response_model=Health, responses=problems(503))
    async def ready() -> Health | Response:
        """The service takes requests. Send it none while it does not."""
        reason = unready_because()
        return Health(status="ready") if reason is None else problem_response(503, reason)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus text.", "content": {"text/plain": {}}}},
    )
    async def prometheus() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(metrics.exposition(), headers={"Content-Type": metrics.content_type})

    return router
