from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kvflow.errors import InvalidInputError
from kvflow.graph import Agent, AgentStepGraph, Edge
from kvflow.workload import Piece, Scenario, WorkloadCall, WorkloadWorkflow, build_workload
from kvflow.workload.trace import read_trace, write_trace
from tests.workload.scenarios import scenario, scenarios, workflows

HEADER = {"format": "kvflow-trace", "version": 1}
CALL = {"agent_id": "a", "prompt": [["p", 10]], "answer": ["x", 2]}
LINE = {"workflow_id": "w", "arrival_s": 0.5, "calls": [CALL]}


def trace(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@settings(max_examples=30)
@given(scenarios())
def test_a_workload_survives_a_trace(tmp_path_factory: Any, given_scenario: Scenario) -> None:
    workload = build_workload(given_scenario)
    path: Path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    count = write_trace(
        path,
        workload.workflows(),
        name=workload.name,
        concurrency=workload.concurrency,
        warm_up_calls=workload.warm_up_calls,
    )
    read = read_trace(path)
    assert list(read.workflows()) == list(workload.workflows())
    assert len(list(read.workflows())) == count
    assert (read.name, read.concurrency, read.warm_up_calls) == (
        workload.name,
        workload.concurrency,
        workload.warm_up_calls,
    )


def test_all_that_was_declared_of_a_graph_survives_a_trace(tmp_path: Path) -> None:
    graph = AgentStepGraph(
        [
            Agent("plan", "any", fixed_prefix_tokens=640, expected_duration_s=2.5),
            Agent("code", expected_duration_s=0.5),
            Agent("ask"),
        ],
        [
            Edge("plan", "code", "choice", probability=0.75, expected_duration_s=1.5),
            Edge("plan", "ask", "choice", probability=0.25),
            Edge("code", "plan", max_iterations=3),
        ],
        ["plan"],
    )
    call = WorkloadCall("plan", (), 0.0, (Piece("p", 10),), 0, Piece("x", 2))
    workflow = WorkloadWorkflow("c", "w", 0.0, graph, (call,))
    path = tmp_path / "t"
    write_trace(path, [workflow], name="declared")
    assert list(read_trace(path).workflows()) == [workflow]


def test_what_may_be_left_out(tmp_path: Path) -> None:
    (workflow,) = read_trace(trace(tmp_path / "t", HEADER, LINE)).workflows()
    assert (workflow.client_id, workflow.arrival_s, workflow.graph) == ("default", 0.5, None)
    (call,) = workflow.calls
    assert (call.after, call.pause_s, call.fixed_pieces, call.prompt_tokens) == ((), 0.0, 0, 10)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "line 1: Invalid JSON"),
        ([{"format": "other", "version": 1}], "line 1.format: Input should be 'kvflow-trace'"),
        ([{"format": "kvflow-trace", "version": 2}], "line 1.version: Input should be 1"),
        ([HEADER, LINE, {**LINE, "calls": []}], "line 3.calls: "),
        ([HEADER, {**LINE, "calls": [CALL | {"after": [0]}]}], "line 2.calls[0].after: 0 is no"),
        ([HEADER, {**LINE, "calls": [CALL | {"prompts": []}]}], "line 2.calls[0].prompts: Extra"),
        ([HEADER, {**LINE, "calls": [CALL | {"fixed_pieces": 2}]}], "line 2.calls[0]: fixed_p"),
        ([HEADER, {**LINE, "calls": [CALL | {"answer": ["x", 0]}]}], "line 2.calls[0].answer[1]"),
        ([HEADER, {**LINE, "calls": [CALL | {"answer": ["p", 3]}]}], "line 2.calls[0]: piece 'p'"),
        ([HEADER, {**LINE, "arrival_s": None}], "line 2.arrival_s: is missing"),
        ([HEADER, LINE, {**LINE, "arrival_s": 0.1}], "line 3.arrival_s: is 0.1, before the 0.5"),
        ([HEADER | {"concurrency": 2}, LINE], "line 2.arrival_s: leave it out"),
        (
            [HEADER, {**LINE, "graph": {"agents": [{"agent_id": "a"}], "entry": ["b"]}}],
            "line 2.graph.entry[0]: no agent has agent_id 'b'",
        ),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        list(read_trace(trace(tmp_path / "t", *lines)).workflows())
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_trace(tmp_path / "nowhere.jsonl")


def test_a_trace_that_cannot_be_made_leaves_what_was_there(tmp_path: Path) -> None:
    target = trace(tmp_path / "t", HEADER, LINE)
    before = target.read_text()
    bad = trace(tmp_path / "bad", HEADER, {**LINE, "calls": []})
    with pytest.raises(InvalidInputError, match="line 2"):
        write_trace(target, read_trace(bad).workflows(), name="x")
    assert target.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "t"]


def test_a_scenario_replays_a_trace_with_the_hints_it_wants(tmp_path: Path) -> None:
    recorded = workflows(agents={"agents": 4, "rounds": 1}, load={"workflows": 3})
    write_trace(tmp_path / "t.jsonl", recorded, name="r", concurrency=2, warm_up_calls=4)

    def replayed(kind: str) -> Any:
        return build_workload(scenario(trace="t.jsonl", hints={"graph": kind}), tmp_path)

    right = replayed("right")
    assert (right.name, right.concurrency, right.warm_up_calls) == ("test", 2, 4)
    assert list(right.workflows()) == recorded
    assert {workflow.graph for workflow in replayed("none").workflows()} == {None}
    (first, *_) = replayed("reversed").workflows()
    assert first.calls == recorded[0].calls
    assert first.graph.entry == ("t0-a3",)
    assert [(edge.source, edge.target) for edge in first.graph.edges] == [
        ("t0-a1", "t0-a0"),
        ("t0-a2", "t0-a1"),
        ("t0-a3", "t0-a2"),
    ]
