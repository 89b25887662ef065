"""Declared probabilities on the engines' stream."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from kvflow.protocol import Delta, Snapshot, WorkflowSteps
from kvflow.server import ServiceSettings
from tests.server.running import running_service, stream
from tests.server.workflow_bodies import finished, started

GRAPH: dict[str, Any] = {
    "workflow_id": "w",
    "agents": [{"agent_id": name, "join": "any"} for name in ("coder", "tester", "done")],
    "edges": [
        {"source": "coder", "target": "tester"},
        {"source": "tester", "target": "coder", "kind": "choice", "probability": 0.75},
        {"source": "tester", "target": "done", "kind": "choice", "probability": 0.25},
    ],
    "entry": ["coder"],
}


def test_they_are_told_while_the_choice_is_to_come() -> None:
    with (
        running_service(ServiceSettings(port=0)) as service,
        httpx2.Client(base_url=service.url) as client,
        stream(client) as engine,
    ):
        assert isinstance(engine.next(), Snapshot)

        def told(route: str, body: Any) -> WorkflowSteps:
            client.post(route, json=body).raise_for_status()
            message = engine.next()
            assert isinstance(message, Delta)
            return message.workflows[0]

        events = "/v1/workflows/w/events"
        assert told("/v1/workflows", GRAPH).choice_probabilities is None
        assert told(events, started("coder")).choice_probabilities is None
        begun = told(events, [finished("coder"), started("tester")])
        assert begun.choice_probabilities == {"tester": {"coder": 0.75, "done": 0.25}}
        open_choice = told(events, finished("tester"))
        assert open_choice.choice_probabilities == begun.choice_probabilities
        assert told(events, started("coder")).choice_probabilities is None


def test_what_was_learned_is_not_told_as_declared() -> None:
    """The engine counts the same transitions itself."""
    with (
        running_service(ServiceSettings(port=0)) as service,
        httpx2.Client(base_url=service.url) as client,
    ):
        for number in range(12):
            body = {"learn": True, "workflow_id": f"w{number}", "name": "branching"}
            client.post("/v1/workflows", json=body).raise_for_status()
            branch = "bc"[number % 2]
            events = [started("a"), finished("a"), started(branch)]
            if number < 11:
                events.append(finished(branch))
            client.post(f"/v1/workflows/w{number}/events", json=events).raise_for_status()
        learned = client.get("/v1/learned/branching").json()
        assert any("probability" in edge for edge in learned["edges"])
        with stream(client) as engine:
            message = engine.next()
        assert isinstance(message, Snapshot)
        assert {one.choice_probabilities for one in message.workflows} == {None}


def test_versions_that_differ_understand_each_other() -> None:
    before = {
        "client_id": "c",
        "workflow_id": "w",
        "version": 3,
        "ttl_s": 600.0,
        "steps_to_execution": {"a": 0},
    }
    assert WorkflowSteps.model_validate(before).choice_probabilities is None
    # Nothing is told to those who have declared none, so older plugins see what they always saw;
    # and those ignore a field that they do not know, as this one does.
    assert "choice" not in WorkflowSteps.model_validate(before).model_dump_json()
    later = json.dumps({**before, "field_of_a_later_version": {"a": 1}})
    assert WorkflowSteps.model_validate_json(later) == WorkflowSteps.model_validate(before)


@pytest.mark.parametrize("share", [-0.1, 1.5, "likely"])
def test_nonsense_is_refused(share: object) -> None:
    with pytest.raises(ValueError, match="choice_probabilities"):
        WorkflowSteps.model_validate(
            {
                "client_id": "c",
                "workflow_id": "w",
                "version": 3,
                "ttl_s": 600.0,
                "steps_to_execution": {"a": 0},
                "choice_probabilities": {"a": {"b": share}},
            }
        )
