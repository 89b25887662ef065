"""The engines' stream over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx2
import pytest
from pydantic import SecretStr

from kvflow.protocol import Delta, Heartbeat, Snapshot
from kvflow.server import ServiceSettings
from kvflow.server.direct_write import ChunkWriter
from tests.server.running import (
    PATIENCE_S,
    RunningService,
    eventually,
    running_service,
    stream,
)
from tests.server.workflow_bodies import cycle, finished, started


@pytest.fixture
def running() -> Iterator[RunningService]:
    # A lease that no test outlasts: what arrives is then there because of an event.
    settings = ServiceSettings(lease_s=3600, sweep_interval_s=0.05, shutdown_timeout_s=60)
    with running_service(settings) as service:
        yield service


@pytest.fixture
def http(running: RunningService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=PATIENCE_S) as client:
        yield client


def test_snapshot_then_deltas_in_sequence(http: httpx2.Client) -> None:
    http.post("/v1/workflows", json=cycle("before"))
    with stream(http) as reader:
        first = reader.next()
        assert isinstance(first, Snapshot)
        assert (first.seq, first.lease_s, first.more) == (0, 3600, False)
        assert [one.workflow_id for one in first.workflows] == ["before"]

        http.post("/v1/workflows", json=cycle("w", ttl_s=60))
        created = reader.next()
        http.post("/v1/workflows/w/events", json=[started("a0"), finished("a0"), started("a1")])
        moved = reader.next()
        http.delete("/v1/workflows/w")
        closed = reader.next()

        assert isinstance(created, Delta)
        assert isinstance(moved, Delta)
        assert isinstance(closed, Delta)
        assert (created.seq, moved.seq, closed.seq) == (1, 2, 3)
        assert (created.workflows[0].version, created.workflows[0].ttl_s) == (0, 60)
        assert [one.workflow_id for one in moved.workflows] == ["w"]
        assert moved.workflows[0].version == 3
        assert moved.workflows[0].steps_to_execution == {"a0": 2, "a1": 0, "a2": 1}
        assert [one.workflow_id for one in closed.closed] == ["w"]


def test_an_expired_workflow_is_closed_by_the_sweep(http: httpx2.Client) -> None:
    with stream(http) as reader:
        reader.next()
        http.post("/v1/workflows", json=cycle("w", ttl_s=0.2))

        created, closed = reader.next(), reader.next()

        assert isinstance(created, Delta)
        assert isinstance(closed, Delta)
        assert [one.workflow_id for one in created.workflows] == ["w"]
        assert [one.workflow_id for one in closed.closed] == ["w"]


def test_every_engine_is_told(http: httpx2.Client) -> None:
    with stream(http, "e1") as one, stream(http, "e2") as two:
        one.next()
        two.next()
        http.post("/v1/workflows", json=cycle("w"))
        for reader in (one, two):
            message = reader.next()
            assert isinstance(message, Delta)
            assert [each.workflow_id for each in message.workflows] == ["w"]

        engines = http.get("/v1/engines").json()["engines"]
        assert [(each["engine_id"], each["last_seq"]) for each in engines] == [("e1", 1), ("e2", 1)]
        assert all(each["connected_for_s"] >= 0 and each["pending"] == 0 for each in engines)
        assert "kvflow_engines_connected 2.0" in http.get("/metrics").text


def test_an_engine_that_goes_is_forgotten(http: httpx2.Client) -> None:
    with stream(http) as reader:
        reader.next()
        assert len(http.get("/v1/engines").json()["engines"]) == 1

    eventually(lambda: http.get("/v1/engines").json()["engines"] == [])
    assert "kvflow_engines_connected 0.0" in http.get("/metrics").text


def test_heartbeats_keep_an_idle_stream_alive() -> None:
    with (
        running_service(ServiceSettings(lease_s=0.3)) as running,
        httpx2.Client(base_url=running.url, timeout=PATIENCE_S) as http,
        stream(http) as reader,
    ):
        reader.next()
        beats = [reader.next(), reader.next()]

        assert all(isinstance(beat, Heartbeat) for beat in beats)
        assert [beat.seq for beat in beats if beat] == [1, 2]


def test_shutdown_ends_open_streams(running: RunningService, http: httpx2.Client) -> None:
    with stream(http) as reader:
        reader.next()

        running.stop()

        # An orderly end, not a connection torn down.
        assert reader.next() is None


def test_a_stream_needs_the_key() -> None:
    settings = ServiceSettings(api_key=SecretStr("k"))
    with (
        running_service(settings) as running,
        httpx2.Client(base_url=running.url, timeout=PATIENCE_S) as http,
    ):
        assert http.get("/v1/engines/stream").status_code == 401
        http.headers["Authorization"] = "Bearer k"
        with stream(http) as reader:
            assert isinstance(reader.next(), Snapshot)


def test_an_odd_engine_id_is_refused(http: httpx2.Client) -> None:
    answer = http.get("/v1/engines/stream?engine_id=a%20b")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "query.engine_id"


def test_an_engine_that_does_not_read_holds_nobody_up(
    running: RunningService, http: httpx2.Client
) -> None:
    # Each state of this workflow is over 50 kB, so that the connection is soon full.
    body = cycle("big", agents=200)
    names = {f"a{i}": f"a{i}-" + "x" * 240 for i in range(200)}
    body["agents"] = [{"agent_id": name, "join": "any"} for name in names.values()]
    body["edges"] = [
        {"source": names[edge["source"]], "target": names[edge["target"]]} for edge in body["edges"]
    ]
    body["entry"] = [names["a0"]]
    http.post("/v1/workflows", json=body)
    host, port = running.url.removeprefix("http://").split(":")
    with socket.socket() as engine:
        engine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        engine.connect((host, int(port)))
        engine.sendall(b"GET /v1/engines/stream HTTP/1.1\r\nHost: service\r\n\r\n")
        eventually(lambda: len(http.get("/v1/engines").json()["engines"]) == 1)

        events, pending = 0, 0
        while pending == 0:
            for kind in (started, finished):
                answer = http.post("/v1/workflows/big/events", json=kind(names["a0"]))
                assert answer.status_code == 200
                events += 1
            pending = http.get("/v1/engines").json()["engines"][0]["pending"]
            assert events < 10_000
        for _ in range(50):
            http.post("/v1/workflows/big/events", json=started(names["a0"]))
            events += 1
        # However much it missed, all that is kept for it is that one workflow has changed.
        assert http.get("/v1/engines").json()["engines"][0]["pending"] == 1

        engine.settimeout(PATIENCE_S)
        received = b""
        while f'"version":{events},'.encode() not in received:
            chunk = engine.recv(1 << 20)
            assert chunk
            received += chunk
        assert received.count(b"event: delta") < events


def test_changes_are_written_past_the_server_as_long_as_they_are_read(
    running: RunningService, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct: list[bytes] = []
    write = ChunkWriter.write

    def counted(self: ChunkWriter, message: bytes) -> None:
        direct.append(message)
        write(self, message)

    monkeypatch.setattr(ChunkWriter, "write", counted)
    http.post("/v1/workflows", json=cycle("w"))
    with stream(http) as reader:
        assert isinstance(reader.next(), Snapshot)
        for seq in range(1, 40):
            http.post("/v1/workflows/w/events", json=[started("a0"), finished("a0")])
            message = reader.next()
            assert isinstance(message, Delta)
            assert (message.seq, message.workflows[0].version) == (seq, 2 * seq)
    # The first may still be the sender's, which has just sent the snapshot.
    assert len(direct) >= 30
    eventually(lambda: not running.service.streams.subscriptions)
