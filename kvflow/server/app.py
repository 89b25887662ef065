"""The service put together: store, workflows, engines' streams, routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI

from kvflow import __version__
from kvflow.server.access import RequireKey
from kvflow.server.dashboard_pages import DASHBOARD_PATHS, dashboard_routes
from kvflow.server.docs_page import docs_routes
from kvflow.server.engine_reports import EngineReports
from kvflow.server.event_bus import EventBus
from kvflow.server.event_stream import event_routes
from kvflow.server.front_door import (
    AnswerAsOpenAI,
    build_front_door,
    document_errors,
    front_door_routes,
)
from kvflow.server.identity import OPEN, Identity
from kvflow.server.keys import KeyRing
from kvflow.server.kv_hints import kv_hint_routes
from kvflow.server.learned.calls import LearnedCalls
from kvflow.server.learned.orders import LearnedOrders
from kvflow.server.learned.persistence import LearnedPersistence
from kvflow.server.learned.routes import learned_routes
from kvflow.server.limits import DefaultLimits, Limits
from kvflow.server.metrics import MeasureRequests, ServiceMetrics
from kvflow.server.middleware import CheckBody, CheckHead
from kvflow.server.mqtt import mqtt_bridge
from kvflow.server.openapi import set_openapi
from kvflow.server.operations import operation_routes
from kvflow.server.overview import OverviewMaker
from kvflow.server.overview_routes import overview_routes
from kvflow.server.problems import install_problem_handlers
from kvflow.server.recorder import FileRecorder, NoRecorder, Recorder
from kvflow.server.report_routes import report_routes
from kvflow.server.request_log import IdentifyRequests
from kvflow.server.routes import engine_routes, workflow_routes
from kvflow.server.secure_headers import SecureHeaders
from kvflow.server.separation import ClientSeparation
from kvflow.server.settings import ServiceSettings
from kvflow.server.sightings import Sightings
from kvflow.server.store import LearnedAside, StoreUnavailableError, WorkflowStore
from kvflow.server.store.place import IN_MEMORY, open_store
from kvflow.server.stream import EngineStreams
from kvflow.server.trace_requests import DescribeSpans, telemetry
from kvflow.server.tracing import StepSpans, provider_from_env
from kvflow.server.workflows import Workflows

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

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
    store: WorkflowStore


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
    tracer_provider: TracerProvider | None = None,
) -> Service:
    """As ``create_app``, with the parts at hand.

    ``tracer_provider`` takes the service's OpenTelemetry spans and is shut down at the end; if
    absent, ``settings.otel`` says whether there are any.

    Raises:
        EnvironmentProblemError: ``settings.record`` cannot be written to, the key file not read, or
            the database not used.
    """
    metrics = ServiceMetrics()
    api_key = None if settings.api_key is None else settings.api_key.get_secret_value()
    keys = KeyRing(api_key, settings.keys_file)
    limits = Limits(DefaultLimits.of(settings), keys)
    if store is None:
        store = open_store(settings.database or IN_MEMORY, settings.max_workflows)
    kept = store
    clock = clock or kept.now_s
    bus = EventBus(metrics)
    streams = EngineStreams(settings.lease_s, settings.heartbeat_s, clock, metrics, bus)
    reports = EngineReports(clock, bus)
    sightings = Sightings(kept, streams)
    recorder: Recorder = NoRecorder()
    if settings.record is not None:
        recorder = FileRecorder(settings.record, clock, metrics)
    orders = LearnedOrders()
    persistence = LearnedPersistence(orders, kept)
    aside = LearnedAside(kept, settings.max_workflows)
    workflows = Workflows(
        *(aside, streams, metrics, clock, recorder),
        bus=bus,
        orders=orders,
        has_keys=keys.has_keys,
    )
    separation = ClientSeparation(keys, workflows)
    door, kv_hints = build_front_door(
        settings,
        workflows=workflows,
        streams=streams,
        bus=bus,
        metrics=metrics,
        clock=clock,
        undeclared=lambda reporter: LearnedCalls(workflows, reporter, limits),
    )
    mqtt = mqtt_bridge(
        settings,
        workflows=workflows,
        streams=streams,
        bus=bus,
        metrics=metrics,
        clock=clock,
        # A client that has keys keeps its workflows to itself, whichever way they come.
        identity_of=lambda client_id: (
            Identity(client_id, "client") if keys.has_keys(client_id) else OPEN
        ),
        limits=limits,
    )
    if tracer_provider is None and settings.otel:
        tracer_provider = provider_from_env()
    step_spans = None if tracer_provider is None else StepSpans(tracer_provider)
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
        await sightings.load()
        await persistence.load()
        async with asyncio.TaskGroup() as tasks:
            sweeper = tasks.create_task(
                _sweep_forever(
                    (
                        *(expire_hints, kept.keep_time, sightings.look, separation.look),
                        *(workflows.sweep, persistence.look),
                    ),
                    settings.sweep_interval_s,
                ),
                name="kvflow-sweep",
            )
            follower = tasks.create_task(workflows.follow(), name="kvflow-follow")
            if mqtt is not None:
                tasks.create_task(mqtt.run(), name="kvflow-mqtt")
            if step_spans is not None:
                tasks.create_task(step_spans.follow(bus), name="kvflow-step-spans")
            try:
                async with door.running():
                    yield
            finally:
                await sightings.close()
                await persistence.close()
                streams.shut_down()
                bus.close()
                if mqtt is not None:
                    mqtt.stop()
                sweeper.cancel()
                follower.cancel()
                await asyncio.to_thread(recorder.stop)
        if step_spans is not None:
            await asyncio.to_thread(step_spans.shutdown)

    async def expire_hints() -> None:
        streams.expire_hints()

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
        telemetry=telemetry(tracer_provider),
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # POST /v1/workflows/ is a mistake to be told of; few clients send a body on to a redirect.
        redirect_slashes=False,
    )
    app.include_router(workflow_routes(workflows, clock, limits))
    app.include_router(engine_routes(streams, clock, settings.stall_s, reports, sightings.away))
    app.include_router(learned_routes(orders, persistence))
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
    app.include_router(front_door_routes(door))
    app.include_router(kv_hint_routes(kv_hints))
    app.include_router(docs_routes(app.title))
    install_problem_handlers(app)
    public = {"/metrics"} if settings.public_metrics else set()
    open_paths = _OPEN_PATHS | DASHBOARD_PATHS | public
    set_openapi(app, open_paths=open_paths, needs_key=keys.guards)
    document_errors(app)
    # The last one added sees a request first.
    app.add_middleware(CheckBody, max_bytes=settings.max_body_bytes)
    if keys.guards:
        app.add_middleware(
            RequireKey, keys=keys, limits=limits, metrics=metrics, open_paths=open_paths
        )
    app.add_middleware(CheckHead, max_bytes=settings.max_head_bytes)
    app.add_middleware(AnswerAsOpenAI)
    app.add_middleware(SecureHeaders)
    app.add_middleware(MeasureRequests, metrics=metrics)
    if tracer_provider is not None:
        app.add_middleware(DescribeSpans)
    app.add_middleware(IdentifyRequests)
    return Service(app=app, workflows=workflows, streams=streams, bus=bus, store=kept)


async def _sweep_forever(
    chores: Sequence[Callable[[], Awaitable[object]]], interval_s: float
) -> None:
    while True:
        await asyncio.sleep(interval_s)
        for chore in chores:
            try:
                await chore()
            except StoreUnavailableError:
                pass  # the store has said so
            except Exception:
                # Workflows are also checked when they are used, and the next sweep tries again.
                logger.exception("a chore of the service failed")
