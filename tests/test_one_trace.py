"""One trace shows a step of the SDK, what the service made of it, and the engine's request."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from kvflow.agent_sdk import Workflow
from kvflow.agent_sdk.reporter import Reporter
from kvflow.agent_sdk.settings import ClientSettings
from kvflow.server import ServiceSettings
from kvflow.sglang_plugin.metadata import parse_metadata
from kvflow.sglang_plugin.spans import SpanExporter
from kvflow.sglang_plugin.trace import ClockAnchor, TraceRecorder
from tests.agent_sdk.recording_engine import recording_engine
from tests.memory_spans import MemorySpans, parent_of, place_of
from tests.server.running import running_service

pytest.importorskip("opentelemetry.sdk", reason="run `make install-dev`")


def engine_takes(custom_params: Any, spans: MemorySpans) -> None:
    """What the plugin does with a request, without the engine around it."""
    metadata = parse_metadata(custom_params)
    assert metadata is not None
    recorder = TraceRecorder(on_finished=SpanExporter(ClockAnchor(), spans.provider).export)
    workflow = (metadata.client_id, metadata.workflow_id)
    recorder.queued("r", 1, workflow, metadata.agent_id, traceparent=metadata.traceparent)
    recorder.admitted("r", 2, prompt_tokens=9, device_tokens=0, host_tokens=0, overlapped=False)
    recorder.first_token("r", 3)
    recorder.finished("r", 4, 1)


def test_step_event_and_request_are_in_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    program, service_side, engine_side = MemorySpans(), MemorySpans(), MemorySpans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", program.provider)

    with (
        running_service(ServiceSettings(), tracer_provider=service_side.provider) as service,
        recording_engine() as engine,
        openai.OpenAI(base_url=engine.base_url, api_key="k", max_retries=0) as client,
    ):
        reporter = Reporter(ClientSettings(url=service.url))
        workflow = Workflow("one-trace", reporter=reporter)

        @workflow.agent("planner")
        def planner() -> None:
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "plan"}]
            )

        with workflow.run() as run:
            planner()
            assert run.flush(10)
            service_side.wait(lambda found: sum("step_" in span.name for span in found) == 2)
        reporter.stop(10)
        engine_takes(engine.bodies[0]["custom_params"], engine_side)

    step = program.one("invoke_agent planner")
    begun, ended = service_side.one("kvflow.step_started"), service_side.one("kvflow.step_finished")
    request = engine_side.one("kvflow.request")
    assert parent_of(step) is None
    assert parent_of(begun) == parent_of(ended) == parent_of(request) == place_of(step)
    assert engine.headers[0]["traceparent"].split("-")[1] == f"{place_of(step)[0]:032x}"
