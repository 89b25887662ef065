"""The stream's response against an ASGI server played by the test."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from kvflow.protocol import Delta
from kvflow.server.event_bus import EventBus
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.sse import EngineStreamResponse
from kvflow.server.stream import EngineStreams
from tests.server.workflow_bodies import record

WAIT_S = 10


class Connection:
    """A connection that takes messages only while it is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.grew = asyncio.Event()

    async def send(self, message: Any) -> None:
        await self.open.wait()
        self.sent.append(message)
        self.grew.set()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def messages(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message.get("body")]

    async def until(self, count: int) -> list[bytes]:
        async with asyncio.timeout(WAIT_S):
            while len(self.messages()) < count:
                self.grew.clear()
                await self.grew.wait()
        return self.messages()


@pytest.fixture
def streams() -> EngineStreams:
    metrics = ServiceMetrics()
    return EngineStreams(
        lease_s=10.0, heartbeat_s=60.0, clock=lambda: 0.0, metrics=metrics, bus=EventBus(metrics)
    )


def respond(
    streams: EngineStreams, connection: Connection, stall_s: float = 60.0
) -> asyncio.Task[None]:
    response = EngineStreamResponse(streams, "e", stall_s)
    scope = {"type": "http", "method": "GET", "path": "/v1/engines/stream"}
    return asyncio.create_task(
        response(scope, connection.receive, connection.send)  # type: ignore[arg-type]
    )


async def test_a_slow_reader_gets_the_last_state_in_one_message(streams: EngineStreams) -> None:
    connection = Connection()
    connection.open.set()
    workflow = record("w")
    streams.publish(workflow)
    task = respond(streams, connection)
    await connection.until(1)

    connection.open.clear()
    for _ in range(500):
        state = workflow.state.copy()
        state.start("a")
        workflow = replace(workflow, state=state)
        streams.publish(workflow)
        await asyncio.sleep(0)
    connection.open.set()
    messages = await connection.until(2)

    assert len(messages) == 2
    last = Delta.model_validate_json(messages[-1].decode().split("data: ")[1])
    assert (last.seq, [one.version for one in last.workflows]) == (1, [500])
    connection.gone.set()
    await asyncio.wait_for(task, WAIT_S)
    assert streams.subscriptions == ()


async def test_a_reader_that_takes_nothing_is_given_up(
    streams: EngineStreams, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection()
    connection.open.set()
    task = respond(streams, connection, stall_s=0.05)
    await connection.until(1)

    connection.open.clear()
    streams.publish(record("w"))

    await asyncio.wait_for(task, WAIT_S)
    assert streams.subscriptions == ()
    assert "has read nothing for 0.05 s" in caplog.text


async def test_a_lost_reader_is_unsubscribed_while_idle_and_while_stuck(
    streams: EngineStreams,
) -> None:
    idle, stuck = Connection(), Connection()
    idle.open.set()
    tasks = [respond(streams, idle), respond(streams, stuck)]
    await idle.until(1)
    assert len(streams.subscriptions) == 2

    idle.gone.set()
    stuck.gone.set()

    await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)
    assert streams.subscriptions == ()


async def test_two_engines_of_one_name_are_told_of(
    streams: EngineStreams, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Connection(), Connection()
    tasks = []
    for one in (first, second):
        assert "KVFLOW_ENGINE_ID" not in caplog.text
        one.open.set()
        tasks.append(respond(streams, one))
        await one.until(1)

    assert "engine e is connected already" in caplog.text
    first.gone.set()
    second.gone.set()
    await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)


async def test_cancelling_the_response_unsubscribes(streams: EngineStreams) -> None:
    connection = Connection()
    connection.open.set()
    task = respond(streams, connection)
    await connection.until(1)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, WAIT_S)
    assert streams.subscriptions == ()


async def test_shutdown_completes_the_response(streams: EngineStreams) -> None:
    connection = Connection()
    connection.open.set()
    task = respond(streams, connection)
    await connection.until(1)

    streams.shut_down()

    await asyncio.wait_for(task, WAIT_S)
    assert connection.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_headers(streams: EngineStreams) -> None:
    response = EngineStreamResponse(streams, None, 1.0)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert "content-length" not in response.headers
