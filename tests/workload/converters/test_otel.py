"""Spans made by hand, in OTLP JSON, with the attributes of the GenAI conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvflow.errors import InvalidInputError
from kvflow.graph import Edge
from kvflow.workload.converters import convert

ORIGIN_NS = 1_700_000_000_000_000_000


def span(span_id: str, parent_id: str, begin_s: float, end_s: float, **attributes: Any) -> Any:
    def value(given: Any) -> Any:
        # 64-bit integers are text in OTLP JSON.
        return {"intValue": str(given)} if isinstance(given, int) else {"stringValue": given}

    return {
        "traceId": attributes.pop("trace", "5b8efff798038103d269b633813fc60c"),
        "spanId": span_id,
        "parentSpanId": parent_id,
        "name": attributes.pop("name", span_id),
        "startTimeUnixNano": str(ORIGIN_NS + round(begin_s * 1e9)),
        "endTimeUnixNano": str(ORIGIN_NS + round(end_s * 1e9)),
        "attributes": [
            {"key": f"gen_ai.{key.replace('__', '.')}", "value": value(given)}
            for key, given in attributes.items()
        ],
    }


def chat(span_id: str, parent_id: str, begin_s: float, end_s: float, **attributes: Any) -> Any:
    return span(span_id, parent_id, begin_s, end_s, operation__name="chat", **attributes)


def agent(span_id: str, name: str, begin_s: float, end_s: float, **attributes: Any) -> Any:
    return span(
        span_id,
        "root",
        begin_s,
        end_s,
        operation__name="invoke_agent",
        agent__name=name,
        **attributes,
    )


def tokens(given: int, answered: int, **more: int) -> dict[str, int]:
    return {"usage__input_tokens": given, "usage__output_tokens": answered, **more}


RUN = [
    span("root", "", 0.0, 10.0, operation__name="invoke_workflow", name="report"),
    agent("s1", "Lead Writer", 0.0, 2.0),
    chat("c1", "s1", 0.5, 2.0, **tokens(900, 40)),
    agent("s2", "critic", 2.5, 4.0),
    # The agent is two spans up.
    span("mid", "s2", 2.5, 4.0),
    chat("c2", "mid", 2.5, 4.0, **tokens(700, 20, usage__cache_read__input_tokens=512)),
    span("tool", "s2", 3.0, 3.5, operation__name="execute_tool"),
    chat("c3", "s1", 5.0, 6.0, **tokens(1000, 30)),
    chat(
        "c4",
        "",
        6.0,
        7.0,
        agent__name="critic",
        **tokens(720, 5, usage__cache_read__input_tokens=600),
    ),
]


def file(path: Path, *groups: list[Any]) -> Path:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "news desk"}}]}
    path.write_text(
        "".join(
            json.dumps(
                {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": group}]}]}
            )
            + "\n"
            for group in groups
        )
    )
    return path


def test_spans_in_any_order_become_a_workflow(tmp_path: Path) -> None:
    (workflow,) = convert(file(tmp_path / "t", RUN[5:], RUN[:5]), "otel")
    assert workflow.client_id == "news-desk"
    assert workflow.arrival_s == 0.0
    calls = workflow.calls
    assert [call.agent_id for call in calls] == ["Lead-Writer", "critic", "Lead-Writer", "critic"]
    assert [call.after for call in calls] == [(), (0,), (1,), (2,)]
    assert [call.pause_s for call in calls] == pytest.approx([0.0, 0.5, 1.0, 0.0], abs=1e-6)
    assert [call.prompt_tokens for call in calls] == [900, 700, 1000, 720]
    assert [call.answer.tokens for call in calls] == [40, 20, 30, 5]
    # Half the shortest prompt where no cache reads are known, else the least of these.
    assert [call.fixed_tokens for call in calls] == [450, 512, 450, 512]
    assert calls[0].prompt[0] == calls[2].prompt[0]
    assert workflow.graph is not None
    assert set(workflow.graph.edges) == {
        Edge("Lead-Writer", "critic"),
        Edge("critic", "Lead-Writer"),
    }


def test_workflows_of_one_kind_share_a_graph(tmp_path: Path) -> None:
    later = [
        span("root", "", 20.0, 30.0, name="report", trace="b" * 32),
        chat("c1", "root", 21.0, 22.0, trace="b" * 32, agent__name="critic", **tokens(900, 40)),
        chat("c2", "root", 23.0, 24.0, trace="b" * 32, agent__name="editor", **tokens(900, 40)),
    ]
    first, second = convert(file(tmp_path / "t", later, RUN), "otel")
    assert second.arrival_s == pytest.approx(20.5, abs=1e-6)
    assert first.graph is second.graph
    assert first.graph is not None
    assert Edge("critic", "editor", "choice") in first.graph.edges


def test_older_names_and_missing_counts(tmp_path: Path) -> None:
    spans = [
        chat("c1", "", 0.0, 1.0, usage__prompt_tokens=80, usage__completion_tokens=7),
        chat("c2", "", 1.0, 2.0, agent__name="b"),
    ]
    (workflow,) = convert(file(tmp_path / "t", spans), "otel")
    first, second = workflow.calls
    assert (first.agent_id, first.prompt_tokens, first.answer.tokens) == ("unnamed", 80, 7)
    assert (second.prompt_tokens, second.answer.tokens) == (1024 + 256, 128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: is not a JSON object"),
        ("{}", "line 1.resourceSpans: is missing"),
        (
            '{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "a"}]}]}]}',
            "line 1.spanId: is missing",
        ),
        ('{"resourceSpans": 5}', "line 1: is not OTLP JSON of spans"),
        ('{"resourceSpans": []}', "t: has no call in it"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t"
    path.write_text(text + "\n")
    with pytest.raises(InvalidInputError) as caught:
        list(convert(path, "otel"))
    assert words in str(caught.value)
