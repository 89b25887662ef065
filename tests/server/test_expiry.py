"""Workflows end ttl_s after their last event."""

from __future__ import annotations

from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.workflows import Workflows
from tests.server.conftest import FakeClock
from tests.server.workflow_bodies import cycle, started


def sweep(client: TestClient, workflows: Workflows) -> int:
    assert client.portal is not None
    return client.portal.call(workflows.sweep)


def test_a_workflow_expires_on_access(client: TestClient, clock: FakeClock) -> None:
    client.post("/v1/workflows", json=cycle(ttl_s=60))

    clock.now_s += 59.5
    assert client.get("/v1/workflows/w").json()["expires_in_s"] == 0.5
    clock.now_s += 0.5

    assert client.get("/v1/workflows/w/steps").status_code == 404
    assert client.get("/v1/workflows").json()["workflows"] == []
    assert client.post("/v1/workflows/w/events", json=started("a0")).status_code == 404
    assert client.delete("/v1/workflows/w").status_code == 404
    metrics = client.get("/metrics").text
    assert 'kvflow_workflows_closed_total{reason="expired"} 1.0' in metrics
    assert "kvflow_workflows 0.0" in metrics


def test_an_expired_id_can_be_created_anew(client: TestClient, clock: FakeClock) -> None:
    client.post("/v1/workflows", json=cycle(ttl_s=60))
    client.post("/v1/workflows/w/events", json=started("a0"))
    clock.now_s += 60

    answer = client.post("/v1/workflows", json=cycle(ttl_s=60, agents=2))

    assert (answer.status_code, answer.json()["version"]) == (201, 0)


def test_events_and_creating_again_renew_the_deadline_and_reading_does_not(
    client: TestClient, clock: FakeClock
) -> None:
    client.post("/v1/workflows", json=cycle(ttl_s=60))
    duplicate = started("a0", "s")

    for renewal in (
        lambda: client.post("/v1/workflows/w/events", json=duplicate),
        lambda: client.post("/v1/workflows/w/events", json=duplicate),
        lambda: client.post("/v1/workflows", json=cycle(ttl_s=60)),
    ):
        clock.now_s += 40
        assert client.get("/v1/workflows/w").json()["expires_in_s"] == 20
        assert renewal().status_code == 200
        assert client.get("/v1/workflows/w").json()["expires_in_s"] == 60


def test_a_refused_event_does_not_renew(client: TestClient, clock: FakeClock) -> None:
    client.post("/v1/workflows", json=cycle(ttl_s=60))
    clock.now_s += 40

    client.post("/v1/workflows/w/events", json=started("nobody"))

    assert client.get("/v1/workflows/w").json()["expires_in_s"] == 20


def test_sweep_ends_what_is_over_and_nothing_else(
    client: TestClient, service: Service, clock: FakeClock
) -> None:
    for i in range(600):
        body = cycle(f"w{i}", ttl_s=60 if i % 2 else 600)
        client.post("/v1/workflows", json=body)
    client.post("/v1/workflows/w1/events", json=started("a0"))
    clock.now_s += 30
    client.post("/v1/workflows/w3/events", json=started("a0"))
    clock.now_s += 30

    assert sweep(client, service.workflows) == 299
    assert "kvflow_workflows 301.0" in client.get("/metrics").text
    assert client.get("/v1/workflows/w3").status_code == 200
    assert sweep(client, service.workflows) == 0
    clock.now_s += 30
    assert sweep(client, service.workflows) == 1


def test_the_service_sweeps_by_itself(clock: FakeClock) -> None:
    service = build_service(ServiceSettings(sweep_interval_s=0.01), clock=clock)
    with TestClient(service.app) as client:
        client.post("/v1/workflows", json=cycle(ttl_s=60))
        clock.now_s += 60
        # Nothing touches the workflow; the wait ends at the test's own timeout if no sweep comes.
        while "kvflow_workflows 0.0" not in client.get("/metrics").text:
            pass
