"""What the dashboard is drawn from."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.server import Service
from kvflow.server import overview as overview_module
from tests.server.conftest import FakeClock
from tests.server.reports import placed, report


def create(client: TestClient, workflow_id: str, **fields: Any) -> None:
    body = {
        "workflow_id": workflow_id,
        "agents": [{"agent_id": "a"}, {"agent_id": "b"}],
        "edges": [{"source": "a", "target": "b"}],
        "entry": ["a"],
        **fields,
    }
    client.post("/v1/workflows", json=body).raise_for_status()


def start(client: TestClient, workflow_id: str, agent_id: str) -> None:
    event = {"type": "step_started", "agent_id": agent_id}
    client.post(f"/v1/workflows/{workflow_id}/events", json=event).raise_for_status()


def send(client: TestClient, engine_id: str = "e1", **fields: Any) -> None:
    client.post(f"/v1/engines/{engine_id}/report", json=report(**fields)).raise_for_status()


def ids(answer: dict[str, Any]) -> list[str]:
    return [one["workflow_id"] for one in answer["workflows"]]


class TestOverview:
    def test_of_a_service_that_has_nothing(self, client: TestClient) -> None:
        answer = client.get("/v1/overview").json()
        assert (answer["live_workflows"], answer["engines_total"]) == (0, 0)
        assert answer["history"] == []
        assert answer["recent"]["hit_rate"] is None
        assert answer["recent"]["first_token_p50_s"] is None

    def test_states_of_engines(
        self, client: TestClient, service: Service, clock: FakeClock
    ) -> None:
        send(client, "lost")
        clock.now_s += 60
        send(client, "reports")
        with service.streams.subscribe("silent"), service.streams.subscribe("both"):
            send(client, "both")
            engines = client.get("/v1/overview").json()["engines"]
        assert [(one["engine_id"], one["state"]) for one in engines] == [
            ("both", "live"),
            ("lost", "lost"),
            ("reports", "live"),
            ("silent", "silent"),
        ]
        assert engines[0]["connected_for_s"] == 0.0
        assert engines[1]["report"]["lease_left_s"] == 0.0
        assert engines[3]["report"] is None

    def test_many_engines_are_searched(self, client: TestClient) -> None:
        for number in range(12):
            send(client, f"gpu-{number:02}")
        answer = client.get("/v1/overview", params={"engines_limit": 5}).json()
        assert (answer["engines_total"], len(answer["engines"])) == (12, 5)
        answer = client.get("/v1/overview", params={"engine_search": "GPU-1"}).json()
        assert [one["engine_id"] for one in answer["engines"]] == ["gpu-10", "gpu-11"]

    def test_figures(self, client: TestClient, clock: FakeClock) -> None:
        send(client, number=1, totals={"prompt_tokens": 100}, counts=(0, 0, 0, 0, 0))
        clock.now_s += 100
        totals = {"prompt_tokens": 300, "cached_tokens": 150, "prefetch_wasted_tokens": 7}
        send(client, number=2, totals=totals, counts=(0, 10, 0, 0, 0))
        answer = client.get("/v1/overview").json()
        assert answer["recent"]["hit_rate"] == 0.75
        assert answer["recent"]["prefetch_wasted_tokens"] == 7
        assert answer["recent"]["first_token_p50_s"] == pytest.approx(0.15)
        assert answer["slot_s"] == 10
        assert [(p["ago_s"], p["prompt_tokens"]) for p in answer["history"]] == [
            (90, 100),
            (-10, 200),
        ]


class TestWorkflowRows:
    def test_say_what_a_workflow_does(self, client: TestClient, clock: FakeClock) -> None:
        create(client, "w1", name="Review", client_id="team", ttl_s=100)
        start(client, "w1", "a")
        clock.now_s += 30
        (row,) = client.get("/v1/overview/workflows").json()["workflows"]
        assert row == {
            "namespace": "",
            "workflow_id": "w1",
            "client_id": "team",
            "name": "Review",
            "agents": 2,
            "running": ["a"],
            "running_count": 1,
            "next": ["b"],
            "steps_started": 1,
            "mispredictions": 0,
            "idle_s": 30.0,
            "expires_in_s": 70.0,
        }

    @pytest.mark.parametrize("limit", [1, 3, 7, 200])
    @pytest.mark.parametrize(
        "query", [{}, {"search": "W1"}, {"running": True}, {"search": "nothing"}]
    )
    def test_pages_are_all_there_is_and_nothing_twice(
        self,
        client: TestClient,
        monkeypatch: pytest.MonkeyPatch,
        limit: int,
        query: dict[str, Any],
    ) -> None:
        monkeypatch.setattr(overview_module, "_SCAN_STEP", 4)
        monkeypatch.setattr(overview_module, "_SCANNED_PER_PAGE", 8)
        for number in range(20):
            create(client, f"w{number:02}")
            if number % 3 == 0:
                start(client, f"w{number:02}", "a")
        wanted = [
            f"w{n:02}"
            for n in range(20)
            if ("search" not in query or query["search"].lower() in f"w{n:02}")
            and ("running" not in query or n % 3 == 0)
        ]
        found: list[str] = []
        page: dict[str, Any] = {}
        while True:
            answer = client.get(
                "/v1/overview/workflows", params={**query, **page, "limit": limit}
            ).json()
            assert len(answer["workflows"]) <= limit
            found += ids(answer)
            if answer["next_page"] is None:
                break
            page = {"page": answer["next_page"]}
        assert found == wanted

    def test_search_looks_at_id_name_and_client(self, client: TestClient) -> None:
        create(client, "w1", name="The Review")
        create(client, "w2", client_id="reviewers")
        create(client, "review-3")
        create(client, "w4")
        answer = client.get("/v1/overview/workflows", params={"search": "review"}).json()
        assert ids(answer) == ["review-3", "w1", "w2"]

    def test_a_page_that_is_none_is_refused(self, client: TestClient) -> None:
        assert client.get("/v1/overview/workflows", params={"page": "w 1"}).status_code == 422


class TestPicture:
    def test_where_each_prefix_is(self, client: TestClient) -> None:
        agents = ["device", "host", "storage", "gone", "nobody", "empty"]
        create(
            client,
            "w1",
            agents=[{"agent_id": agent} for agent in agents],
            edges=[],
            entry=agents,
        )
        send(
            client,
            agents=[
                placed("device", 90, 50, 40),
                placed("host", 90, 0, 60, 30),
                placed("storage", 90, 0, 0, 90),
                placed("gone", 90, 10),
                placed("empty", 0),
                placed("nobody", 90, 90) | {"client_id": "another"},
            ],
        )
        answer = client.get("/v1/overview/workflows/w1").json()
        assert answer["workflow"]["workflow_id"] == "w1"
        places = {one["agent_id"]: one["place"] for one in answer["placements"]}
        assert places == {**{a: a for a in agents}, "nobody": "unknown", "empty": "gone"}

    def test_the_nearest_engine_comes_first(self, client: TestClient) -> None:
        create(client, "w1")
        for number in range(6):
            send(client, f"e{number}", agents=[placed("a", 90, 10 * number)])
        first, _ = client.get("/v1/overview/workflows/w1").json()["placements"]
        assert first["engine_count"] == 6
        assert [one["engine_id"] for one in first["engines"]] == ["e5", "e4", "e3", "e2"]

    def test_unknown_ones(self, client: TestClient) -> None:
        answer = client.get("/v1/overview/workflows/w1")
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:kvflow:problem:workflow-not-found"
