"""The service put together: store, workflows, engines' streams, routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from kvflow import __version__
from kvflow.server.dashboard_pages import DASHBOARD_PATHS, dashboard_routes
from kvflow.server.engine_reports import EngineReports
from kvflow.server.event_bus import EventBus
from kvflow.server.event_stream import event_routes
from kvflow.server.metrics import MeasureRequests, ServiceMetrics
from kvflow.server.middleware import CheckBody, RequireKey
from kvflow.server.mqtt import mqtt_bridge
from kvflow.server.openapi import set_openapi
from kvflow.server.operations import operation_routes
from kvflow.server.overview import OverviewMaker
from kvflow.server.overview_routes import overview_routes
from kvflow.server.problems import install_problem_handlers
from kvflow.server.recorder import FileRecorder, NoRecorder, Recorder
from kvflow.server.report_routes import report_routes
from kvflow.server.routes import engine_routes, workflow_routes
from kvflow.server.settings import ServiceSettings
from kvflow.server.store import StoreUnavailableError, WorkflowStore
from kvflow.server.store.place import IN_MEMORY, open_store
from kvflow.server.stream import EngineStreams
from kvflow.server.workflows import Workflows

__all__ = ["Service", "build_service", "create_app"]

_OPEN_PATHS: Final = frozenset({"/health", "/ready", "/docs", "/openapi.json"})

logger = logging.getLogger("kvflow.server")


@dataclass(frozen=True, slots=True)
class Service:
    """The app and the parts that whoever runs it must reach."""

    app: FastAPI
    workflows: Workflows
    streams: EngineStreams
    bus: EventBus


def create_app(
    settings: ServiceSettings,
    *,
    store: WorkflowStore | None = None,
    clock: Callable[[], float] | None = None,
) -> FastAPI:
    """The service as an ASGI app.

    Args:
        store: where workflows are kept; if absent, what ``settings.database`` says, or in memory.
        clock: the time in seconds that expiry goes by; the store's own if absent.
    """
    return build_service(settings, store=store, clock=clock).app


def build_service(
    settings: ServiceSettings,
    *,
    store: WorkflowStore | None = None,
    clock: Callable[[], float] | None = None,
) -> Service:
    """As ``create_app``, with the parts at hand.

    Raises:
        EnvironmentProblemError: ``settings.record`` cannot be written to, or the database not used.
    """
    metrics = ServiceMetrics()
    if store is None:
        store = open_store(settings.database or IN_MEMORY, settings.max_workflows)
    kept = store
    clock = clock or kept.now_s
    bus = EventBus(metrics)
    streams = EngineStreams(settings.lease_s, settings.heartbeat_s, clock, metrics, bus)
    reports = EngineReports(clock, bus)
    recorder: Recorder = NoRecorder()
    if settings.record is not None:
        recorder = FileRecorder(settings.record, clock, metrics)
    workflows = Workflows(kept, streams, metrics, clock, recorder, bus=bus)
    mqtt = mqtt_bridge(
        settings,
        workflows=workflows,
        streams=streams,
        bus=bus,
        metrics=metrics,
        clock=clock,
        namespace_of=lambda client_id: "",
    )
    sweeper: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with running(app):
                yield
        finally:
            await kept.close()

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        nonlocal sweeper
        await workflows.load()
        async with asyncio.TaskGroup() as tasks:
            sweeper = tasks.create_task(
                _sweep_forever(workflows, kept, settings.sweep_interval_s), name="kvflow-sweep"
            )
            follower = tasks.create_task(workflows.follow(), name="kvflow-follow")
            if mqtt is not None:
                tasks.create_task(mqtt.run(), name="kvflow-mqtt")
            try:
                yield
            finally:
                streams.shut_down()
                bus.close()
                if mqtt is not None:
                    mqtt.stop()
                sweeper.cancel()
                follower.cancel()
                await asyncio.to_thread(recorder.stop)

    def unready_because() -> str | None:
        if streams.shutting_down:
            return "the service is shutting down"
        if sweeper is None or sweeper.done():
            return "the service has not started"
        return kept.problem

    app = FastAPI(
        title="KVFlow service",
        version=__version__,
        description="Tracks multi-agent workflows and tells the engines which agents run next.",
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # POST /v1/workflows/ is a mistake to be told of; few clients send a body on to a redirect.
        redirect_slashes=False,
    )
    app.include_router(workflow_routes(workflows, clock))
    app.include_router(engine_routes(streams, clock, settings.stall_s, reports))
    app.include_router(report_routes(reports))
    app.include_router(overview_routes(OverviewMaker(workflows, streams, reports, clock)))
    app.include_router(dashboard_routes())
    app.include_router(
        event_routes(
            bus,
            heartbeat_s=settings.heartbeat_s,
            stall_s=settings.stall_s,
            max_readers=settings.max_event_readers,
        )
    )
    app.include_router(operation_routes(metrics, unready_because))
    install_problem_handlers(app)
    public = {"/metrics"} if settings.public_metrics else set()
    open_paths = _OPEN_PATHS | DASHBOARD_PATHS | public
    set_openapi(app, open_paths=open_paths, needs_key=settings.api_key is not None)
    # The last one added sees a request first.
    app.add_middleware(CheckBody, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        api_key = settings.api_key.get_secret_value()
        app.add_middleware(RequireKey, api_key=api_key, open_paths=open_paths)
    app.add_middleware(MeasureRequests, metrics=metrics)
    return Service(app=app, workflows=workflows, streams=streams, bus=bus)


async def _sweep_forever(
    workflows: Workflows, store: WorkflowStore, interval_s: float
) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            await store.keep_time()
            await workflows.sweep()
        except StoreUnavailableError:
            pass  # the store has said so
        except Exception:
            # Workflows are also checked when they are used, and the next sweep tries again.
            logger.exception("sweeping expired workflows failed")
