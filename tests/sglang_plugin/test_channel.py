"""The engine's connection to the service, against the real service and against broken ones."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest

from kvflow.server import ServiceSettings
from kvflow.sglang_plugin.channel import WORKFLOWS_PER_MESSAGE, ServiceChannel
from kvflow.sglang_plugin.control import ControlMessage, LeaseLost, ServiceUpdate
from kvflow.sglang_plugin.settings import PluginSettings
from kvflow.sglang_plugin.weights import WorkflowWeights
from tests.server.running import eventually, running_service
from tests.server.workflow_bodies import cycle, finished, started


class Receiver:
    """Takes messages as the scheduler does, and applies them to weights."""

    def __init__(self, url: str, **settings: object) -> None:
        self.channel = ServiceChannel(url, PluginSettings(engine_id="e", **settings))  # type: ignore[arg-type]
        self.weights = WorkflowWeights(lambda owner: None, lambda owner: None)
        self.messages: list[ControlMessage] = []

    def drain(self) -> None:
        for message in self.channel.take():
            self.messages.append(message)
            self.weights.apply(message)

    def until(self, condition: Callable[[], bool]) -> None:
        def check() -> bool:
            self.drain()
            return condition()

        eventually(check)

    def steps(self, agent_id: str, client_id: str = "default") -> float:
        return self.weights.prefix_owner(client_id, agent_id, None).steps


@contextmanager
def receiving(url: str, **settings: object) -> Iterator[Receiver]:
    receiver = Receiver(url, **settings)
    receiver.channel.start()
    try:
        yield receiver
    finally:
        receiver.channel._stop.set()


@contextmanager
def answering(*bodies: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each connection with the next body (the last one again and again)."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    requests: list[bytes] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(bodies[min(len(requests), len(bodies)) - 1])
                connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        done.set()
        thread.join()
        listener.close()


def sse(*events: tuple[str, str]) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    return head + b"".join(f"event: {e}\ndata: {d}\n\n".encode() for e, d in events)


EMPTY_SNAPSHOT = '{"seq": 0, "lease_s": 10, "workflows": []}'
SETTINGS = ServiceSettings(port=0, lease_s=10)


def test_snapshot_then_deltas_then_closed() -> None:
    with running_service(SETTINGS) as service, httpx2.Client(base_url=service.url) as client:
        client.post("/v1/workflows", json=cycle("w")).raise_for_status()
        with receiving(service.url) as receiver:
            receiver.until(lambda: receiver.steps("a0") == 1)
            assert receiver.weights.lease_held
            client.post("/v1/workflows/w/events", json=started("a0")).raise_for_status()
            receiver.until(lambda: (receiver.steps("a0"), receiver.steps("a2")) == (0, 2))
            client.post("/v1/workflows/w/events", json=finished("a0")).raise_for_status()
            receiver.until(lambda: (receiver.steps("a1"), receiver.steps("a0")) == (1, 3))
            client.delete("/v1/workflows/w").raise_for_status()
            receiver.until(lambda: receiver.weights.live_workflows == 0)


def test_declared_choices_come_along() -> None:
    body = cycle("w")
    body["edges"].append({"source": "a0", "target": "a2", "kind": "choice", "probability": 0.2})
    with running_service(SETTINGS) as service, httpx2.Client(base_url=service.url) as client:
        client.post("/v1/workflows", json=body).raise_for_status()
        with receiving(service.url) as receiver:
            choices = receiver.weights.choices
            receiver.until(lambda: receiver.steps("a0") == 1)
            assert choices(("default", "w")) == {}
            client.post("/v1/workflows/w/events", json=started("a0")).raise_for_status()
            receiver.until(lambda: receiver.steps("a0") == 0)
            assert choices(("default", "w")) == {"a0": {"a1": 1.0, "a2": 0.2}}


def test_large_snapshot_is_handed_out_in_parts() -> None:
    count = WORKFLOWS_PER_MESSAGE * 2 + 5
    with running_service(SETTINGS) as service, httpx2.Client(base_url=service.url) as client:
        for number in range(count):
            client.post("/v1/workflows", json=cycle(f"w{number}")).raise_for_status()
        with receiving(service.url) as receiver:
            eventually(lambda: len(receiver.channel._queue) >= count / WORKFLOWS_PER_MESSAGE)
            receiver.drain()
            assert 0 < receiver.weights.live_workflows < count
            receiver.until(lambda: receiver.weights.live_workflows == count)
            updates = [m for m in receiver.messages if isinstance(m, ServiceUpdate)]
            assert max(len(u.workflows) for u in updates) <= WORKFLOWS_PER_MESSAGE
            assert [u.snapshot_begins for u in updates].count(True) == 1
            assert [u.snapshot_ends for u in updates].count(True) == 1
            assert updates[-1].snapshot_ends


def test_key_is_sent_and_a_wrong_one_explained(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServiceSettings(port=0, api_key="right")
    with running_service(settings) as service:
        with receiving(service.url, api_key="wrong") as receiver:
            receiver.until(lambda: "HTTP 401; set KVFLOW_API_KEY" in caplog.text)
            assert receiver.messages == []
            assert "kvflow serve" not in caplog.text  # it runs
        with receiving(service.url, api_key="right") as receiver:
            receiver.until(lambda: receiver.weights.lease_held)


def test_lease_is_lost_once_and_regained() -> None:
    with running_service(SETTINGS) as first, httpx2.Client(base_url=first.url) as client:
        client.post("/v1/workflows", json=cycle("w")).raise_for_status()
        port = int(first.url.rpartition(":")[2])
        with receiving(first.url, lease_s=0.6) as receiver:
            receiver.until(lambda: receiver.steps("a0") == 1)
            first.stop()
            receiver.until(lambda: not receiver.weights.lease_held)
            time.sleep(1.0)
            receiver.drain()
            assert [isinstance(m, LeaseLost) for m in receiver.messages].count(True) == 1
            assert receiver.steps("a0") == float("inf")
            second = SETTINGS.model_copy(update={"port": port})
            with _service_at(second) as url, httpx2.Client(base_url=url) as other:
                other.post("/v1/workflows", json=cycle("w2")).raise_for_status()
                receiver.until(lambda: receiver.steps("a0") == 1)
                assert receiver.weights.lease_held


@contextmanager
def _service_at(settings: ServiceSettings) -> Iterator[str]:
    from kvflow.server import build_service
    from kvflow.server.run import ServiceServer, listen

    server = ServiceServer(build_service(settings), settings)
    sockets = listen(settings.host, settings.port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{settings.port}"
    finally:
        server.should_exit = True
        thread.join(30)


def test_silent_service_loses_the_lease() -> None:
    """The connection stands, but nothing comes: heartbeats are what holds the lease."""
    silent = ServiceSettings(port=0, lease_s=3600)
    with running_service(silent) as service, receiving(service.url, lease_s=0.5) as receiver:
        receiver.until(lambda: any(isinstance(m, LeaseLost) for m in receiver.messages))


def test_lease_that_no_heartbeat_can_hold_is_explained_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_service(SETTINGS) as service:
        with receiving(service.url, lease_s=0.5) as receiver:
            receiver.until(lambda: "--lease-s 0.5" in caplog.text)
            receiver.until(lambda: any(isinstance(m, LeaseLost) for m in receiver.messages))
            receiver.until(lambda: receiver.weights.lease_held)
        with receiving(service.url, lease_s=5) as receiver:
            receiver.until(lambda: receiver.weights.lease_held)
    assert caplog.text.count("KVFLOW_LEASE_S is") == 1


def test_longer_lease_of_the_service_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A heartbeat that comes later than the lease which is assumed at first."""
    monkeypatch.setattr("kvflow.sglang_plugin.channel.DEFAULT_LEASE_S", 0.3)
    settings = ServiceSettings(port=0, lease_s=3)
    with running_service(settings) as service, receiving(service.url) as receiver:
        receiver.until(lambda: receiver.weights.lease_held)
        time.sleep(2.5)
        receiver.drain()
        assert not any(isinstance(m, LeaseLost) for m in receiver.messages)
    assert "no stream" not in caplog.text


