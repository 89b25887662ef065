"""A span for every request, below the span of whoever sent it: FastAPI's own, told what to do."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.request_log import current_request, request_facts

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.trace import TracerProvider

__all__ = ["TRACE_CONTEXT", "DescribeSpans", "telemetry", "trace_headers"]

# Asked for all the time, or endless.
_UNTRACED: Final = frozenset(
    {"/health", "/ready", "/metrics", "/v1/engines/stream", "/v1/events", "/docs", "/openapi.json"}
)
TRACE_CONTEXT: Final = (b"traceparent", b"tracestate")
_W3C: Final = TraceContextTextMapPropagator()
_FACTS: Final = ("request_id", "workflow_id", "client_id")


def telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """``FastAPI(telemetry=...)``: spans of requests to ``provider`` and nothing else.

    A span is current while its request is handled, and lasts to the end of a stream. FastAPI would
    use the process's global providers by itself, and a program that the service is part of may have
    some; so what is not wanted is said.
    """
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": _untraced,
    }


def _untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope.get("path") in _UNTRACED


class DescribeSpans:
    """ASGI middleware: puts whose request it is on the current span."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return

        async def describing_send(message: Message) -> None:
            # Earlier, the request is not routed; later, its span may have ended.
            if message["type"] == "http.response.start":
                facts = request_facts()
                trace.get_current_span().set_attributes(
                    {f"kvflow.{name}": facts[name] for name in _FACTS if name in facts}
                )
            await send(message)

        await self._app(scope, receive, describing_send)


def trace_headers() -> dict[str, str]:
    """What a request to an engine must carry to be in the trace of the one that is being handled.

    That is the span of the request, or, in a service that makes none, whatever its sender said.
    """
    headers: dict[str, str] = {}
    if trace.get_current_span().get_span_context().is_valid:
        _W3C.inject(headers)
    elif (scope := current_request()) is not None:
        for name, value in scope["headers"]:
            if name in TRACE_CONTEXT:
                headers[name.decode("latin-1")] = value.decode("latin-1")
    return headers
