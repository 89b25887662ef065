from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

from kvflow.agent_sdk import KVFlowClient
from kvflow.bench.hints import NoHints, ServiceHints
from kvflow.graph import Agent, AgentStepGraph, Edge
from kvflow.server import ServiceSettings
from tests.bench.made_up import call, workflow
from tests.server.running import eventually, running_service

GRAPH = AgentStepGraph(
    [Agent("a", fixed_prefix_tokens=64), Agent("b")], [Edge("a", "b"), Edge("b", "a")], ["a"]
)
DECLARED = workflow(call("a"), call("stranger"), call("b"), graph=GRAPH)


@pytest.fixture
def service_url() -> Iterator[str]:
    with running_service(ServiceSettings(port=0)) as service:
        yield service.url


def test_the_service_knows_the_workflow_while_it_runs(service_url: str) -> None:
    hints = ServiceHints(service_url, run="r1")
    with KVFlowClient(service_url) as client:
        hints.workflow_began(DECLARED)
        hints.step_started(DECLARED, 0)
        eventually(lambda: len(list(client.list_workflows(client_id="r1-client0"))) == 1)
        eventually(lambda: client.steps("r1-w0").steps_to_execution == {"a": 0, "b": 1})
        hints.step_finished(DECLARED, 0)
        hints.step_started(DECLARED, 1)
        hints.step_finished(DECLARED, 1)
        hints.step_started(DECLARED, 2)
        eventually(lambda: client.steps("r1-w0").steps_to_execution == {"a": 1, "b": 0})
        seen = client.get_workflow("r1-w0")
        assert (seen.steps_started, seen.mispredictions) == (2, 0)
        hints.step_finished(DECLARED, 2)
        hints.workflow_ended(DECLARED)
        assert hints.close() == []
        assert list(client.list_workflows()) == []


def test_calls_say_whose_they_are_whether_declared_or_not(service_url: str) -> None:
    hints = ServiceHints(service_url, run="r1")
    hints.workflow_began(DECLARED)
    identity = {"workflow_id": "r1-w0", "client_id": "r1-client0"}
    assert hints.metadata(DECLARED, 0) == {
        "kvflow": {**identity, "agent_id": "a", "fixed_prefix_tokens": 64}
    }
    assert hints.metadata(DECLARED, 1) == {"kvflow": {**identity, "agent_id": "stranger"}}
    hints.close()


def test_nothing_is_registered_without_a_graph(service_url: str) -> None:
    undeclared = workflow(call("a"))
    hints = ServiceHints(service_url)
    hints.workflow_began(undeclared)
    hints.step_started(undeclared, 0)
    assert hints.metadata(undeclared, 0) is not None
    hints.step_finished(undeclared, 0)
    hints.workflow_ended(undeclared)
    assert hints.close() == []
    with KVFlowClient(service_url) as client:
        assert list(client.list_workflows()) == []


def test_each_run_has_ids_of_its_own(service_url: str) -> None:
    ids = set()
    for _ in range(2):
        hints = ServiceHints(service_url)
        metadata = hints.metadata(DECLARED, 0)
        assert metadata is not None
        ids.add(metadata["kvflow"]["client_id"])
        hints.close()
    assert len(ids) == 2


def test_a_workflow_that_is_cut_short_is_closed_all_the_same(service_url: str) -> None:
    hints = ServiceHints(service_url)
    hints.workflow_began(DECLARED)
    hints.step_started(DECLARED, 0)
    hints.close()
    with KVFlowClient(service_url) as client:
        assert list(client.list_workflows()) == []


def test_what_the_service_refuses_is_told(service_url: str) -> None:
    taken = ServiceHints(service_url, run="same")
    taken.workflow_began(DECLARED)
    taken.step_started(DECLARED, 0)
    with KVFlowClient(service_url) as client:
        eventually(lambda: len(list(client.list_workflows())) == 1)
    other = workflow(call("a"), graph=AgentStepGraph([Agent("a")], [], ["a"]))
    late = ServiceHints(service_url, run="same")
    late.workflow_began(other)
    late.step_started(other, 0)
    late.workflow_ended(other)
    (refusal,) = late.close()
    assert "same-w0" in refusal
    taken.close()


def test_a_service_that_is_away_is_told() -> None:
    hints = ServiceHints("http://127.0.0.1:9", run="r1")
    hints.workflow_began(DECLARED)
    hints.step_started(DECLARED, 0)
    hints.step_finished(DECLARED, 0)
    hints.workflow_ended(DECLARED)
    assert hints.close() == ["r1-w0: the service did not answer"]


def test_stock_sglang_is_told_nothing() -> None:
    assert NoHints().metadata(DECLARED, 0) is None
