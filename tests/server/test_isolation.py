"""Two clients of one service: neither sees, changes nor weighs what is the other's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings, build_service
from tests.server.conftest import FakeClock
from tests.server.keys.conftest import made
from tests.server.keys.made import MadeKeys, make_keys
from tests.server.workflow_bodies import cycle, finished, started

__all__ = ["made"]

CLIENTS = ("team-a", "team-b")


class As:
    """Requests with the key of one name."""

    def __init__(self, client: TestClient, made: MadeKeys, name: str) -> None:
        self._client = client
        self._headers = made.headers(name)

    def __call__(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        return self._client.request(method, path, json=body, params=query, headers=self._headers)


@pytest.fixture
def client(made: MadeKeys) -> Iterator[TestClient]:
    service = build_service(ServiceSettings(keys_file=made.path, sweep_interval_s=3600))
    with TestClient(service.app) as client:
        yield client


@pytest.fixture
def a(client: TestClient, made: MadeKeys) -> As:
    return As(client, made, "team-a")


@pytest.fixture
def b(client: TestClient, made: MadeKeys) -> As:
    return As(client, made, "team-b")


@pytest.fixture
def ops(client: TestClient, made: MadeKeys) -> As:
    return As(client, made, "ops")


def test_the_same_id_is_two_workflows(a: As, b: As) -> None:
    assert a("POST", "/v1/workflows", cycle("w")).status_code == 201
    answer = b("POST", "/v1/workflows", cycle("w", agents=5))

    assert answer.status_code == 201
    assert answer.json()["client_id"] == "team-b"
    assert len(a("GET", "/v1/workflows/w").json()["agents"]) == 3
    assert b("DELETE", "/v1/workflows/w").status_code == 204
    assert a("GET", "/v1/workflows/w").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/workflows/{}", None),
        ("GET", "/v1/workflows/{}/steps", None),
        ("DELETE", "/v1/workflows/{}", None),
        ("POST", "/v1/workflows/{}/events", started("a0")),
    ],
)
def test_anothers_workflow_is_as_one_that_never_was(
    a: As, b: As, method: str, path: str, body: Any
) -> None:
    a("POST", "/v1/workflows", cycle("real"))

    theirs = b(method, path.format("real"), body)
    none = b(method, path.format("none"), body)

    assert theirs.status_code == none.status_code == 404
    assert theirs.text.replace("real", "none") == none.text
    assert _telling(theirs) == _telling(none)


def _telling(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "x-request-id"}


def test_a_client_names_itself_or_nobody(a: As) -> None:
    assert a("POST", "/v1/workflows", cycle("w1", client_id="team-a")).status_code == 201
    assert a("POST", "/v1/workflows", cycle("w2")).json()["client_id"] == "team-a"
    for other in ("team-b", "default", "nobody"):
        for answer in (
            a("POST", "/v1/workflows", cycle("w3", client_id=other)),
            a("POST", "/v1/workflows", cycle("w3"), client_id=other),
            a("GET", "/v1/workflows", client_id=other),
            a("GET", "/v1/workflows/w1", client_id=other),
        ):
            assert answer.status_code == 403
            assert answer.json()["type"] == "urn:kvflow:problem:forbidden"
            (error,) = answer.json()["errors"]
            assert error["field"] == "client_id"
            assert "'team-a'" in error["problem"]
    assert a("GET", "/v1/workflows/w3").status_code == 404


def test_an_administrator_acts_for_clients(a: As, ops: As) -> None:
    a("POST", "/v1/workflows", cycle("w"))

    assert ops("GET", "/v1/workflows/w").status_code == 404
    assert ops("GET", "/v1/workflows/w", client_id="team-a").status_code == 200
    events = "/v1/workflows/w/events"
    assert ops("POST", events, started("a0"), client_id="team-a").status_code == 200
    assert a("GET", "/v1/workflows/w").json()["version"] == 1
    assert ops("DELETE", "/v1/workflows/w", client_id="team-a").status_code == 204
    assert a("GET", "/v1/workflows/w").status_code == 404


def test_an_administrator_has_to_mean_it(ops: As, a: As) -> None:
    answer = ops("POST", "/v1/workflows", cycle("w", client_id="team-a"))
    assert answer.status_code == 403
    assert "?client_id=team-a" in answer.json()["detail"]

    body = cycle("w", client_id="team-a")
    assert ops("POST", "/v1/workflows", body, client_id="team-a").status_code == 201
    assert a("GET", "/v1/workflows/w").status_code == 200
    assert ops("POST", "/v1/workflows", cycle("w", client_id="other")).status_code == 201


def test_an_administrator_lists_everything(a: As, b: As, ops: As) -> None:
    for one, workflow_id in ((a, "w1"), (b, "w1"), (b, "w2"), (ops, "w3")):
        assert one("POST", "/v1/workflows", cycle(workflow_id)).status_code == 201

    def listed(**query: str) -> list[tuple[str, str]]:
        found = []
        page: dict[str, str] = {}
        while True:
            answer = ops("GET", "/v1/workflows", limit="1", **query, **page).json()
            found += [(one["client_id"], one["workflow_id"]) for one in answer["workflows"]]
            if answer["next_page"] is None:
                return found
            page = {"page": answer["next_page"]}

    assert sorted(listed()) == [
        ("default", "w3"),
        ("team-a", "w1"),
        ("team-b", "w1"),
        ("team-b", "w2"),
    ]
    assert listed(client_id="team-b") == [("team-b", "w1"), ("team-b", "w2")]
    assert listed(client_id="nobody") == []


def steps_at_engines(service: Service) -> dict[tuple[str, str], Any]:
    """What an engine that connects now is told to weigh."""
    with service.streams.subscribe(None) as subscription:
        message = subscription.snapshot().decode()
    data = json.loads(message.split("data: ", 1)[1])
    return {
        (one["client_id"], one["workflow_id"]): (one["version"], one["steps_to_execution"])
        for one in data["workflows"]
    }


class TwoClients(RuleBasedStateMachine):
    """Whatever either does, the other's world is the one it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        made = make_keys(Path(self._folder.name) / "keys.json")
        self.service = build_service(
            ServiceSettings(keys_file=made.path, sweep_interval_s=3600), clock=FakeClock()
        )
        self._client = TestClient(self.service.app)
        self._client.__enter__()
        self.ask = {name: As(self._client, made, name) for name in CLIENTS}
        # What each has, as it was last answered: workflow_id -> version, number of agents.
        self.has: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in CLIENTS}

    def teardown(self) -> None:
        self._client.__exit__(None, None, None)
        self._folder.cleanup()

    who = st.sampled_from(CLIENTS)
    ids = st.sampled_from(["w1", "w2"])

    @rule(who=who, workflow_id=ids, agents=st.integers(2, 3), named=st.booleans())
    def create(self, who: str, workflow_id: str, agents: int, named: bool) -> None:
        body = cycle(workflow_id, agents=agents, **({"client_id": who} if named else {}))
        status = self.ask[who]("POST", "/v1/workflows", body).status_code
        existing = self.has[who].get(workflow_id)
        if existing is None:
            assert status == 201
            self.has[who][workflow_id] = (0, agents)
        else:
            assert status == (200 if existing[1] == agents else 409)

    @rule(who=who, workflow_id=ids)
    def create_as_the_other(self, who: str, workflow_id: str) -> None:
        other = CLIENTS[1 - CLIENTS.index(who)]
        body = cycle(workflow_id, client_id=other)
        assert self.ask[who]("POST", "/v1/workflows", body).status_code == 403

    @rule(who=who, workflow_id=ids)
    def delete(self, who: str, workflow_id: str) -> None:
        status = self.ask[who]("DELETE", f"/v1/workflows/{workflow_id}").status_code
        assert status == (204 if self.has[who].pop(workflow_id, None) else 404)

    @rule(who=who, workflow_id=ids, agent=st.sampled_from(["a0", "a1"]))
    def run_a_step(self, who: str, workflow_id: str, agent: str) -> None:
        events = [started(agent), finished(agent)]
        answer = self.ask[who]("POST", f"/v1/workflows/{workflow_id}/events", events)
        if workflow_id not in self.has[who]:
            assert answer.status_code == 404
            return
        version, agents = self.has[who][workflow_id]
        assert answer.json()["version"] == version + 2
        self.has[who][workflow_id] = (version + 2, agents)

    @invariant()
    def each_sees_its_own(self) -> None:
        for who in CLIENTS:
            listed = self.ask[who]("GET", "/v1/workflows").json()
            found = {
                one["workflow_id"]: (one["version"], len(one["agents"]))
                for one in listed["workflows"]
            }
            assert found == self.has[who]
            assert all(one["client_id"] == who for one in listed["workflows"])
            for workflow_id in ("w1", "w2"):
                answer = self.ask[who]("GET", f"/v1/workflows/{workflow_id}/steps")
                assert answer.status_code == (200 if workflow_id in self.has[who] else 404)

    @invariant()
    def engines_weigh_each_apart(self) -> None:
        expected = {
            (who, workflow_id): version
            for who in CLIENTS
            for workflow_id, (version, _) in self.has[who].items()
        }
        told = steps_at_engines(self.service)
        assert {key: version for key, (version, _) in told.items()} == expected
        for (who, workflow_id), (_, steps) in told.items():
            own = self.ask[who]("GET", f"/v1/workflows/{workflow_id}/steps").json()
            assert own["steps_to_execution"] == steps


TestTwoClients = TwoClients.TestCase
TestTwoClients.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
