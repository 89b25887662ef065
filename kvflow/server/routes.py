"""The routes under ``/v1``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Final
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Request, Response

from kvflow.protocol import (
    EngineAway,
    EngineList,
    EngineView,
    EventsResult,
    Identifier,
    StepsView,
    WorkflowList,
    WorkflowView,
)
from kvflow.server.bodies import EventsBody, WorkflowBody
from kvflow.server.engine_reports import EngineReports
from kvflow.server.identity import RequestIdentity, check_client_id
from kvflow.server.limits import Limits
from kvflow.server.long_bodies import LongBodyRoute, RightEvents
from kvflow.server.openapi import EVENT_STREAM_DOC, problems
from kvflow.server.report_views import engine_summary
from kvflow.server.sse import EngineStreamResponse
from kvflow.server.stream import EngineStreams
from kvflow.server.views import events_result, steps_view, workflow_view
from kvflow.server.workflows import EventRefusedError, Workflows

__all__ = ["engine_routes", "workflow_routes"]


_PAGE: Final = r"^([A-Za-z0-9][A-Za-z0-9._:@-]*)?/?[A-Za-z0-9][A-Za-z0-9._:@-]*$"


def workflow_routes(workflows: Workflows, clock: Callable[[], float], limits: Limits) -> APIRouter:
    """``/v1/workflows`` and below. Each acts in the namespace of whoever asks."""
    router = APIRouter(prefix="/v1/workflows", tags=["workflows"], route_class=LongBodyRoute)

    @router.post(
        "",
        status_code=201,
        responses={
            200: {"model": WorkflowView, "description": "It exists already, with this content."},
            **problems(400, 409, 413, 415, 422, 503),
        },
    )
    async def create_workflow(
        spec: Annotated[WorkflowBody, Body()],
        who: RequestIdentity,
        request: Request,
        response: Response,
    ) -> WorkflowView:
        """Create a workflow. Creating it again with the same content renews its TTL."""
        if "client_id" in spec.model_fields_set:
            check_client_id(request, who, spec.client_id)
        record, created = await workflows.create(
            spec, namespace=who.namespace, most=limits.max_workflows(who)
        )
        response.status_code = 201 if created else 200
        response.headers["Location"] = f"/v1/workflows/{quote(record.workflow_id, safe='')}"
        return workflow_view(record, clock())

    @router.get("", responses=problems(422, 503))
    async def list_workflows(
        who: RequestIdentity,
        client_id: Annotated[Identifier | None, Query(description="Only this client's.")] = None,
        page: Annotated[
            str | None,
            Query(description="`next_page` of the page before.", max_length=600, pattern=_PAGE),
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> WorkflowList:
        """Live workflows in the order of their ids, a page at a time."""
        # An administrator who names no client, or one without keys, looks at all of them.
        namespace = None if who.scope == "admin" and who.client_id is None else who.namespace
        records, following = await workflows.page(
            client_id=client_id, after=page, limit=limit, namespace=namespace
        )
        views = []
        for record in records:
            views.append(workflow_view(record, clock()))
            # A page of large workflows takes long to make; others get their turn in between.
            await asyncio.sleep(0)
        return WorkflowList(workflows=views, next_page=following)

    @router.get("/{workflow_id}", responses=problems(404, 422, 503))
    async def get_workflow(workflow_id: str, who: RequestIdentity) -> WorkflowView:
        """A workflow: its graph, and the present state of every agent."""
        return workflow_view(await workflows.get(workflow_id, namespace=who.namespace), clock())

    @router.delete(
        "/{workflow_id}",
        status_code=204,
        response_model=None,
        responses=problems(404, 422, 503),
    )
    async def delete_workflow(workflow_id: str, who: RequestIdentity) -> None:
        """End a workflow: its agents' prompts lose the weight it gave them in the engines."""
        await workflows.delete(workflow_id, namespace=who.namespace)

    @router.post("/{workflow_id}/events", responses=problems(400, 404, 409, 413, 415, 422, 503))
    async def post_events(
        workflow_id: str,
        body: Annotated[EventsBody, Body()],
        who: RequestIdentity,
        _: Annotated[None, RightEvents],
    ) -> EventsResult:
        """Report one event, or a list that is applied in order: all of it, or on any error none."""
        events = body if isinstance(body, list) else [body]
        limits.events(who, len(events))
        try:
            return events_result(
                await workflows.apply(workflow_id, events, namespace=who.namespace)
            )
        except EventRefusedError as refused:
            if isinstance(body, list):
                raise
            # Its index would point into a list that the client did not send.
            raise refused.cause from refused

    @router.get("/{workflow_id}/steps", responses=problems(404, 422, 503))
    async def get_steps(workflow_id: str, who: RequestIdentity) -> StepsView:
        """Steps-to-execution of every agent; null for one that cannot run (again)."""
        record = await workflows.get(workflow_id, namespace=who.namespace)
        return steps_view(record, workflows.expected(record))

    return router


def engine_routes(
    streams: EngineStreams,
    clock: Callable[[], float],
    stall_s: float,
    reports: EngineReports,
    away: Callable[[], list[EngineAway]],
) -> APIRouter:
    """``/v1/engines`` and below."""
    router = APIRouter(prefix="/v1/engines", tags=["engines"])

    @router.get("")
    async def list_engines() -> EngineList:
        """Engines connected to the stream, longest first, and those that no longer are."""
        return EngineList(
            engines=[
                EngineView(
                    engine_id=one.engine_id,
                    connected_for_s=clock() - one.connected_at_s,
                    last_seq=one.last_seq,
                    pending=one.pending,
                    report=None if found is None else engine_summary(found, clock()),
                )
                for one in streams.subscriptions
                for found in (reports.get(one.engine_id),)
            ],
            away=away(),
        )

    @router.get(
        "/stream",
        status_code=200,
        response_class=EngineStreamResponse,
        responses={200: EVENT_STREAM_DOC, **problems(422)},
    )
    async def stream(
        engine_id: Annotated[
            Identifier | None, Query(description="Shown by GET /v1/engines; made up if absent.")
        ] = None,
    ) -> EngineStreamResponse:
        """Server-sent events: a snapshot, then deltas and heartbeats."""
        return EngineStreamResponse(streams, engine_id, stall_s)

    return router
