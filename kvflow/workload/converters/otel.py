"""OpenTelemetry spans of model calls, as the GenAI conventions name them.

The file has one OTLP JSON object per line, ``{"resourceSpans": [...]}``, as the OTLP file exporters
write it (https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/). Of the spans
(https://opentelemetry.io/docs/specs/semconv/gen-ai/):

* one whose ``gen_ai.operation.name`` is ``chat``, ``text_completion`` or ``generate_content`` is a
  call; its agent is the ``gen_ai.agent.name`` of the span or of the nearest span around it;
* all calls with the same ``traceId`` are a workflow; ``service.name`` is its client;
* ``gen_ai.usage.input_tokens`` and ``gen_ai.usage.output_tokens`` are its lengths.

The conventions do not say what prompts share. An agent's fixed prefix is taken to be the least that
was read from a cache (``gen_ai.usage.cache_read.input_tokens``) where two calls or more report it,
and else half its shortest prompt. What is declared is the graph that the calls followed, over all
workflows whose outermost span has the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvflow.errors import InvalidInputError
from kvflow.graph import AgentStepGraph
from kvflow.protocol import DEFAULT_CLIENT_ID
from kvflow.workload.base import Piece, WorkloadCall, WorkloadWorkflow
from kvflow.workload.converters.defaults import FIXED_TOKENS, OUTPUT_TOKENS, prompt_of
from kvflow.workload.converters.observed import calls_before, observed_graph
from kvflow.workload.lines import json_objects, place

__all__ = ["read_otel"]

_CALLS: Final = frozenset({"chat", "text_completion", "generate_content"})
# The names after the first are those of older versions of the conventions.
_INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHED: Final = ("gen_ai.usage.cache_read.input_tokens",)
_AGENT: Final = "gen_ai.agent.name"
_UNNAMED: Final = "unnamed"
_NOT_IN_AN_ID: Final = re.compile(r"[^A-Za-z0-9._:@-]+")


@dataclass(frozen=True, slots=True)
class _Span:
    span_id: str
    parent_id: str
    name: str
    client_id: str
    begin_s: float
    end_s: float
    agent: str | None
    is_call: bool
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Workflow:
    trace_id: str
    family: str
    calls: list[_Span]
    agent_ids: list[str]
    after: list[tuple[int, ...]]


def read_otel(path: Path) -> Iterator[WorkloadWorkflow]:
    """Yield the workflows of a file of spans. Holds them all, as spans come in any order.

    Raises:
        InvalidInputError: a line is not OTLP JSON, or a span lacks its ids or times.
    """
    traces: dict[str, list[_Span]] = {}
    for number, content in json_objects(path):
        for trace_id, span in _spans(place(path, number), content):
            traces.setdefault(trace_id, []).append(span)
    workflows = [
        _workflow(trace_id, spans)
        for trace_id, spans in traces.items()
        if any(span.is_call for span in spans)
    ]
    workflows.sort(key=lambda workflow: workflow.calls[0].begin_s)
    if not workflows:
        return
    fixed = _fixed_prefixes(workflows)
    graphs = _graphs(workflows, fixed)
    origin_s = workflows[0].calls[0].begin_s
    for workflow in workflows:
        yield WorkloadWorkflow(
            workflow.calls[0].client_id,
            workflow.trace_id,
            workflow.calls[0].begin_s - origin_s,
            graphs[workflow.family],
            tuple(_calls(workflow, fixed)),
        )


def _spans(here: str, content: Mapping[str, Any]) -> Iterator[tuple[str, _Span]]:
    try:
        for resource_spans in content["resourceSpans"]:
            resource = _attributes(resource_spans.get("resource", {}))
            client_id = _identifier(str(resource.get("service.name", DEFAULT_CLIENT_ID)))
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for span in scope_spans.get("spans", ()):
                    yield span["traceId"], _span(span, client_id)
    except KeyError as error:
        raise InvalidInputError([here, str(error.args[0])], "is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidInputError([here], f"is not OTLP JSON of spans: {error}") from error


def _span(span: Mapping[str, Any], client_id: str) -> _Span:
    attributes = _attributes(span)
    agent = attributes.get(_AGENT)
    return _Span(
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        name=span.get("name", ""),
        client_id=client_id,
        begin_s=int(span["startTimeUnixNano"]) / 1e9,
        end_s=int(span["endTimeUnixNano"]) / 1e9,
        agent=None if agent is None else _identifier(str(agent)),
        is_call=attributes.get("gen_ai.operation.name") in _CALLS,
        input_tokens=_count(attributes, _INPUT),
        output_tokens=_count(attributes, _OUTPUT),
        cached_tokens=_count(attributes, _CACHED),
    )


def _attributes(owner: Mapping[str, Any]) -> dict[str, object]:
    """Return the attributes that are text or numbers; a 64-bit integer is text in OTLP JSON."""
    found: dict[str, object] = {}
    for attribute in owner.get("attributes", ()):
        value = attribute["value"]
        if "stringValue" in value:
            found[attribute["key"]] = value["stringValue"]
        elif "intValue" in value:
            found[attribute["key"]] = int(value["intValue"])
    return found


def _count(attributes: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = attributes.get(name)
        if isinstance(value, int):
            return value
    return None


def _identifier(text: str) -> str:
    """Return the text as an agent_id or client_id may be."""
    return _NOT_IN_AN_ID.sub("-", text).strip("-._:@")[:256] or _UNNAMED


def _workflow(trace_id: str, spans: list[_Span]) -> _Workflow:
    by_id = {span.span_id: span for span in spans}
    calls = sorted((span for span in spans if span.is_call), key=lambda span: span.begin_s)
    outermost = min(spans, key=lambda span: (span.parent_id in by_id, span.begin_s))
    return _Workflow(
        trace_id,
        outermost.name,
        calls,
        [_agent_of(call, by_id) for call in calls],
        calls_before([(call.begin_s, call.end_s) for call in calls]),
    )


def _agent_of(span: _Span, by_id: Mapping[str, _Span]) -> str:
    around: _Span | None = span
    seen: set[str] = set()
    while around is not None and around.span_id not in seen:
        if around.agent is not None:
            return around.agent
        seen.add(around.span_id)
        around = by_id.get(around.parent_id)
    return _UNNAMED


def _fixed_prefixes(workflows: list[_Workflow]) -> dict[tuple[str, str], Piece]:
    """Return the fixed prefix of each client's agents."""
    prompts: dict[tuple[str, str], list[int]] = {}
    cached: dict[tuple[str, str], list[int]] = {}
    for workflow in workflows:
        for agent_id, call in zip(workflow.agent_ids, workflow.calls, strict=True):
            agent = (call.client_id, agent_id)
            lengths = prompts.setdefault(agent, [])
            if call.input_tokens is not None:
                lengths.append(call.input_tokens)
            if call.cached_tokens:
                cached.setdefault(agent, []).append(call.cached_tokens)
    fixed = {}
    for agent, lengths in prompts.items():
        if len(cached.get(agent, ())) > 1:
            tokens = min(cached[agent])
        else:
            tokens = min(lengths) // 2 if lengths else FIXED_TOKENS
        fixed[agent] = Piece("/".join(agent), tokens)
    return fixed


