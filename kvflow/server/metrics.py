"""The service's Prometheus metrics, in a registry of their own per app."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow import __version__
from kvflow.server.call_metrics import CallMetrics

__all__ = ["MeasureRequests", "ServiceMetrics"]

_UPDATE_BUCKETS: Final = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 1e-2, 1e-1, 1.0)
_REQUEST_BUCKETS: Final = (5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 0.5, 1.0, 5.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceMetrics:
    """All metrics of one app. Names end in their unit, counters in ``_total``."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        # When each series began, as a series of its own: a third of all lines, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Gauge("kvflow_build_info", "Always 1.", ["version"], registry=self.registry).labels(
            __version__
        ).set(1)
        self.workflows = Gauge("kvflow_workflows", "Live workflows.", registry=self.registry)
        self.created = Counter(
            "kvflow_workflows_created_total", "Workflows created.", registry=self.registry
        )
        self.closed = Counter(
            "kvflow_workflows_closed_total",
            "Workflows that ended, by reason: deleted or expired.",
            ["reason"],
            registry=self.registry,
        )
        self.events = Counter(
            "kvflow_events_total",
            "Step events accepted, by type and outcome: applied, misprediction or duplicate.",
            ["type", "outcome"],
            registry=self.registry,
        )
        self.update_seconds = Histogram(
            "kvflow_update_seconds",
            "Applying the events of one request to its workflow and recomputing its steps.",
            buckets=_UPDATE_BUCKETS,
            registry=self.registry,
        )
        self.store_seconds = Histogram(
            "kvflow_store_write_seconds",
            "Until a write is as durable as the store makes it, by operation: insert, update or "
            "delete.",
            ["operation"],
            buckets=_UPDATE_BUCKETS,
            registry=self.registry,
        )
        self.engines = Gauge(
            "kvflow_engines_connected", "Engines on the stream.", registry=self.registry
        )
        self.stream_messages = Counter(
            "kvflow_stream_messages_total",
            "Messages handed to engines, by event: snapshot, delta or heartbeat.",
            ["event"],
            registry=self.registry,
        )
        self.stream_workflows = Counter(
            "kvflow_stream_workflows_total",
            "Workflow states handed to engines; several changes between two messages count once.",
            registry=self.registry,
        )
        self.listeners = Gauge(
            "kvflow_event_listeners",
            "Who listens to the service's events: readers of /v1/events and parts of the service.",
            registry=self.registry,
        )
        self.listeners_dropped = Counter(
            "kvflow_event_listeners_dropped_total",
            "Listeners to the service's events that were dropped, as they did not keep up.",
            registry=self.registry,
        )
        self.recording_lines = Counter(
            "kvflow_recording_lines_total",
            "Lines for the recording (KVFLOW_RECORD), by outcome: written or dropped.",
            ["outcome"],
            registry=self.registry,
        )
        self.refused = Counter(
            "kvflow_requests_refused_total",
            "Requests refused for their key or client, by reason: missing, unknown, expired, "
            "revoked, attempts (too many failed from one address), scope or rate.",
            ["reason"],
            registry=self.registry,
        )
        self.calls = CallMetrics(self.registry)
        self.requests = Counter(
            "kvflow_http_requests_total",
            "HTTP requests, by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "kvflow_http_request_duration_seconds",
            "Time from the request's head to the response's head, by method and route.",
            ["method", "route"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )

    def exposition(self) -> bytes:
        """The text that ``/metrics`` answers."""
        return generate_latest(self.registry)


class MeasureRequests:
    """ASGI middleware: counts requests and times them up to the head of their response."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        answered = False

        def answer(status: int) -> None:
            nonlocal answered
            answered = True
            # Unknown paths share one label, or a scan of the port would fill the registry.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.request_seconds.labels(method, route).observe(
                time.perf_counter() - started_s
            )

        async def measured_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, measured_send)
        except Exception:
            if not answered:
                answer(500)
            raise
