"""The bus: who hears what, and what becomes of those who do not keep up."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from kvflow.server.event_bus import BusEvent, EventBus
from kvflow.server.metrics import ServiceMetrics

WAIT_S = 10


@pytest.fixture
def metrics() -> ServiceMetrics:
    return ServiceMetrics()


@pytest.fixture
def bus(metrics: ServiceMetrics) -> EventBus:
    return EventBus(metrics, max_waiting=3, clock=lambda: 7.0)


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name)


async def test_events_come_in_order_with_their_time(bus: EventBus) -> None:
    with bus.subscribe() as events:
        bus.publish("step.started", {"agent_id": "a"}, namespace="n")
        bus.publish("step.finished", {"agent_id": "a"}, namespace="n")

        first, second = await anext(events), await anext(events)

    assert first == BusEvent("step.started", {"agent_id": "a"}, "n")
    assert (second.kind, first.at_unix_s) == ("step.finished", 7.0)


async def test_only_what_was_asked_for_is_heard(bus: EventBus) -> None:
    with (
        bus.subscribe({"workflow.created"}) as created,
        bus.subscribe(namespace="mine") as mine,
        bus.subscribe({"engine.connected"}, "mine") as engines,
    ):
        bus.publish("workflow.created", {"n": 1}, namespace="mine")
        bus.publish("workflow.created", {"n": 2}, namespace="theirs")
        bus.publish("engine.connected", {"n": 3}, namespace=None)

        assert [event.data["n"] for event in await created.take()] == [1, 2]
        assert [event.data["n"] for event in await mine.take()] == [1]
        assert engines.waiting == 0  # engines are no client's own


async def test_wanted_tells_whether_data_must_be_made(bus: EventBus) -> None:
    assert not bus.wanted("step.started")
    with bus.subscribe({"step.started"}):
        assert bus.wanted("step.started")
        assert not bus.wanted("step.finished")
    assert not bus.wanted("step.started")


async def test_a_slow_listener_gets_what_it_has_and_learns_that_it_was_dropped(
    bus: EventBus, metrics: ServiceMetrics
) -> None:
    with bus.subscribe() as slow, bus.subscribe() as quick:
        for n in range(5):
            bus.publish("step.started", {"n": n})
            assert [event.data["n"] for event in await quick.take()] == [n]

        assert [event.data["n"] async for event in slow] == [0, 1, 2]
        assert slow.dropped
        assert not quick.dropped
        assert value(metrics.registry, "kvflow_event_listeners_dropped_total") == 1
        assert value(metrics.registry, "kvflow_event_listeners") == 1
    assert value(metrics.registry, "kvflow_event_listeners") == 0


async def test_closing_the_bus_ends_iterations_now_and_later(bus: EventBus) -> None:
    with bus.subscribe() as events:
        bus.publish("step.started", {})
        waiting = asyncio.create_task(collect(events))
        await asyncio.sleep(0)
        bus.close()

        assert len(await asyncio.wait_for(waiting, WAIT_S)) == 1
        assert not events.dropped
    with bus.subscribe() as late:
        assert await asyncio.wait_for(collect(late), WAIT_S) == []


async def test_a_cancelled_wait_loses_nothing(bus: EventBus) -> None:
    with bus.subscribe() as events:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await events.take()
        bus.publish("step.started", {"n": 1})

        assert [event.data["n"] for event in await events.take()] == [1]


async def test_a_listener_that_left_is_told_nothing(bus: EventBus) -> None:
    with bus.subscribe() as events:
        bus.publish("step.started", {})
    bus.publish("step.started", {})

    assert await asyncio.wait_for(collect(events), WAIT_S) == []


async def collect(events: object) -> list[BusEvent]:
    return [event async for event in events]  # type: ignore[attr-defined]
