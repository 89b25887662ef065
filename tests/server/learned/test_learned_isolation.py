"""What a client's workflows have taught is that client's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from kvflow.server import ServiceSettings, build_service
from tests.server.keys.conftest import made
from tests.server.keys.made import MadeKeys
from tests.server.workflow_bodies import finished, started

__all__ = ["made"]


@pytest.fixture
def client(made: MadeKeys) -> Iterator[TestClient]:
    service = build_service(ServiceSettings(keys_file=made.path, sweep_interval_s=3600))
    with TestClient(service.app) as client:
        yield client


def taught(client: TestClient, headers: dict[str, str], agents: str) -> None:
    body = {"learn": True, "workflow_id": "w"}
    assert client.post("/v1/workflows", json=body, headers=headers).status_code == 201
    events = [event for agent in agents for event in (started(agent), finished(agent))]
    path = "/v1/workflows/w"
    assert client.post(f"{path}/events", json=events, headers=headers).status_code == 200
    assert client.delete(path, headers=headers).status_code == 204


def test_clients_neither_see_nor_forget_what_others_have_taught(
    client: TestClient, made: MadeKeys
) -> None:
    a, b = made.headers("team-a"), made.headers("team-b")
    taught(client, a, "abc")
    assert [f["family"] for f in client.get("/v1/learned", headers=a).json()["families"]] == [
        "from:a"
    ]
    assert client.get("/v1/learned", headers=b).json() == {"families": []}
    assert client.get("/v1/learned/from:a", headers=b).status_code == 404
    assert client.delete("/v1/learned/from:a", headers=b).status_code == 404
    asked = client.get("/v1/learned/from:a?client_id=team-a", headers=b)
    assert asked.status_code in (403, 404)
    assert client.get("/v1/learned/from:a", headers=a).json()["client_id"] == "team-a"


def test_an_administrator_looks_at_a_client_by_name(client: TestClient, made: MadeKeys) -> None:
    taught(client, made.headers("team-a"), "abc")
    ops = made.headers("ops")
    assert client.get("/v1/learned", headers=ops).json() == {"families": []}
    listed = client.get("/v1/learned?client_id=team-a", headers=ops).json()["families"]
    assert [one["client_id"] for one in listed] == ["team-a"]
    assert client.get("/v1/learned/from:a?client_id=team-a", headers=ops).status_code == 200


def test_nothing_is_shown_without_a_key(client: TestClient) -> None:
    assert client.get("/v1/learned").status_code == 401
