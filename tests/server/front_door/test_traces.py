"""A call through the front door is in one trace with its sender and its engine."""

from __future__ import annotations

import httpx2
import pytest

from kvflow.server import ServiceSettings
from tests.memory_spans import MemorySpans, parent_of, place_of
from tests.server.front_door.conftest import Door
from tests.server.front_door.upstream import Upstream
from tests.server.running import PATIENCE_S, running_service

TRACE, SPAN = "ab" * 16, "cd" * 8
PARENT = f"00-{TRACE}-{SPAN}-01"
HINTS = {"agent_hints": {"workflow_id": "w", "agent_id": "a"}}


def test_the_engine_is_below_the_services_span(upstream: Upstream) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="run `make install-dev`")
    spans = MemorySpans()
    settings = ServiceSettings(engine_url=upstream.url)
    body = {"model": "words", "stream": True, "messages": [], **HINTS}
    with (
        running_service(settings, tracer_provider=spans.provider) as service,
        httpx2.Client(base_url=service.url, timeout=PATIENCE_S) as http,
    ):
        answer = http.post("/v1/chat/completions", json=body, headers={"traceparent": PARENT})
        assert answer.status_code == 200
        span = spans.one("POST /v1/chat/completions")

    trace_id, span_id = place_of(span)
    assert parent_of(span) == (int(TRACE, 16), int(SPAN, 16))
    (_, headers, _), (sent,) = upstream.requests[0], upstream.bodies
    assert headers["traceparent"].split("-")[1:3] == [f"{trace_id:032x}", f"{span_id:016x}"]
    assert sent["custom_params"]["kvflow"]["traceparent"] == headers["traceparent"]
    # To the end of the stream, not to its head.
    assert span.end_time is not None
    assert span.start_time is not None
    assert (span.attributes or {})["http.response.status_code"] == 200


def test_without_spans_the_senders_goes_on_to_the_engine(door: Door) -> None:
    assert door.chat(headers={"traceparent": PARENT}, **HINTS).status_code == 200

    (_, headers, _), (sent,) = door.upstream.requests[0], door.upstream.bodies
    assert headers["traceparent"] == PARENT
    assert sent["custom_params"]["kvflow"]["traceparent"] == PARENT


def test_without_any_trace_nothing_is_added(door: Door) -> None:
    assert door.chat(**HINTS).status_code == 200

    (_, headers, _), (sent,) = door.upstream.requests[0], door.upstream.bodies
    assert "traceparent" not in headers
    assert "traceparent" not in sent["custom_params"]["kvflow"]
