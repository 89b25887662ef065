"""The REST routes of workflows, as a client sees them."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.server.workflow_bodies import cycle, finished, started


def steps(client: TestClient, workflow_id: str = "w") -> dict[str, int | None]:
    answer = client.get(f"/v1/workflows/{workflow_id}/steps")
    assert answer.status_code == 200
    return answer.json()["steps_to_execution"]


def test_create_shows_the_workflow(client: TestClient) -> None:
    answer = client.post("/v1/workflows", json=cycle(client_id="me", name="demo", ttl_s=60))

    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/workflows/w"
    view = answer.json()
    assert view == {
        "workflow_id": "w",
        "client_id": "me",
        "name": "demo",
        "ttl_s": 60,
        "expires_in_s": 60,
        "version": 0,
        "agents": [
            {
                "agent_id": f"a{i}",
                "join": "any",
                "fixed_prefix_tokens": None,
                "running": 0,
                "steps_to_execution": i + 1,
            }
            for i in range(3)
        ],
        "edges": [
            {"source": "a0", "target": "a1", "kind": "always"},
            {"source": "a1", "target": "a2", "kind": "always"},
            {"source": "a2", "target": "a0", "kind": "always"},
        ],
        "entry": ["a0"],
        "steps_started": 0,
        "mispredictions": 0,
    }
    assert client.get("/v1/workflows/w").json() == view


def test_create_makes_up_an_id(client: TestClient) -> None:
    first = client.post("/v1/workflows", json=cycle(None)).json()["workflow_id"]
    second = client.post("/v1/workflows", json=cycle(None)).json()["workflow_id"]

    assert first != second
    assert client.get(f"/v1/workflows/{first}").status_code == 200


def test_create_again_with_the_same_content_is_idempotent(client: TestClient) -> None:
    body = cycle(client_id="me")
    client.post("/v1/workflows", json=body)
    client.post("/v1/workflows/w/events", json=started("a0"))

    body["agents"].reverse()
    body["edges"].reverse()
    again = client.post("/v1/workflows", json=body)

    assert again.status_code == 200
    assert again.json()["version"] == 1
    assert [agent["agent_id"] for agent in again.json()["agents"]] == ["a0", "a1", "a2"]


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"client_id": "other"}, ["client_id"]),
        ({"name": "other"}, ["name"]),
        ({"ttl_s": 1}, ["ttl_s"]),
        ({"entry": ["a1"]}, ["entry"]),
        ({"edges": [*cycle()["edges"], {"source": "a0", "target": "a2"}]}, ["edges"]),
        (
            {"agents": [*cycle()["agents"][:2], {"agent_id": "a2", "fixed_prefix_tokens": 5}]},
            ["agents"],
        ),
        (cycle(agents=2), ["agents", "edges"]),
    ],
)
def test_create_again_with_other_content_names_what_differs(
    client: TestClient, change: dict[str, object], differing: list[str]
) -> None:
    client.post("/v1/workflows", json=cycle())

    answer = client.post("/v1/workflows", json=cycle() | change)

    assert answer.status_code == 409
    problem = answer.json()
    assert problem["type"] == "urn:kvflow:problem:workflow-exists"
    assert problem["workflow_id"] == "w"
    assert [error["field"] for error in problem["errors"]] == differing
    assert client.get("/v1/workflows/w").json()["client_id"] == "default"


def test_an_event_moves_the_steps(client: TestClient) -> None:
    client.post("/v1/workflows", json=cycle())

    answer = client.post("/v1/workflows/w/events", json=started("a0"))

    assert answer.status_code == 200
    assert answer.json() == {
        "version": 1,
        "applied": 1,
        "duplicates": 0,
        "mispredictions": 0,
        "steps_to_execution": {"a0": 0, "a1": 1, "a2": 2},
    }
    assert client.get("/v1/workflows/w/steps").json() == {
        "version": 1,
        "steps_to_execution": {"a0": 0, "a1": 1, "a2": 2},
    }
    view = client.get("/v1/workflows/w").json()
    assert [agent["running"] for agent in view["agents"]] == [1, 0, 0]
    assert view["steps_started"] == 1


def test_an_agent_that_cannot_run_again_has_null(client: TestClient) -> None:
    line = {
        "workflow_id": "line",
        "agents": [{"agent_id": "a"}, {"agent_id": "b"}],
        "edges": [{"source": "a", "target": "b"}],
        "entry": ["a"],
    }
    client.post("/v1/workflows", json=line)

    client.post("/v1/workflows/line/events", json=[started("a"), finished("a"), started("b")])

    assert steps(client, "line") == {"a": None, "b": 0}


def test_a_list_of_events_counts_what_happened(client: TestClient) -> None:
    client.post("/v1/workflows", json=cycle())

    answer = client.post(
        "/v1/workflows/w/events",
        json=[started("a0", "s1"), started("a0", "s1"), finished("a0", "s1"), started("a2")],
    )

    assert answer.json() | {"steps_to_execution": None} == {
        "version": 3,
        "applied": 3,
        "duplicates": 1,
        "mispredictions": 1,
        "steps_to_execution": None,
    }


@pytest.mark.parametrize(
    ("bad_event", "status", "field"),
    [
        (started("nobody"), 404, "[2].agent_id"),
        (finished("a2"), 409, "[2].agent_id"),
        (finished("a0", "unknown"), 409, "[2].step_id"),
        (started("a1", "s1"), 409, "[2].step_id"),
        ({"type": "step_started"}, 422, "[2].agent_id"),
        ({"type": "stopped", "agent_id": "a0"}, 422, "[2].type"),
    ],
)
def test_a_list_with_a_wrong_event_changes_nothing(
    client: TestClient, bad_event: dict[str, object], status: int, field: str
) -> None:
    client.post("/v1/workflows", json=cycle())
    before = client.get("/v1/workflows/w").json()

    answer = client.post(
        "/v1/workflows/w/events",
        json=[started("a0", "s1"), started("a0", "s2"), bad_event, finished("a0", "s1")],
    )

    assert answer.status_code == status
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert client.get("/v1/workflows/w").json() == before


@pytest.mark.parametrize(
    ("bad_event", "status", "field"),
    [
        (started("nobody"), 404, "agent_id"),
        (finished("a0"), 409, "agent_id"),
        ({"type": "step_started", "agent_id": "a0", "step": "s"}, 422, "step"),
    ],
)
def test_a_wrong_single_event_is_named_without_an_index(
    client: TestClient, bad_event: dict[str, object], status: int, field: str
) -> None:
    client.post("/v1/workflows", json=cycle())

    answer = client.post("/v1/workflows/w/events", json=bad_event)

    assert answer.status_code == status
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert "event_index" not in answer.json()
    assert steps(client) == {"a0": 1, "a1": 2, "a2": 3}


def test_delete(client: TestClient) -> None:
    client.post("/v1/workflows", json=cycle())
    client.post("/v1/workflows/w/events", json=started("a0"))

    gone = client.delete("/v1/workflows/w")

    assert gone.status_code == 204
    assert gone.content == b""
    for answer in (
        client.get("/v1/workflows/w"),
        client.get("/v1/workflows/w/steps"),
        client.post("/v1/workflows/w/events", json=finished("a0")),
        client.delete("/v1/workflows/w"),
    ):
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:kvflow:problem:workflow-not-found"
        assert answer.json()["workflow_id"] == "w"
    again = client.post("/v1/workflows", json=cycle(agents=2))
    assert (again.status_code, again.json()["version"]) == (201, 0)


def test_list_goes_page_by_page(client: TestClient) -> None:
    for i in range(7):
        body = cycle(f"w{i}", client_id="odd" if i % 2 else "even")
        assert client.post("/v1/workflows", json=body).status_code == 201

    pages, page = [], None
    while True:
        params = {"limit": "3"} | ({"page": page} if page else {})
        answer = client.get("/v1/workflows", params=params).json()
        pages.append([workflow["workflow_id"] for workflow in answer["workflows"]])
        page = answer["next_page"]
        if page is None:
            break

    assert pages == [["w0", "w1", "w2"], ["w3", "w4", "w5"], ["w6"]]
    odd = client.get("/v1/workflows", params={"client_id": "odd"}).json()
    assert [workflow["workflow_id"] for workflow in odd["workflows"]] == ["w1", "w3", "w5"]
    assert client.get("/v1/workflows?client_id=nobody").json() == {
        "workflows": [],
        "next_page": None,
    }


def test_a_full_last_page_has_no_next(client: TestClient) -> None:
    for i in range(2):
        client.post("/v1/workflows", json=cycle(f"w{i}"))

    assert client.get("/v1/workflows?limit=2").json()["next_page"] is None
