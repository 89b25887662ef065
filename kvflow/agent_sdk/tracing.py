"""Steps as OpenTelemetry spans, where the program that uses the SDK has OpenTelemetry.

Only OpenTelemetry's API is used, with the program's own tracer provider. Where the API is not
installed, or no provider is set up, there are no spans and nothing is sent on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kvflow import __version__

__all__ = ["StepSpan", "current_traceparent", "open_span", "trace_headers"]

_log: Final = logging.getLogger("kvflow")
# How a generator's body ends or is ended; no failure.
_ENDINGS: Final = (StopIteration, StopAsyncIteration)


class StepSpan:
    """The span of one step. Ends once, by ``end()``; no method raises."""

    __slots__ = ("_api", "_ended", "_span", "traceparent")

    def __init__(self, api: _OpenTelemetry, span: Any, traceparent: str) -> None:
        self._api = api
        self._span = span
        self._ended = False
        self.traceparent = traceparent

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside the block other spans are its children; an exception is noted and goes on."""
        within = self._api.trace.set_span_in_context(self._span)
        token = self._api.context.attach(within)
        try:
            yield
        except _ENDINGS:
            raise
        except Exception as error:
            # Not its message, which may hold what a prompt holds.
            self._span.set_attribute("error.type", type(error).__qualname__)
            self._span.set_status(self._api.trace.StatusCode.ERROR)
            raise
        finally:
            # A coroutine that is closed from elsewhere ends in another context.
            if self._api.context.get_current() is within:
                self._api.context.detach(token)

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._span.end()


class _OpenTelemetry:
    """The API, as far as it is used here. Raises ``ImportError`` where it is not installed."""

    def __init__(self) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.context = context
        self.trace = trace
        self.propagator = TraceContextTextMapPropagator()

    def traceparent(self, span: Any) -> str | None:
        """``None`` if there is no span, as when nobody has set up a tracer provider."""
        where = span.get_span_context()
        if not where.is_valid:
            return None
        return f"00-{where.trace_id:032x}-{where.span_id:016x}-{int(where.trace_flags):02x}"


@functools.cache
def _opentelemetry() -> _OpenTelemetry | None:
    try:
        return _OpenTelemetry()
    except ImportError:
        return None


def open_span(workflow_id: str, agent_id: str, client_id: str, step_id: str) -> StepSpan | None:
    """Begin the span of a step, below the span that is current. ``None``: there is no tracing."""
    api = _opentelemetry()
    if api is None:
        return None
    try:
        span = api.trace.get_tracer("kvflow.agent_sdk", __version__).start_span(
            f"invoke_agent {agent_id}",
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": agent_id,
                "kvflow.workflow_id": workflow_id,
                "kvflow.agent_id": agent_id,
                "kvflow.client_id": client_id,
                "kvflow.step_id": step_id,
            },
        )
        traceparent = api.traceparent(span)
    except Exception:
        # A tracer of the program's own that fails is no reason for its agent to fail.
        _log.debug("KVFlow: no span for a step", exc_info=True)
        return None
    return None if traceparent is None else StepSpan(api, span, traceparent)


def current_traceparent() -> str | None:
    """W3C trace context of the span that is current; ``None`` if there is none."""
    api = _opentelemetry()
    return None if api is None else api.traceparent(api.trace.get_current_span())


def trace_headers() -> dict[str, str]:
    """What an HTTP request carries so that the other side's spans go below the current one."""
    headers: dict[str, str] = {}
    api = _opentelemetry()
    if api is not None:
        api.propagator.inject(headers)
    return headers
