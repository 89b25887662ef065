"""What the broker delivers twice, and whose workflows a topic reaches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.server import Service
from kvflow.server.identity import OPEN, Identity
from kvflow.server.keys import KeyRing
from kvflow.server.limits import DefaultLimits, Limits
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.mqtt.inbound import Delivery, Inbound
from kvflow.server.mqtt.metrics import MqttMetrics
from kvflow.server.mqtt.outbox import Outbox
from kvflow.server.mqtt.topics import Topics
from kvflow.server.store import StoreUnavailableError
from kvflow.server.workflows import EventsApplied, Workflows

NO_LIMITS = DefaultLimits(requests_per_s=None, events_per_s=None, max_workflows=None)
BODY = {"agents": [{"agent_id": "a"}], "entry": ["a"]}


class Broker:
    """Hands messages to an ``Inbound`` as a broker would."""

    def __init__(self, service: Service, limits: Limits | None = None) -> None:
        metrics = MqttMetrics(ServiceMetrics().registry)
        self.outbox = Outbox(metrics)
        self.outbox.connect()
        self.inbound = Inbound(
            service.workflows,
            Topics("k"),
            self.outbox,
            metrics,
            clock=lambda: 0.0,
            identity_of=lambda client_id: OPEN if limits is None else Identity(client_id, "client"),
            limits=limits or Limits(NO_LIMITS, KeyRing(None, None)),
            wait_s=1.0,
            max_payload_bytes=1000,
        )

    async def deliver(
        self, command: str, body: object, mid: int, *, again: bool = False, client_id: str = "c"
    ) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        topic = f"k/clients/{client_id}/workflows/w/{command}"
        await self.inbound.handle(Delivery(topic, payload, mid, again=again))

    def problems(self) -> list[tuple[str, int]]:
        sent = [(one.topic, json.loads(one.payload)) for one in self.outbox.take_now(100)]
        return [(topic, problem["status"]) for topic, problem in sent]


@pytest.fixture
def running(service: Service) -> Iterator[Service]:
    with TestClient(service.app):
        yield service


async def test_redelivered_events_without_an_id_count_once(running: Service) -> None:
    broker = Broker(running)
    started = {"type": "step_started", "agent_id": "a"}
    await broker.deliver("create", BODY, 1)
    await broker.deliver("events", started, 2)
    await broker.deliver("events", started, 2, again=True)
    assert (await running.workflows.get("w")).version == 1
    await broker.deliver("events", started, 3)  # a new message that says the same
    await broker.deliver("events", started, 4, again=True)  # lost before it reached us
    assert (await running.workflows.get("w")).version == 3
    assert broker.problems() == []


async def test_a_topic_reaches_workflows_of_its_client_only(running: Service) -> None:
    broker = Broker(running)
    await broker.deliver("create", BODY, 1)
    await broker.deliver("close", b"", 2, client_id="other")
    await broker.deliver("events", {"type": "step_started", "agent_id": "a"}, 3, client_id="other")
    assert (await running.workflows.get("w")).version == 0


async def test_too_long_and_too_deep_payloads_are_refused(running: Service) -> None:
    broker = Broker(running)
    await broker.deliver("create", b'"' + b"x" * 1000 + b'"', 1)
    await broker.deliver("events", b"[" * 900, 2)
    await broker.deliver("events", b"\xff", 3)
    await broker.deliver("events", b"[]", 4)
    topic = "k/clients/c/errors"
    assert broker.problems() == [(topic, 413), (topic, 400), (topic, 400), (topic, 422)]


async def test_a_clients_limits_hold_and_what_is_too_fast_waits(running: Service) -> None:
    limits = DefaultLimits(requests_per_s=None, events_per_s=20.0, max_workflows=1)
    broker = Broker(running, Limits(limits, KeyRing(None, None)))
    await broker.deliver("create", BODY, 1)
    payload = json.dumps(BODY).encode()
    await broker.inbound.handle(Delivery("k/clients/c/workflows/v/create", payload, 2))
    assert broker.problems() == [("k/clients/c/errors", 429)]
    started = {"type": "step_started", "agent_id": "a"}
    begun_s = time.monotonic()
    for number in range(5):
        await broker.deliver("events", [started] * 20, 3 + number)
    assert time.monotonic() - begun_s > 1.5
    assert (await running.workflows.get("w", namespace="c")).version == 100
    assert broker.problems() == []


async def test_the_store_is_away_for_a_moment(
    running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(running)
    await broker.deliver("create", BODY, 1)
    apply, tries = running.workflows.apply, 0

    async def failing_once(*arguments: Any, **more: Any) -> EventsApplied:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreUnavailableError("the disk is full")
        return await apply(*arguments, **more)

    monkeypatch.setattr(Workflows, "apply", staticmethod(failing_once))
    await broker.deliver("events", {"type": "step_started", "agent_id": "a"}, 2)
    assert tries == 2
    assert (await running.workflows.get("w")).version == 1
    assert broker.problems() == []
