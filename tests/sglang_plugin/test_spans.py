"""Spans, as OpenTelemetry's own in-memory exporter and a collector over HTTP see them."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from kvflow.sglang_plugin.spans import SpanExporter
from kvflow.sglang_plugin.trace import ClockAnchor, RequestTimeline, TraceRecorder

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ANCHOR = ClockAnchor(100, 1_000 * 10**9)
SECOND = 10**9
FOUND: Any = {"prompt_tokens": 100, "device_tokens": 20, "host_tokens": 60}
WANTED = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in WANTED)
    except ModuleNotFoundError:
        return False


needs_opentelemetry = pytest.mark.skipif(
    not installed(), reason="OpenTelemetry's SDK is not installed: run `make install-dev`"
)


def finish(on_finished: Callable[[RequestTimeline], None], traceparent: str | None = None) -> None:
    recorder = TraceRecorder(on_finished=on_finished)
    recorder.queued("r", 101, ("c", "w"), "coder", traceparent=traceparent)
    recorder.skipped("r", 102)
    recorder.admitted("r", 104, **FOUND, overlapped=True)
    recorder.copy("load", 104, 105, 60, "r")
    recorder.first_token("r", 106)
    recorder.finished("r", 109, 7)


@pytest.mark.parametrize("value", [None, "", "0", "off", "no"])
def test_off(value: str | None) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    if value is not None:
        env["KVFLOW_OTEL"] = value
    assert SpanExporter.from_env(env, ANCHOR, "e1") is None


@pytest.mark.parametrize(
    "missing",
    [
        "opentelemetry.sdk.trace",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    ],
)
def test_on_without_the_packages(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING):
        assert SpanExporter.from_env({"KVFLOW_OTEL": "1"}, ANCHOR, "e1") is None
    (record,) = caplog.records
    assert "pip install 'kvflow[otel]'" in record.getMessage()


@needs_opentelemetry
class TestSpans:
    @pytest.fixture
    def memory(self) -> InMemorySpanExporter:
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        return InMemorySpanExporter()

    @pytest.fixture
    def provider(self, memory: InMemorySpanExporter) -> TracerProvider:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(memory))
        return provider

    def test_a_span_per_request_and_phase(
        self, memory: InMemorySpanExporter, provider: TracerProvider
    ) -> None:
        finish(SpanExporter(ANCHOR, provider).export)
        *phases, request = memory.get_finished_spans()
        assert [(span.name, *seconds(span)) for span in (request, *phases)] == [
            ("kvflow.request", 1_001, 1_009),
            ("queued", 1_001, 1_002),
            ("skipped", 1_002, 1_004),
            ("prefill", 1_004, 1_006),
            ("loading", 1_004, 1_005),
            ("decode", 1_006, 1_009),
        ]
        assert request.parent is None
        assert request.context is not None
        for phase in phases:
            assert phase.parent == request.context
        assert dict(request.attributes or {}) == {
            "kvflow.request_id": "r",
            "kvflow.client_id": "c",
            "kvflow.workflow_id": "w",
            "kvflow.agent_id": "coder",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.cache_read.input_tokens": 80,
            "gen_ai.usage.output_tokens": 7,
            "kvflow.device_tokens": 20,
            "kvflow.host_tokens": 60,
            "kvflow.load_overlapped": True,
            "kvflow.aborted": False,
            "kvflow.stall.wait_s": 2,
            "kvflow.stall.queue_s": 1,
        }
        assert [(event.name, event.timestamp) for event in request.events] == [
            ("first token", 1_006 * SECOND)
        ]

    def test_a_span_of_the_engine_is_not_the_parent(
        self, memory: InMemorySpanExporter, provider: TracerProvider
    ) -> None:
        with provider.get_tracer("engine").start_as_current_span("step"):
            finish(SpanExporter(ANCHOR, provider).export)
        assert {span.name: span.parent for span in memory.get_finished_spans()}[
            "kvflow.request"
        ] is None

    def test_the_span_that_the_request_names_is_the_parent(
        self, memory: InMemorySpanExporter, provider: TracerProvider
    ) -> None:
        finish(SpanExporter(ANCHOR, provider).export, f"00-{'ab' * 16}-{'cd' * 8}-01")

        *phases, request = memory.get_finished_spans()
        assert request.parent is not None
        assert (request.parent.trace_id, request.parent.span_id) == (
            int("ab" * 16, 16),
            int("cd" * 8, 16),
        )
        assert request.context is not None
        for phase in phases:
            assert phase.parent == request.context

    def test_what_the_sender_does_not_sample_is_left_out(
        self, memory: InMemorySpanExporter, provider: TracerProvider
    ) -> None:
        finish(SpanExporter(ANCHOR, provider).export, f"00-{'ab' * 16}-{'cd' * 8}-00")

        assert memory.get_finished_spans() == ()

    @pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{'cd' * 8}-01"])
    def test_a_traceparent_that_cannot_be_read_is_ignored(
        self, memory: InMemorySpanExporter, provider: TracerProvider, traceparent: str
    ) -> None:
        finish(SpanExporter(ANCHOR, provider).export, traceparent)

        *_, request = memory.get_finished_spans()
        assert request.parent is None

    def test_an_aborted_request_without_metadata(
        self, memory: InMemorySpanExporter, provider: TracerProvider
    ) -> None:
        recorder = TraceRecorder(on_finished=SpanExporter(ANCHOR, provider).export)
        recorder.queued("r", 101)
        recorder.finished("r", 102, 0, aborted=True)
        queued, request = memory.get_finished_spans()
        assert queued.name == "queued"
        assert dict(request.attributes or {}) == {
            "kvflow.request_id": "r",
            "gen_ai.usage.output_tokens": 0,
            "kvflow.aborted": True,
            "kvflow.stall.wait_s": 0,
            "kvflow.stall.queue_s": 1,
        }

    def test_an_error_is_logged_once_and_stays_here(
        self,
        memory: InMemorySpanExporter,
        provider: TracerProvider,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def full(_span: object) -> None:
            raise MemoryError

        exporter = SpanExporter(ANCHOR, provider)
        with monkeypatch.context() as patch:
            patch.setattr(provider._active_span_processor, "on_end", full)
            finish(exporter.export)
            finish(exporter.export)
        assert [record.getMessage() for record in caplog.records] == [
            "KVFlow: a request's spans were not written; the engine goes on"
        ]
        finish(exporter.export)
        assert len(memory.get_finished_spans()) == 6


@needs_opentelemetry
class TestOverHttp:
    @pytest.fixture
    def collector(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bytes]]]:
        received: list[tuple[str, bytes]] = []

        class Collector(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Collector) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            address = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
            yield received
            server.shutdown()
            thread.join()

    def test_spans_arrive(
        self, collector: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        exporter = SpanExporter.from_env({"KVFLOW_OTEL": "1"}, ANCHOR, "e1")
        assert exporter is not None
        finish(exporter.export)
        exporter.shutdown()
        ((path, body),) = collector
        assert path == "/v1/traces"
        (of_resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
        about = {each.key: each.value.string_value for each in of_resource.resource.attributes}
        assert about["service.name"] == "kvflow-engine"
        assert about["service.instance.id"] == "e1"
        assert about["deployment.environment.name"] == "test"
        (of_scope,) = of_resource.scope_spans
        assert [span.name for span in of_scope.spans].count("kvflow.request") == 1
        assert len(of_scope.spans) == 6

    def test_the_service_name_can_be_chosen(
        self, collector: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", "engines-of-mine")
        exporter = SpanExporter.from_env({"KVFLOW_OTEL": "1"}, ANCHOR, "e1")
        assert exporter is not None
        finish(exporter.export)
        exporter.shutdown()
        assert b"engines-of-mine" in collector[0][1]
        assert b"kvflow-engine" not in collector[0][1]


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / SECOND, span.end_time / SECOND
