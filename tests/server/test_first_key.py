"""A client gets its first key while workflows of its name live outside its namespace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.protocol import WorkflowSpec
from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.keys import change_key_file, create_key
from kvflow.server.store import StoredState
from tests.server.conftest import FakeClock
from tests.server.keys.conftest import made
from tests.server.keys.made import LONG_AGO, MadeKeys
from tests.server.running import eventually
from tests.server.workflow_bodies import cycle, started

__all__ = ["made"]


def add_key(path: Path, name: str) -> dict[str, str]:
    """The headers of a new client's first key."""
    new = change_key_file(path, lambda content: create_key(content, name, "client", LONG_AGO))
    return {"Authorization": f"Bearer {new.key}"}


def told(service: Service) -> dict[tuple[str, str], dict[str, Any]]:
    """What engines know."""
    with service.streams.subscribe("probe") as subscription:
        data = json.loads(subscription.snapshot().decode().split("data: ", 1)[1])
    return {(one["client_id"], one["workflow_id"]): one for one in data["workflows"]}


@pytest.fixture
def service(made: MadeKeys) -> Service:
    return build_service(ServiceSettings(keys_file=made.path, sweep_interval_s=0.02))


@pytest.fixture
def ops(service: Service, made: MadeKeys) -> Iterator[TestClient]:
    with TestClient(service.app, headers=made.headers("ops")) as client:
        yield client


def test_what_it_had_without_a_key_ends(
    ops: TestClient, service: Service, made: MadeKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name in ("w", "v"):
        assert ops.post("/v1/workflows", json=cycle(name, client_id="new")).status_code == 201
    ops.post("/v1/workflows", json=cycle("w2", client_id="another"))
    headers = add_key(made.path, "new")

    eventually(lambda: set(told(service)) == {("another", "w2")})
    assert "client new has keys now: 2 workflow(s)" in caplog.text
    assert ops.post("/v1/workflows/w/events", json=started("a0")).status_code == 404
    refused = ops.post("/v1/workflows", json=cycle("w", client_id="new"))
    assert refused.status_code == 403
    assert refused.json()["errors"][0]["field"] == "client_id"

    made_anew = ops.post("/v1/workflows", json=cycle("w"), headers=headers)
    assert made_anew.status_code == 201
    assert made_anew.json()["version"] == 0
    answer = ops.post("/v1/workflows/w/events", json=started("a0"), headers=headers)
    assert answer.json()["version"] == 1
    assert told(service)["new", "w"]["version"] == 1


def test_between_the_key_and_the_end_of_what_was_before(made: MadeKeys, clock: FakeClock) -> None:
    """Engines cannot tell the two apart, so there is never more than one."""
    service = build_service(
        ServiceSettings(keys_file=made.path, sweep_interval_s=3600), clock=clock
    )
    with TestClient(service.app, headers=made.headers("ops")) as ops:
        ops.post("/v1/workflows", json=cycle("w", client_id="new", ttl_s=60))
        ops.post("/v1/workflows/w/events", json=started("a0"))
        headers = add_key(made.path, "new")
        service.workflows._has_keys.__self__._look_at_s = 0.0  # type: ignore[attr-defined]

        clock.now_s += 30
        answer = ops.post("/v1/workflows", json=cycle("w", ttl_s=600), headers=headers)
        assert answer.status_code == 201
        assert told(service)["new", "w"]["version"] == 0
        assert ops.get("/v1/workflows/w").status_code == 404
        clock.now_s += 60
        assert ops.portal is not None
        ops.portal.call(service.workflows.sweep)
        assert ("new", "w") in told(service)
        assert service.streams.live_of("new") == 1


def test_a_service_that_has_keys_from_now_on(tmp_path: Path) -> None:
    """Open until now, on the same database."""
    database, keys = str(tmp_path / "workflows.db"), tmp_path / "keys.json"
    with TestClient(build_service(ServiceSettings(database=database)).app) as client:
        for name in ("w", "v"):
            client.post("/v1/workflows", json=cycle(name, client_id="new"))
        client.post("/v1/workflows", json=cycle("other"))
    headers = add_key(keys, "new")

    settings = ServiceSettings(database=database, keys_file=keys, sweep_interval_s=0.02)
    service = build_service(settings)
    with TestClient(service.app, headers=headers) as client:
        eventually(lambda: set(told(service)) == {("default", "other")})
        assert client.get("/v1/workflows").json()["workflows"] == []
        assert client.post("/v1/workflows", json=cycle("w")).status_code == 201

    # And one that has none from now on.
    service = build_service(ServiceSettings(database=database))
    with TestClient(service.app) as client:
        assert set(told(service)) == {("default", "other"), ("new", "w")}
        assert client.post("/v1/workflows", json=cycle("w", client_id="new")).status_code == 201
        assert set(told(service)) == {("default", "other"), ("new", "w")}
        assert client.delete("/v1/workflows/w").status_code == 204
        assert set(told(service)) == {("default", "other")}
    with TestClient(build_service(ServiceSettings(database=database)).app) as client:
        assert len(client.get("/v1/workflows").json()["workflows"]) == 1


async def test_two_that_were_there_before_this_was_seen_to(service: Service) -> None:
    """As of an older version's database: the client's own one stays, at the engines too."""
    workflows = service.workflows
    workflows._has_keys = lambda client_id: False
    spec = WorkflowSpec.model_validate(cycle("w", client_id="new"))
    record, _ = await workflows.create(spec)
    await workflows.create(spec, namespace="new")
    await workflows._store.insert(record)
    service.streams.publish(StoredState(("new", "w"), record.steps_json()))

    assert await workflows.end_outside({"new", "more"}) == {"new": 1}
    assert service.streams.keys() == (("new", "w"),)
    assert (await workflows.get("w", namespace="new")).namespace == "new"
    assert await workflows.end_outside({"new"}) == {}
