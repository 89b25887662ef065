"""A span for every request, below the span of whoever sent it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.request_log import TRACE_KEY, request_facts

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["TraceRequests", "trace_headers"]

# Asked for all the time, or endless.
_UNTRACED: Final = frozenset(
    {"/health", "/ready", "/metrics", "/v1/engines/stream", "/v1/events", "/docs", "/openapi.json"}
)
_TRACE_CONTEXT: Final = (b"traceparent", b"tracestate")


class TraceRequests:
    """ASGI middleware. The span is current while the request is handled, to the end of a stream."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._trace = trace
        self._context = context
        self._tracer = provider.get_tracer("kvflow.server")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        span = self._tracer.start_span(
            scope["method"],
            self._propagator.extract(_trace_context(scope), self._context.Context()),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.path": scope["path"],
                "url.scheme": scope.get("scheme", "http"),
            },
        )
        where = span.get_span_context()
        scope[TRACE_KEY] = (
            f"00-{where.trace_id:032x}-{where.span_id:016x}-{int(where.trace_flags):02x}"
        )

        async def traced_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered(span, message["status"])
            await send(message)

        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            await self._app(scope, receive, traced_send)
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(self._trace.StatusCode.ERROR)
            raise
        finally:
            self._context.detach(token)
            if span.is_recording():
                _describe(span, scope)
            span.end()

    def _answered(self, span: Any, status: int) -> None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(self._trace.StatusCode.ERROR)


def trace_headers(scope: Scope) -> dict[str, str]:
    """What a request made on behalf of this one must carry to be in the same trace.

    That is the span of this request, or, in a service that makes none, whatever its sender said.
    """
    own = scope.get(TRACE_KEY)
    return _trace_context(scope) if own is None else {"traceparent": own}


def _trace_context(scope: Scope) -> dict[str, str]:
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in _TRACE_CONTEXT
    }


def _describe(span: Any, scope: Scope) -> None:
    """What is known only once the request was routed."""
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    for name, value in request_facts().items():
        if name.endswith("_id") and name not in ("trace_id", "span_id"):
            span.set_attribute(f"kvflow.{name}", value)
