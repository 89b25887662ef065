"""What the service publishes on its bus while it is used."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.testclient import TestClient

from kvflow.server import Service
from kvflow.server.event_bus import BusEvent, Listener
from tests.server.conftest import FakeClock
from tests.server.workflow_bodies import cycle, finished, started


def taken(listener: Listener) -> list[BusEvent]:
    async def take() -> list[BusEvent]:
        return await listener.take() if listener.waiting else []

    return asyncio.run(take())


def told(listener: Listener) -> list[tuple[str, Any]]:
    return [(event.kind, event.data.get("agent_id")) for event in taken(listener)]


def test_the_life_of_a_workflow(client: TestClient, service: Service) -> None:
    with service.bus.subscribe() as listener:
        client.post("/v1/workflows", json=cycle("w", ttl_s=60))
        client.post("/v1/workflows", json=cycle("w", ttl_s=60))  # renews it, no more
        client.post(
            "/v1/workflows/w/events",
            json=[started("a0", "s"), started("a0", "s"), finished("a0", "s"), started("a2")],
        )
        client.delete("/v1/workflows/w")

        created, first, second, third, closed = taken(listener)
    who = {"client_id": "default", "workflow_id": "w"}
    assert created.kind == "workflow.created"
    assert created.data == {**who, "name": None, "ttl_s": 60.0, "agents": ["a0", "a1", "a2"]}
    assert (first.kind, second.kind, third.kind) == (
        *("step.started", "step.finished", "step.started"),
    )
    assert first.data == {
        **who,
        "version": 3,
        "agent_id": "a0",
        "step_id": "s",
        "misprediction": False,
    }
    assert second.data["prompt_tokens"] is None
    assert third.data["misprediction"] is True
    assert closed.kind == "workflow.closed"
    assert closed.data == {**who, "reason": "deleted"}


def test_token_counts_are_passed_on(client: TestClient, service: Service) -> None:
    client.post("/v1/workflows", json=cycle("w"))
    client.post("/v1/workflows/w/events", json=started("a0"))
    with service.bus.subscribe({"step.finished"}) as listener:
        body = {**finished("a0"), "prompt_tokens": 90, "cached_tokens": 80, "output_tokens": 5}
        client.post("/v1/workflows/w/events", json=body)

        (event,) = taken(listener)
    counts = {name: value for name, value in event.data.items() if name.endswith("_tokens")}
    assert counts == {"prompt_tokens": 90, "cached_tokens": 80, "output_tokens": 5}


def test_nothing_is_told_of_what_was_refused(client: TestClient, service: Service) -> None:
    client.post("/v1/workflows", json=cycle("w"))
    with service.bus.subscribe() as listener:
        client.post("/v1/workflows", json=cycle("w", ttl_s=1))
        client.post("/v1/workflows/w/events", json=[started("a0"), started("unknown")])

        assert told(listener) == []


def test_expiry_is_told(client: TestClient, service: Service, clock: FakeClock) -> None:
    client.post("/v1/workflows", json=cycle("w", ttl_s=5))
    with service.bus.subscribe() as listener:
        clock.now_s += 6
        assert client.get("/v1/workflows/w").status_code == 404

        (event,) = taken(listener)
    assert (event.kind, event.data["reason"]) == ("workflow.closed", "expired")


async def test_engines_come_and_go(service: Service) -> None:
    with service.bus.subscribe() as listener:
        with service.streams.subscribe("e1"):
            assert listener.waiting == 1

        assert [(event.kind, event.data, event.namespace) for event in await listener.take()] == [
            ("engine.connected", {"engine_id": "e1"}, None),
            ("engine.disconnected", {"engine_id": "e1"}, None),
        ]
