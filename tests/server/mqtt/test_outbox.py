"""What waits to be published, and what does not."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from kvflow.server.mqtt.metrics import MqttMetrics
from kvflow.server.mqtt.outbox import Outbox, Outgoing


class Counted:
    def __init__(self, max_notices: int = 10) -> None:
        self.registry = CollectorRegistry()
        self.outbox = Outbox(MqttMetrics(self.registry), max_notices)

    def dropped(self) -> float:
        labels = {"kind": "notice", "outcome": "dropped"}
        return self.registry.get_sample_value("kvflow_mqtt_published_total", labels) or 0.0


def state(topic: str, payload: bytes) -> Outgoing:
    return Outgoing(topic, payload, retain=True)


async def test_a_state_goes_out_once_and_as_it_is_then() -> None:
    outbox = Counted().outbox
    outbox.connect()
    for number in range(10):
        outbox.keep("a", lambda number=number: b"%d" % number)  # type: ignore[misc]
    outbox.keep("b", lambda: b"b")
    outbox.clear("b")
    assert await outbox.take(10) == [state("a", b"9"), state("b", b"")]
    waiting = asyncio.create_task(outbox.take(10))
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.keep("a", lambda: b"new")
    assert await asyncio.wait_for(waiting, 5) == [state("a", b"new")]


async def test_a_connection_begins_with_all_states_and_nothing_else() -> None:
    counted = Counted()
    outbox = counted.outbox
    outbox.keep("a", lambda: b"1")
    outbox.keep("gone", lambda: b"2")
    outbox.clear("gone")
    outbox.send("notice", b"nobody hears it")
    outbox.connect()
    assert outbox.take_now(10) == [state("a", b"1")]
    outbox.disconnect()
    outbox.connect()
    assert outbox.take_now(10) == [state("a", b"1")]
    assert counted.dropped() == 1


async def test_notices_are_bounded_and_counted() -> None:
    counted = Counted(max_notices=2)
    counted.outbox.connect()
    for number in range(5):
        counted.outbox.send("n", b"%d" % number)
    assert counted.dropped() == 3
    assert [one.payload for one in await counted.outbox.take(1)] == [b"0"]
    counted.outbox.disconnect()
    assert counted.dropped() == 4
    counted.outbox.connect()
    assert counted.outbox.take_now(10) == []