def test_gap_is_answered_by_a_new_connection() -> None:
    broken = sse(("snapshot", EMPTY_SNAPSHOT), ("delta", '{"seq": 2, "workflows": []}'))
    with answering(broken) as (url, requests), receiving(url) as receiver:
        eventually(lambda: len(requests) >= 3)
        receiver.drain()
        assert all(isinstance(m, ServiceUpdate) and m.snapshot_begins for m in receiver.messages)


@pytest.mark.parametrize(
    "body",
    [
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        sse(("snapshot", "{")),
        sse(("snapshot", '{"seq": 0}')),
        sse(("delta", '{"seq": 0}')),
        sse(("snapshot", EMPTY_SNAPSHOT.replace('"seq": 0', '"seq": 4'))),
    ],
)
def test_nonsense_changes_nothing_and_is_tried_again(body: bytes) -> None:
    with answering(body) as (url, requests), receiving(url) as receiver:
        eventually(lambda: len(requests) >= 2)
        receiver.drain()
        assert receiver.messages == []


def test_comments_and_unknown_events_are_skipped() -> None:
    body = sse(
        ("news", "{}"), ("snapshot", EMPTY_SNAPSHOT), ("news", "x"), ("heartbeat", '{"seq": 1}')
    ).replace(b"event: news", b": comment\nevent: news")
    with answering(body) as (url, _), receiving(url) as receiver:
        receiver.until(lambda: receiver.weights.lease_held)


def test_service_that_is_not_there_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with receiving(f"http://127.0.0.1:{port}") as receiver:
        eventually(lambda: "kvflow serve" in caplog.text)
        time.sleep(0.5)
        receiver.drain()
    assert caplog.text.count("kvflow serve") == 1
    assert receiver.messages == []
