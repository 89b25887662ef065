"""The service's OpenTelemetry spans: one for each request, and one for each step event it takes."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvflow.otlp import SWITCH, otlp_provider
from kvflow.server.event_bus import BusEvent, EventBus

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["StepSpans", "provider_from_env"]

logger = logging.getLogger("kvflow.server")


def provider_from_env() -> TracerProvider | None:
    """A provider that sends spans over OTLP. ``None``, and a word in the log, if that cannot be."""
    try:
        return otlp_provider("kvflow-service", socket.gethostname())
    except ImportError as missing:
        logger.warning(
            "%s is set, but %s is missing; no spans. Install it with: pip install 'kvflow[otel]'",
            SWITCH,
            missing.name or missing,
        )
    except Exception:
        logger.exception("no spans, OpenTelemetry could not be set up")
    return None


class StepSpans:
    """Writes a span for every step event that came with a ``traceparent``, below that span.

    It has no length: it marks when the service had applied the event, after which the engines are
    told. Made from the bus, so that taking events never waits for it.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("kvflow.server")
        self._propagator = TraceContextTextMapPropagator()
        self._nothing = Context()

    async def follow(self, bus: EventBus) -> None:
        """Until the bus is closed."""
        while True:
            with bus.subscribe({"step.started", "step.finished"}) as events:
                while batch := await events.take():
                    for event in batch:
                        self._write(event)
                    await asyncio.sleep(0)
            if not events.dropped:
                return
            logger.warning("some step events have no span: they came faster than spans are made")

    def shutdown(self) -> None:
        """Send what is left. Blocks until then, or until OTLP's timeout."""
        self._provider.shutdown()

    def _write(self, event: BusEvent) -> None:
        traceparent = event.data.get("traceparent")
        if traceparent is None:
            return
        at_ns = round(event.at_unix_s * 1e9)
        try:
            span = self._tracer.start_span(
                f"kvflow.{event.kind.replace('.', '_')}",
                self._propagator.extract({"traceparent": traceparent}, self._nothing),
                attributes=_attributes(event.data),
                start_time=at_ns,
            )
            span.end(at_ns)
        except Exception:
            logger.exception("a step event's span was not written")


def _attributes(data: Mapping[str, Any]) -> dict[str, Any]:
    names = ("client_id", "workflow_id", "agent_id", "step_id", "version", "misprediction")
    return {f"kvflow.{name}": data[name] for name in names if data.get(name) is not None}
