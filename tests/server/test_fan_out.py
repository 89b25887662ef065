"""Who is woken when, with an event loop that others use as well."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from kvflow.server.event_bus import EventBus
from kvflow.server.fan_out import FanOut
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.stream import EngineStreams
from tests.server.workflow_bodies import record


def waiting(fan_out: FanOut, count: int) -> list[asyncio.Event]:
    events = [asyncio.Event() for _ in range(count)]
    for one in events:
        fan_out.wait_for_news(one)
    return events


async def test_all_are_woken_in_turns_between_which_others_run() -> None:
    fan_out = FanOut()
    events = waiting(fan_out, 1_000)

    fan_out.all()

    woken = [sum(one.is_set() for one in events)]
    while woken[-1] < len(events):
        await asyncio.sleep(0)
        woken.append(sum(one.is_set() for one in events))
    assert woken[0] == 0
    assert max(after - before for before, after in pairwise(woken)) <= 16
    assert len(woken) >= 1_000 / 16


async def test_one_that_left_or_does_not_wait_is_not_woken() -> None:
    fan_out = FanOut()
    gone, named, other = waiting(fan_out, 3)
    fan_out.forget(gone)

    fan_out.some([named, gone, asyncio.Event()])
    await asyncio.sleep(0.01)

    assert [one.is_set() for one in (gone, named, other)] == [False, True, False]


async def test_a_change_before_its_turn_needs_no_second_wake() -> None:
    fan_out = FanOut()
    (wake,) = waiting(fan_out, 1)
    fan_out.all()
    fan_out.all()
    await asyncio.sleep(0.01)
    assert wake.is_set()

    fan_out.wait_for_news(wake)
    await asyncio.sleep(0.01)

    assert not wake.is_set()


async def test_a_workflow_that_came_and_went_says_nothing() -> None:
    metrics = ServiceMetrics()
    streams = EngineStreams(
        lease_s=10.0, heartbeat_s=60.0, clock=lambda: 0.0, metrics=metrics, bus=EventBus(metrics)
    )
    with streams.subscribe("e") as subscription:
        subscription.snapshot()
        next_message = asyncio.create_task(subscription.next_message())
        await asyncio.sleep(0)

        streams.publish(record("w"))
        streams.close(("c", "w"))
        await asyncio.sleep(0.05)
        assert not next_message.done()

        streams.publish(record("w"))
        make = await asyncio.wait_for(next_message, 10)
        assert make is not None
        assert b'"workflow_id":"w"' in make()
