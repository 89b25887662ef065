"""Workflows that declare nothing, and what was learned of them, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.server import Service
from tests.server.conftest import FakeClock
from tests.server.workflow_bodies import cycle, finished, started


def begin(client: TestClient, workflow_id: str, **more: Any) -> None:
    body = {"learn": True, "workflow_id": workflow_id, **more}
    assert client.post("/v1/workflows", json=body).status_code == 201


def send(client: TestClient, workflow_id: str, *events: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(f"/v1/workflows/{workflow_id}/events", json=list(events))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def whole(client: TestClient, clock: FakeClock, workflow_id: str, agents: str, **more: Any) -> None:
    """Each agent runs 2 s, and 3 s lie between."""
    begin(client, workflow_id, **more)
    for agent_id in agents:
        clock.now_s += 3
        send(client, workflow_id, started(agent_id))
        clock.now_s += 2
        send(client, workflow_id, finished(agent_id))
    assert client.delete(f"/v1/workflows/{workflow_id}").status_code == 204


def taught(client: TestClient, clock: FakeClock, **more: Any) -> None:
    for number in range(8):
        whole(client, clock, f"taught-{number}", "abcd", **more)


def told(service: Service, workflow_id: str, client_id: str = "default") -> dict[str, Any]:
    """What engines are told of the workflow."""
    with service.streams.subscribe("probe") as subscription:
        data = subscription.snapshot().decode().split("data: ", 1)[1]
    workflows = {(w["client_id"], w["workflow_id"]): w for w in json.loads(data)["workflows"]}
    found: dict[str, Any] = workflows[client_id, workflow_id]
    return found


def test_a_workflow_without_a_graph_takes_any_agents_steps(client: TestClient) -> None:
    begin(client, "w", name="demo", ttl_s=60)
    result = send(client, "w", started("a"), finished("a"), started("b", "s1"), started("b", "s1"))
    assert result["duplicates"] == 1
    view = client.get("/v1/workflows/w").json()
    assert view["learn"] is True
    assert {one["agent_id"]: one["running"] for one in view["agents"]} == {"a": 0, "b": 1}
    assert client.get("/v1/workflows").json()["workflows"][0]["workflow_id"] == "w"
    assert send(client, "w", finished("b"))["steps_to_execution"] == {"a": None, "b": None}


def test_what_was_learned_predicts_the_next_workflow(
    client: TestClient, service: Service, clock: FakeClock
) -> None:
    taught(client, clock)
    begin(client, "w")
    result = send(client, "w", started("a"))
    assert result["steps_to_execution"] == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert told(service, "w")["steps_to_execution"] == result["steps_to_execution"]
    clock.now_s += 1
    answer = client.get("/v1/workflows/w/steps").json()
    assert answer["expected_s_to_execution"] == {"a": 0, "b": 4, "c": 9, "d": 14}
    assert told(service, "w")["expected_s_to_execution"] == {"a": 0, "b": 5, "c": 10, "d": 15}


def test_engines_are_told_nothing_before_it_has_proved_itself(
    client: TestClient, service: Service, clock: FakeClock
) -> None:
    whole(client, clock, "first", "abcd")
    begin(client, "w")
    assert send(client, "w", started("a"))["steps_to_execution"]["b"] == 1
    assert told(service, "w")["steps_to_execution"] == {}
    assert "expected_s_to_execution" not in told(service, "w")


def test_refused_events_teach_nothing(client: TestClient, clock: FakeClock) -> None:
    whole(client, clock, "first", "ab")
    begin(client, "w")
    before = client.get("/v1/learned").json()
    answer = client.post(
        "/v1/workflows/w/events", json=[started("a"), finished("a"), started("c"), finished("x")]
    )
    assert answer.status_code == 404
    assert client.get("/v1/learned").json() == before


def test_what_was_learned_can_be_declared(client: TestClient, clock: FakeClock) -> None:
    for number in range(12):
        whole(client, clock, f"w{number}", "abc" if number % 3 else "abd", name="review it")
    listed = client.get("/v1/learned").json()["families"]
    assert [(one["family"], one["used"], one["agents"]) for one in listed] == [
        ("review it", True, ["a", "b", "c", "d"])
    ]
    body = client.get("/v1/learned/review it").json()
    kinds = {(edge["source"], edge["target"]): edge for edge in body["edges"]}
    assert kinds["a", "b"] == {
        **{"source": "a", "target": "b", "kind": "always", "expected_duration_s": 3.0}
    }
    assert kinds["b", "c"]["probability"] == pytest.approx(2 / 3, abs=0.05)
    assert body["agents"][0]["expected_duration_s"] == 2.0
    created = client.post("/v1/workflows", json=body)
    assert created.status_code == 201
    view = created.json()
    assert (view["edges"], view["entry"], view["name"]) == (body["edges"], ["a"], "review it")
    assert "learn" not in view


def test_families_are_forgotten_on_request(client: TestClient, clock: FakeClock) -> None:
    taught(client, clock)
    assert client.delete("/v1/learned/from:a").status_code == 204
    assert client.get("/v1/learned").json() == {"families": []}
    for answer in (client.delete("/v1/learned/from:a"), client.get("/v1/learned/a%2Fb")):
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:kvflow:problem:family-not-found"


def test_clients_learn_apart(client: TestClient, clock: FakeClock) -> None:
    taught(client, clock, client_id="one")
    begin(client, "w", client_id="other")
    assert send(client, "w", started("a"))["steps_to_execution"] == {"a": 0}
    listed = client.get("/v1/learned?client_id=other").json()["families"]
    assert [one["client_id"] for one in listed] == ["other"]
    assert client.get("/v1/learned/from:a").status_code == 404
    assert client.get("/v1/learned/from:a?client_id=one").status_code == 200


def test_a_declaration_takes_the_place_of_a_learned_workflow(client: TestClient) -> None:
    begin(client, "w")
    send(client, "w", started("x"))
    answer = client.post("/v1/workflows", json=cycle())
    assert answer.status_code == 201
    assert "learn" not in answer.json()
    again = client.post("/v1/workflows", json={"learn": True, "workflow_id": "w"})
    assert again.status_code == 409
    assert "learn" in [one["field"] for one in again.json()["errors"]]


def test_creating_it_again_renews_it(client: TestClient) -> None:
    begin(client, "w")
    send(client, "w", started("a"))
    answer = client.post("/v1/workflows", json={"learn": True, "workflow_id": "w"})
    assert (answer.status_code, answer.json()["version"]) == (200, 1)


def test_a_graph_beside_learn_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/workflows", json={**cycle(), "learn": True})
    assert answer.status_code == 422
    assert {one["field"] for one in answer.json()["errors"]} == {"agents", "edges", "entry"}
    answer = client.post("/v1/workflows", json={"learn": "yes"})
    assert answer.json()["errors"][0]["field"] == "learn"


def test_expired_it_is_gone(client: TestClient, service: Service, clock: FakeClock) -> None:
    begin(client, "w", ttl_s=10)
    clock.now_s += 11
    assert client.get("/v1/workflows/w").status_code == 404
    assert service.streams.live_workflows == 0


def test_durations_of_declared_workflows_are_learned(client: TestClient, clock: FakeClock) -> None:
    client.post("/v1/workflows", json=cycle())
    steps = client.get("/v1/workflows/w/steps").json()
    assert "expected_s_to_execution" not in steps
    for agent_id in ("a0", "a1"):
        send(client, "w", started(agent_id))
        clock.now_s += 2
        send(client, "w", finished(agent_id))
        clock.now_s += 1
    steps = client.get("/v1/workflows/w/steps").json()
    assert steps["steps_to_execution"] == {"a0": 2, "a1": 3, "a2": 1}
    # 1 s between two agents, all of which is over; then 2 s for a2 and 1 s after it.
    assert steps["expected_s_to_execution"] == {"a0": 3.0, "a1": 6.0, "a2": 0.0}


def test_declared_durations_count_at_once(client: TestClient) -> None:
    body = cycle()
    body["agents"] = [{**one, "expected_duration_s": 4} for one in body["agents"]]
    body["edges"][0]["expected_duration_s"] = 10
    assert client.post("/v1/workflows", json=body).status_code == 201
    times = client.get("/v1/workflows/w/steps").json()["expected_s_to_execution"]
    assert times == {"a0": 0.0, "a1": 14.0, "a2": 18.0}


@pytest.mark.parametrize(
    ("edge", "field"),
    [
        ({"kind": "choice", "probability": 0}, "edges[0].probability"),
        ({"kind": "always", "probability": 0.5}, "edges[0].probability"),
        ({"expected_duration_s": -1}, "edges[0].expected_duration_s"),
        ({"max_iterations": 0}, "edges[0].max_iterations"),
    ],
)
def test_a_wrong_edge_is_named(client: TestClient, edge: dict[str, Any], field: str) -> None:
    body = cycle()
    body["edges"][0].update(edge)
    answer = client.post("/v1/workflows", json=body)
    assert answer.status_code == 422
    assert [one["field"] for one in answer.json()["errors"]] == [field]
