"""Engines' reports: taken, held for a lease, shown and published."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.protocol import EngineReport
from kvflow.server import Service
from kvflow.server import engine_reports as engine_reports_module
from kvflow.server.engine_reports import LOST_KEPT_S, EngineReports
from kvflow.server.event_bus import EventBus
from kvflow.server.metrics import ServiceMetrics
from tests.server.conftest import FakeClock
from tests.server.reports import placed, report

KEY = ("default", "a")


@pytest.fixture
def bus() -> EventBus:
    return EventBus(ServiceMetrics())


@pytest.fixture
def reports(clock: FakeClock, bus: EventBus) -> EngineReports:
    return EngineReports(clock, bus)


def accept(reports: EngineReports, *args: Any, engine_id: str = "e", **fields: Any) -> bool:
    """Whether all agents are asked for."""
    body = EngineReport.model_validate(report(*args, **fields))
    return reports.accept(engine_id, body).send_all


def known(reports: EngineReports, key: tuple[str, str] = KEY) -> list[tuple[str, int]]:
    return [(engine.engine_id, one.device_tokens) for engine, one in reports.placements(key)]


class TestPlacements:
    def test_changes_build_on_the_report_before(self, reports: EngineReports) -> None:
        assert not accept(reports, 1, agents=[placed("a", 9, 9), placed("b", 9)])
        assert not accept(reports, 2, agents_are="changes", agents=[placed("a", 9, 4)])
        assert known(reports) == [("e", 4)]
        assert known(reports, ("default", "b")) == [("e", 0)]
        assert not accept(reports, 3, agents_are="changes", forgotten=[["default", "a"]])
        assert known(reports) == []

    def test_all_replace_what_was_there(self, reports: EngineReports) -> None:
        accept(reports, 1, agents=[placed("a", 9, 9)])
        accept(reports, 2, agents=[placed("b", 9, 9)])
        assert known(reports) == []

    @pytest.mark.parametrize(
        "second", [{"number": 3}, {"number": 2, "run_id": "run-2"}, {"number": 1}]
    )
    def test_changes_to_what_is_not_here_are_not_applied(
        self, reports: EngineReports, second: dict[str, Any]
    ) -> None:
        accept(reports, 1, agents=[placed("a", 9, 9)])
        assert accept(reports, agents_are="changes", agents=[placed("b", 9, 9)], **second)
        assert known(reports) == []
        assert known(reports, ("default", "b")) == []

    def test_a_service_that_has_restarted_asks_for_all(self, reports: EngineReports) -> None:
        assert accept(reports, 7, agents_are="changes")
        assert not accept(reports, 8, agents=[placed("a", 9, 9)])
        assert known(reports) == [("e", 9)]

    def test_each_engine_that_knows_the_agent(self, reports: EngineReports) -> None:
        accept(reports, 1, engine_id="e1", agents=[placed("a", 9, 9)])
        accept(reports, 1, engine_id="e2", agents=[placed("a", 9, 2)])
        accept(reports, 1, engine_id="e3", agents=[placed("b", 9, 2)])
        assert known(reports) == [("e1", 9), ("e2", 2)]

    def test_memory_is_bounded(
        self, reports: EngineReports, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_reports_module, "MAX_PLACEMENTS", 3)
        many = [placed(f"a{n}", 9, 9) for n in range(5)]
        accept(reports, 1, engine_id="e1", agents=many)
        accept(reports, 1, engine_id="e2", agents=many)
        assert [len(engine.agents) for engine in reports.engines()] == [3, 0]
        accept(reports, 2, engine_id="e1", agents=many[:1])
        accept(reports, 2, engine_id="e2", agents=many)
        assert [len(engine.agents) for engine in reports.engines()] == [1, 2]


class TestLease:
    def test_is_three_intervals_and_five_seconds_at_least(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        accept(reports, 1, engine_id="slow", interval_s=10.0)
        accept(reports, 1, engine_id="quick", interval_s=0.1)
        left = {one.engine_id: one.lease_left_s(clock.now_s) for one in reports.engines()}
        assert left == {"slow": 30.0, "quick": 5.0}

    def test_when_it_is_over_prefixes_are_nowhere_known(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        accept(reports, 1, agents=[placed("a", 9, 9)])
        clock.now_s += 5.9
        assert known(reports) == [("e", 9)]
        clock.now_s += 0.2
        assert known(reports) == []
        (engine,) = reports.engines()
        assert engine.agents == {}
        assert accept(reports, 2, agents_are="changes")

    def test_the_engine_is_shown_for_ten_minutes_more(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        accept(reports, 1)
        clock.now_s += 6 + LOST_KEPT_S
        assert len(reports.engines()) == 1
        clock.now_s += 1
        assert reports.engines() == []

    def test_so_many_engines_and_no_more(
        self, reports: EngineReports, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_reports_module, "MAX_ENGINES", 2)
        for number in range(4):
            clock.now_s += 1
            accept(reports, 1, engine_id=f"e{number}")
        assert [engine.engine_id for engine in reports.engines()] == ["e2", "e3"]


class TestFigures:
    def test_what_has_grown_since_the_report_before(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        accept(reports, 1, totals={"prompt_tokens": 10}, counts=(1, 0, 0, 0, 0))
        accept(reports, 2, totals={"prompt_tokens": 25}, counts=(1, 2, 0, 0, 0))
        total = reports.history.sum(clock.now_s)
        assert total.counts["prompt_tokens"] == 25
        assert total.first_token_counts == [1, 2, 0, 0, 0]

    def test_what_an_engine_counted_before_it_was_known_is_left_out(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        accept(reports, 50, totals={"prompt_tokens": 10_000})
        accept(reports, 51, totals={"prompt_tokens": 10_030})
        assert reports.history.sum(clock.now_s).counts["prompt_tokens"] == 30

    def test_an_engine_that_starts_anew_counts_from_nothing(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        accept(reports, 1, totals={"prompt_tokens": 100})
        accept(reports, 1, run_id="run-2", totals={"prompt_tokens": 5})
        assert reports.history.sum(clock.now_s).counts["prompt_tokens"] == 105

    def test_all_engines_together_and_each_for_itself(
        self, reports: EngineReports, clock: FakeClock
    ) -> None:
        for engine_id, tokens in (("e1", 10), ("e2", 30)):
            accept(reports, 1, engine_id=engine_id, totals={"prompt_tokens": tokens})
        assert reports.history.sum(clock.now_s).counts["prompt_tokens"] == 40
        each = [one.recent.sum(clock.now_s).counts["prompt_tokens"] for one in reports.engines()]
        assert each == [10, 30]


async def test_the_bus_is_told(reports: EngineReports, bus: EventBus) -> None:
    accept(reports, 1)
    with bus.subscribe({"engine.report"}) as events, bus.subscribe(namespace="client") as others:
        accept(reports, 2, agents=[placed("a", 9, 9)], totals={"requests": 3})
        (event,) = await events.take()
        assert others.waiting == 0
    assert event.data["engine_id"] == "e"
    assert event.data["agents"] == 1
    assert event.data["totals"]["requests"] == 3
    assert event.data["device"] == {"size_tokens": 1000, "used_tokens": 400}
    assert event.data["host"] is None


class TestRoute:
    def test_takes_a_report(self, client: TestClient) -> None:
        answer = client.post("/v1/engines/e1/report", json=report())
        assert (answer.status_code, answer.json()) == (200, {"send_all": False})

    def test_unknown_fields_are_left_alone(self, client: TestClient) -> None:
        answer = client.post("/v1/engines/e1/report", json=report(news_of_a_later_version=1))
        assert answer.status_code == 200

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"number": 0}, "number"),
            ({"interval_s": 0}, "interval_s"),
            ({"agents": [{"agent_id": "a", "tokens": 1}]}, "agents[0].client_id"),
            ({"agents": [placed("a b", 1)]}, "agents[0].agent_id"),
            ({"totals": {"requests": -1}}, "totals.requests"),
            ({"first_token": {"bounds_s": [1], "counts": [1]}}, "first_token"),
            ({"first_token": {"bounds_s": [2, 1], "counts": [1, 0, 0]}}, "first_token"),
            ({"agents": [placed("a", 1)] * 2001}, "agents"),
        ],
    )
    def test_says_what_is_wrong(
        self, client: TestClient, fields: dict[str, Any], field: str
    ) -> None:
        answer = client.post("/v1/engines/e1/report", json=report() | fields)
        assert answer.status_code == 422
        assert field in [error["field"] for error in answer.json()["errors"]]

    def test_an_engine_id_is_an_identifier(self, client: TestClient) -> None:
        assert client.post("/v1/engines/-x/report", json=report()).status_code == 422

    def test_is_shown_with_the_connected_engine(self, client: TestClient, service: Service) -> None:
        with service.streams.subscribe("e1"), service.streams.subscribe("e2"):
            client.post("/v1/engines/e1/report", json=report(agents=[placed("a", 9, 9)]))
            first, second = client.get("/v1/engines").json()["engines"]
        assert first["report"]["model"] == "tiny"
        assert first["report"]["agents"] == 1
        assert first["report"]["lease_left_s"] == 6.0
        assert second["report"] is None