def _graphs(
    workflows: list[_Workflow], fixed: Mapping[tuple[str, str], Piece]
) -> dict[str, AgentStepGraph]:
    families: dict[str, list[_Workflow]] = {}
    for workflow in workflows:
        families.setdefault(workflow.family, []).append(workflow)
    return {
        family: observed_graph(
            [list(zip(one.agent_ids, one.after, strict=True)) for one in members],
            {
                agent_id: fixed[call.client_id, agent_id].tokens
                for one in members
                for agent_id, call in zip(one.agent_ids, one.calls, strict=True)
            },
        )
        for family, members in families.items()
    }


def _calls(workflow: _Workflow, fixed: Mapping[tuple[str, str], Piece]) -> Iterator[WorkloadCall]:
    begin_s = workflow.calls[0].begin_s
    for position, (agent_id, call, after) in enumerate(
        zip(workflow.agent_ids, workflow.calls, workflow.after, strict=True)
    ):
        key = f"{workflow.trace_id}/{position}"
        prompt, fixed_pieces = prompt_of(fixed[call.client_id, agent_id], call.input_tokens, key)
        before_s = max((workflow.calls[one].end_s for one in after), default=begin_s)
        tokens = OUTPUT_TOKENS if call.output_tokens is None else max(call.output_tokens, 1)
        answer = Piece(f"{key}/answer", tokens)
        yield WorkloadCall(agent_id, after, call.begin_s - before_s, prompt, fixed_pieces, answer)
