"""Steps as spans, where the program has OpenTelemetry; and nothing at all where it has not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from kvflow.agent_sdk import KVFlowClient, Workflow, current_step, request_metadata
from kvflow.agent_sdk.reporter import Reporter
from tests.agent_sdk.recording_engine import RecordingEngine, recording_engine
from tests.memory_spans import MemorySpans, parent_of, place_of

pytest.importorskip("opentelemetry.sdk", reason="run `make install-dev`")
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> MemorySpans:
    """What the program's own tracer provider gets."""
    spans = MemorySpans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    return spans


@pytest.fixture
def engine() -> Iterator[RecordingEngine]:
    with recording_engine() as engine:
        yield engine


def traceparent(span: Any) -> str:
    trace_id, span_id = place_of(span)
    return f"00-{trace_id:032x}-{span_id:016x}-{int(span.context.trace_flags):02x}"


def test_a_step_is_a_span_below_the_current_one(spans: MemorySpans, workflow: Workflow) -> None:
    seen = []

    @workflow.agent("planner")
    def planner() -> None:
        step = current_step()
        assert step is not None
        seen.append(step)
        with spans.provider.get_tracer("t").start_as_current_span("inner"):
            pass

    with workflow.run("w1"), spans.provider.get_tracer("t").start_as_current_span("outer"):
        planner()

    step, outer, inner = spans.one("invoke_agent planner"), spans.one("outer"), spans.one("inner")
    assert parent_of(step) == place_of(outer)
    assert parent_of(inner) == place_of(step)
    assert seen[0].traceparent == traceparent(step)
    assert dict(step.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "planner",
        "kvflow.workflow_id": "w1",
        "kvflow.agent_id": "planner",
        "kvflow.client_id": "default",
        "kvflow.step_id": seen[0].step_id,
    }


def test_calls_carry_the_innermost_span_in_header_and_body(
    spans: MemorySpans, workflow: Workflow, engine: RecordingEngine
) -> None:
    @workflow.agent("planner")
    def planner(client: openai.OpenAI) -> None:
        client.chat.completions.create(**CHAT)
        with spans.provider.get_tracer("t").start_as_current_span("inner"):
            client.chat.completions.create(**CHAT)
        client.chat.completions.create(**CHAT, extra_headers={"Traceparent": "mine"})

    with (
        openai.OpenAI(base_url=engine.base_url, api_key="k", max_retries=0) as client,
        workflow.run(),
    ):
        planner(client)

    step = traceparent(spans.one("invoke_agent planner"))
    inner = traceparent(spans.one("inner"))
    assert [headers["traceparent"] for headers in engine.headers] == [step, inner, "mine"]
    assert [body["custom_params"]["kvflow"]["traceparent"] for body in engine.bodies] == [
        *(step, inner, step)
    ]


def test_a_failed_step_says_what_failed_but_not_what_it_said(
    spans: MemorySpans, workflow: Workflow
) -> None:
    @workflow.agent("planner")
    def planner() -> None:
        raise ValueError("the whole prompt")

    with workflow.run(), pytest.raises(ValueError, match="prompt"):
        planner()

    span = spans.one("invoke_agent planner")
    assert span.status.status_code.name == "ERROR"
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "the whole prompt" not in span.to_json()


async def test_every_kind_of_agent_ends_its_span_once(
    spans: MemorySpans, workflow: Workflow
) -> None:
    @workflow.agent("coroutine")
    async def coroutine() -> int:
        return 1

    @workflow.agent("generator")
    def generator() -> Iterator[int]:
        yield 1
        yield 2

    @workflow.agent("async_generator")
    async def async_generator() -> Any:
        yield 1

    async with workflow.run():
        await coroutine()
        assert list(generator()) == [1, 2]
        assert [one async for one in async_generator()] == [1]

    for name in ("coroutine", "generator", "async_generator"):
        span = spans.one(f"invoke_agent {name}")
        assert span.status.status_code.name == "UNSET"


def test_the_clients_own_calls_carry_the_current_span(
    spans: MemorySpans, client: KVFlowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, str]] = []
    original = client._http.request
    monkeypatch.setattr(
        client._http, "request", lambda **r: sent.append(r["headers"]) or original(**r)
    )
    client.health()
    with spans.provider.get_tracer("t").start_as_current_span("outer"):
        client.health()

    assert sent == [{}, {"traceparent": traceparent(spans.one("outer"))}]


def test_without_a_tracer_provider_nothing_is_added(workflow: Workflow) -> None:
    workflow.agent("a")(lambda: None)
    with workflow.run("w1") as run, run.step("a") as step:
        assert step.traceparent is None
        assert "traceparent" not in request_metadata()["kvflow"]


def test_a_tracer_that_fails_costs_the_span_only(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("broken")

    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", Broken())
    assert workflow.agent("a")(lambda: 7)() == 7


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from kvflow.agent_sdk import Workflow, current_step, request_metadata
workflow = Workflow("w")
@workflow.agent("a")
def agent():
    return current_step().traceparent, request_metadata()["kvflow"].get("traceparent")
assert agent() == (None, None)
"""


def test_without_opentelemetry_installed() -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT],
        env={"KVFLOW_SERVICE_URL": "off"},
        check=True,
    )


def test_events_carry_the_steps_span(spans: MemorySpans, reporter: Reporter) -> None:
    workflow = Workflow("w", agents=["a"], entry=["a"], reporter=reporter)
    sent: list[Any] = []
    with workflow.run("w1") as run:
        report = run._sink.report
        run._sink.report = lambda event: sent.append(event) or report(event)  # type: ignore[method-assign]
        with run.step("a"):
            pass
        assert run.flush()

    step = traceparent(spans.one("invoke_agent a"))
    assert [(event.type, event.traceparent) for event in sent] == [
        ("step_started", step),
        ("step_finished", step),
    ]
