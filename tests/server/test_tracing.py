"""The service's spans: for requests, and for step events."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.server import ServiceSettings, build_service
from kvflow.server.request_log import about
from kvflow.server.trace_requests import trace_headers
from kvflow.server.tracing import provider_from_env
from tests.memory_spans import MemorySpans, parent_of, place_of
from tests.server.workflow_bodies import cycle, finished, started

pytest.importorskip("opentelemetry.sdk", reason="run `make install-dev`")

TRACE, SPAN = "ab" * 16, "cd" * 8
PARENT = f"00-{TRACE}-{SPAN}-01"
PARENT_PLACE = (int(TRACE, 16), int(SPAN, 16))


@pytest.fixture
def spans() -> MemorySpans:
    return MemorySpans()


@pytest.fixture
def traced(spans: MemorySpans) -> Any:
    service = build_service(ServiceSettings(sweep_interval_s=3600), tracer_provider=spans.provider)

    @service.app.get("/defect")
    async def defect() -> None:
        raise RuntimeError("a defect")

    with TestClient(service.app, raise_server_exceptions=False) as client:
        yield client


def test_a_request_is_a_span_below_its_senders(spans: MemorySpans, traced: TestClient) -> None:
    traced.post("/v1/workflows", json=cycle("w"))
    headers = {"traceparent": PARENT, "X-Request-ID": "r-1"}
    traced.get("/v1/workflows/w", headers=headers)

    span = spans.one("GET /v1/workflows/{workflow_id}")
    assert parent_of(span) == PARENT_PLACE
    assert span.kind.name == "SERVER"
    assert {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v1/workflows/{workflow_id}",
        "kvflow.request_id": "r-1",
        "kvflow.workflow_id": "w",
    }.items() <= dict(span.attributes or {}).items()
    assert parent_of(spans.one("POST /v1/workflows")) is None


def test_only_the_services_own_failures_are_errors(spans: MemorySpans, traced: TestClient) -> None:
    traced.get("/v1/workflows/none")
    traced.get("/defect")

    refused, failed = spans.one("GET /v1/workflows/{workflow_id}"), spans.one("GET /defect")
    assert refused.status.status_code.name == "UNSET"
    assert (refused.attributes or {})["http.response.status_code"] == 404
    assert failed.status.status_code.name == "ERROR"
    assert (failed.attributes or {})["error.type"] == "RuntimeError"


def test_what_is_asked_for_all_the_time_has_no_span(spans: MemorySpans, traced: TestClient) -> None:
    for path in ("/health", "/ready", "/metrics", "/openapi.json"):
        assert traced.get(path).status_code == 200
    assert spans.all() == []


def test_a_sender_that_does_not_sample_is_followed(spans: MemorySpans, traced: TestClient) -> None:
    traced.get("/v1/workflows", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert spans.all() == []


def test_step_events_are_spans_below_their_steps(spans: MemorySpans, traced: TestClient) -> None:
    traced.post("/v1/workflows", json=cycle("w"))
    events = [
        {**started("a0", "s"), "traceparent": PARENT},
        finished("a0", "s"),
        {**started("a2"), "traceparent": PARENT},
    ]
    assert traced.post("/v1/workflows/w/events", json=events).status_code == 200
    spans.wait(lambda found: sum(s.name.startswith("kvflow.step") for s in found) == 2)

    first, second = spans.named("kvflow.step_started")
    assert parent_of(first) == parent_of(second) == PARENT_PLACE
    assert dict(first.attributes or {}) == {
        "kvflow.client_id": "default",
        "kvflow.workflow_id": "w",
        "kvflow.agent_id": "a0",
        "kvflow.step_id": "s",
        "kvflow.version": 3,
        "kvflow.misprediction": False,
    }
    assert (second.attributes or {})["kvflow.misprediction"] is True
    assert spans.named("kvflow.step_finished") == []  # it brought no traceparent


@pytest.mark.parametrize("wrong", ["", "x", f"00-{TRACE.upper()}-{SPAN}-01", 7])
def test_an_odd_traceparent_of_an_event_is_named(traced: TestClient, wrong: object) -> None:
    traced.post("/v1/workflows", json=cycle("w"))
    answer = traced.post("/v1/workflows/w/events", json={**started("a0"), "traceparent": wrong})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "traceparent"


def test_requests_to_an_engine_go_on_in_the_same_trace(spans: MemorySpans) -> None:
    service = build_service(ServiceSettings(), tracer_provider=spans.provider)
    sent: list[dict[str, str]] = []

    @service.app.get("/forward")
    async def forward() -> None:
        sent.append(trace_headers())

    with TestClient(service.app) as client:
        client.get("/forward", headers={"traceparent": PARENT})

    span = spans.one("GET /forward")
    trace_id, span_id = place_of(span)
    assert span.context is not None
    flags = int(span.context.trace_flags)
    assert sent == [{"traceparent": f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"}]
    assert trace_id == PARENT_PLACE[0]


def test_without_spans_of_its_own_the_service_passes_on_what_came() -> None:
    headers = [(b"traceparent", PARENT.encode()), (b"tracestate", b"a=1"), (b"x", b"y")]
    with about({"headers": headers}):
        assert trace_headers() == {"traceparent": PARENT, "tracestate": "a=1"}
    assert trace_headers() == {}


def test_switched_on_without_the_packages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        assert provider_from_env() is None
    assert "pip install 'kvflow[otel]'" in caplog.text

    service = build_service(ServiceSettings(otel=True))
    with TestClient(service.app) as client:
        assert client.get("/ready").status_code == 200


def test_the_programs_own_provider_gets_nothing(
    spans: MemorySpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    with TestClient(build_service(ServiceSettings()).app) as client:
        assert client.get("/v1/workflows").status_code == 200
    assert spans.all() == []
