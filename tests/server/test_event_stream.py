"""``/v1/events`` over real HTTP, and its response against a connection played by the test."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings
from kvflow.server.event_bus import EventBus
from kvflow.server.event_stream import EventStreamResponse
from kvflow.server.identity import IDENTITY_KEY, Identity
from kvflow.server.metrics import ServiceMetrics
from tests.server.running import PATIENCE_S, RunningService, running_service
from tests.server.test_sse import WAIT_S, Connection
from tests.server.workflow_bodies import cycle, finished, started

Message = tuple[str, dict[str, Any]]


class Reader:
    """Reads events off one connection and checks that their numbers have no gap."""

    def __init__(self, response: httpx2.Response) -> None:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        self._lines = response.iter_lines()
        self._seq = 0

    def next(self) -> Message | None:
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                break
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            return None
        data = json.loads(fields["data"])
        assert data["seq"] == int(fields["id"]) == self._seq
        self._seq += 1
        return fields["event"], data


@contextmanager
def reading(running: RunningService, query: str = "") -> Iterator[Reader]:
    with (
        httpx2.Client(base_url=running.url, timeout=PATIENCE_S) as http,
        http.stream("GET", f"/v1/events{query}") as response,
    ):
        reader = Reader(response)
        hello = reader.next()
        assert hello is not None
        assert hello[0] == "hello"
        yield reader


@pytest.fixture(scope="module")
def running() -> Iterator[RunningService]:
    with running_service(ServiceSettings(lease_s=3600, max_event_readers=2)) as service:
        yield service


@pytest.fixture
def http(running: RunningService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=PATIENCE_S) as client:
        yield client


def test_events_as_they_happen(running: RunningService, http: httpx2.Client) -> None:
    with reading(running) as reader:
        http.post("/v1/workflows", json=cycle("w"))
        http.post("/v1/workflows/w/events", json=[started("a0"), finished("a0")])
        http.delete("/v1/workflows/w")
        messages = [reader.next() for _ in range(4)]

    assert [message and message[0] for message in messages] == [
        *("workflow.created", "step.started", "step.finished", "workflow.closed"),
    ]
    assert messages[1] is not None
    event = messages[1][1]
    assert event["kind"] == "step.started"
    assert event["at_unix_s"] > 1_700_000_000
    assert event["data"] == {
        **{"client_id": "default", "workflow_id": "w", "version": 2},
        **{"agent_id": "a0", "step_id": None, "misprediction": False},
    }


def test_filters_by_kind_workflow_and_client(running: RunningService, http: httpx2.Client) -> None:
    with (
        reading(running, "?kind=step.started&kind=workflow.closed&workflow_id=one") as steps,
        reading(running, "?client_id=c2") as client,
    ):
        http.post("/v1/workflows", json=cycle("one"))
        http.post("/v1/workflows", json=cycle("two", client_id="c2"))
        http.post("/v1/workflows/two/events", json=started("a0"))
        http.post("/v1/workflows/one/events", json=[started("a0"), finished("a0")])
        http.delete("/v1/workflows/one")
        http.delete("/v1/workflows/two")

        found = [steps.next(), steps.next()]
        assert [m and m[0] for m in found] == ["step.started", "workflow.closed"]
        found = [client.next(), client.next(), client.next()]
        assert [m and m[0] for m in found] == [
            *("workflow.created", "step.started", "workflow.closed")
        ]
        assert all(m and m[1]["data"]["workflow_id"] == "two" for m in found)


def test_more_readers_than_allowed_are_refused(
    running: RunningService, http: httpx2.Client
) -> None:
    with reading(running), reading(running):
        answer = http.get("/v1/events")

    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:kvflow:problem:too-many-readers"
    assert "KVFLOW_MAX_EVENT_READERS" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["?kind=step", "?workflow_id=a%20b"])
def test_wrong_filters_are_named(http: httpx2.Client, query: str) -> None:
    answer = http.get(f"/v1/events{query}")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith("query." + query[1:].partition("=")[0])


def test_heartbeats_and_the_end() -> None:
    with running_service(ServiceSettings(lease_s=0.3)) as service, reading(service) as reader:
        beats = [reader.next(), reader.next()]
        assert [beat and beat[0] for beat in beats] == ["heartbeat", "heartbeat"]

        service.stop()

        last = reader.next()
        while last is not None and last[0] == "heartbeat":
            last = reader.next()
        assert last is not None
        assert (last[0], last[1]["reason"]) == ("end", "the service is shutting down")
        assert reader.next() is None


def parsed(messages: list[bytes]) -> list[Message]:
    found = re.findall(r"event: (\S+)\ndata: (.*)\n\n", b"".join(messages).decode())
    return [(name, json.loads(data)) for name, data in found]


async def test_a_slow_reader_is_told_that_it_was_dropped() -> None:
    bus = EventBus(ServiceMetrics(), max_waiting=10)
    connection = Connection()
    connection.open.set()
    response = EventStreamResponse(bus.subscribe, heartbeat_s=60, stall_s=60)
    task = asyncio.create_task(response({"type": "http"}, connection.receive, connection.send))
    await connection.until(1)

    connection.open.clear()
    for n in range(25):
        bus.publish("step.started", {"n": n})
        await asyncio.sleep(0)
    connection.open.set()
    await asyncio.wait_for(task, WAIT_S)

    messages = parsed(connection.messages())
    assert [data["seq"] for _, data in messages] == list(range(len(messages)))
    told = [data["data"]["n"] for name, data in messages if name == "step.started"]
    assert told == list(range(len(told)))  # complete up to where it was dropped
    assert 10 <= len(told) < 25
    assert messages[-1][0] == "dropped"
    assert "more than 10 were waiting" in messages[-1][1]["reason"]
    assert bus.listeners == 0


async def test_a_reader_that_takes_nothing_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus(ServiceMetrics())
    connection = Connection()
    connection.open.set()
    response = EventStreamResponse(bus.subscribe, heartbeat_s=60, stall_s=0.05)
    task = asyncio.create_task(response({"type": "http"}, connection.receive, connection.send))
    await connection.until(1)

    connection.open.clear()
    bus.publish("step.started", {})

    await asyncio.wait_for(task, WAIT_S)
    assert bus.listeners == 0
    assert "a reader of /v1/events has read nothing for 0.05 s" in caplog.text


@pytest.mark.parametrize(
    ("who", "seen"),
    [
        (Identity("c1", "client"), ["one"]),
        (Identity(None, "engine"), []),
        (Identity("c1", "admin"), ["one"]),
        (Identity(None, "admin"), ["one", "two", "engine"]),
        (Identity(None, "open"), ["one", "two", "engine"]),
    ],
)
async def test_who_sees_what(service: Service, who: Identity, seen: list[str]) -> None:
    connection = Connection()
    connection.open.set()
    scope = {
        **{"type": "http", "method": "GET", "path": "/v1/events", "query_string": b""},
        **{"headers": [], IDENTITY_KEY: who, "http_version": "1.1", "scheme": "http"},
    }
    task = asyncio.create_task(service.app(scope, connection.receive, connection.send))  # type: ignore[arg-type]
    await connection.until(1)
    service.bus.publish("workflow.created", {"n": "one"}, namespace="c1")
    service.bus.publish("workflow.created", {"n": "two"}, namespace="c2")
    service.bus.publish("engine.connected", {"n": "engine"}, namespace=None)
    service.bus.close()
    await asyncio.wait_for(task, WAIT_S)

    messages = parsed(connection.messages())
    assert [data["data"]["n"] for name, data in messages[1:-1]] == seen


def test_the_documented_example_has_the_real_fields(client: TestClient) -> None:
    doc = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    hello, event = parsed([doc[doc.index("event: hello") :].encode()])[:2]
    schema = client.get("/openapi.json").json()["components"]["schemas"]["ServiceEvent"]

    assert hello[0] == "hello"
    assert set(event[1]) == set(schema["properties"])
