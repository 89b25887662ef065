"""Requests as OpenTelemetry spans."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from kvflow.otlp import SWITCH, otlp_provider, switched_on
from kvflow.sglang_plugin.trace import ClockAnchor, RequestTimeline, stalls

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["SpanExporter"]

logger = logging.getLogger(__name__)

_ATTRIBUTES: Final = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "device_tokens": "kvflow.device_tokens",
    "host_tokens": "kvflow.host_tokens",
    "overlapped": "kvflow.load_overlapped",
    "aborted": "kvflow.aborted",
}


class SpanExporter:
    """Writes a span ``kvflow.request`` for each finished request, and one per phase below it.

    It is a child of the span that the request's ``traceparent`` names, else a trace of its own.

    Spans are handed to OpenTelemetry's batch processor, whose own thread sends them; while its
    queue is full, spans are dropped. So ``export`` never waits for a collector. The tracer
    provider is our own: that of the process, which SGLang may set, is left alone.
    """

    def __init__(self, anchor: ClockAnchor, provider: TracerProvider) -> None:
        """``anchor`` tells wall-clock times; what ``provider`` does with spans must not block."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._anchor = anchor
        self._provider = provider
        self._tracer = provider.get_tracer("kvflow")
        # Explicit, or a span that is current on the scheduler thread would become the parent.
        self._nothing = Context()
        self._propagator = TraceContextTextMapPropagator()
        self._within = set_span_in_context
        self._failed = False

    @classmethod
    def from_env(
        cls, env: Mapping[str, str], anchor: ClockAnchor, engine_id: str
    ) -> SpanExporter | None:
        """An exporter over OTLP/HTTP if ``KVFLOW_OTEL=1`` and OpenTelemetry is there, else None.

        Never raises: what keeps it from working is logged.
        """
        if not switched_on(env):
            return None
        try:
            return cls(anchor, otlp_provider("kvflow-engine", engine_id))
        except ImportError as missing:
            logger.warning(
                "KVFlow: %s is set, but %s is missing; no spans. "
                "Install it with: pip install 'kvflow[otel]'",
                SWITCH,
                missing.name or missing,
            )
        except Exception:
            logger.exception("KVFlow: no spans, OpenTelemetry could not be set up")
        return None

    def export(self, timeline: RequestTimeline) -> None:
        """Write the spans of a finished request. Never raises; the first error is logged."""
        try:
            self._export(timeline)
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("KVFlow: a request's spans were not written; the engine goes on")

    def shutdown(self) -> None:
        """Send what is left and stop the thread. Blocks until then, or until OTLP's timeout."""
        self._provider.shutdown()

    def _export(self, timeline: RequestTimeline) -> None:
        at_ns = self._anchor.unix_time_ns
        outside = self._nothing
        if timeline.traceparent is not None:
            # What it cannot read, it ignores.
            outside = self._propagator.extract({"traceparent": timeline.traceparent}, outside)
        span = self._tracer.start_span(
            "kvflow.request",
            context=outside,
            attributes=_attributes(timeline),
            start_time=at_ns(timeline.start_s),
        )
        if span.is_recording():
            context = self._within(span, self._nothing)
            for phase, start_s, end_s in timeline.events:
                child = self._tracer.start_span(phase, context, start_time=at_ns(start_s))
                child.end(at_ns(end_s))
            if timeline.first_token_s is not None:
                span.add_event("first token", timestamp=at_ns(timeline.first_token_s))
        span.end(at_ns(timeline.end_s))


def _attributes(timeline: RequestTimeline) -> dict[str, str | int | float | bool]:
    attributes: dict[str, str | int | float | bool] = {"kvflow.request_id": timeline.request_id}
    for name in ("client_id", "workflow_id", "agent_id"):
        if (value := getattr(timeline, name)) is not None:
            attributes[f"kvflow.{name}"] = value
    for name, number in timeline.attributes.items():
        attributes[_ATTRIBUTES[name]] = number
    if "device_tokens" in timeline.attributes:
        cached = timeline.attributes["device_tokens"] + timeline.attributes["host_tokens"]
        attributes["gen_ai.usage.cache_read.input_tokens"] = cached
    for cause, seconds in stalls(timeline).items():
        attributes[f"kvflow.stall.{cause}_s"] = seconds
    return attributes
