"""Workflows that cannot be read back are over: for clients, engines and whatever comes after."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvflow.server import Service, ServiceSettings, build_service
from kvflow.server.store import Change, StoredState
from kvflow.server.store.sqlite import SQLiteStore
from kvflow.server.workflows import Workflows
from tests.server.running import eventually
from tests.server.store.servers import ValkeyServer, valkey_server
from tests.server.store.test_conformance import advanced
from tests.server.workflow_bodies import cycle, record, started

Damage = Callable[[], None]


@contextmanager
def serving(database: str) -> Iterator[tuple[Service, TestClient]]:
    service = build_service(ServiceSettings(database=database, sweep_interval_s=0.02))
    with TestClient(service.app) as client:
        yield service, client


def sqlite_damage(path: Path, statement: str) -> Damage:
    def damage() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount == 1

    return damage


def valkey_damage(server: ValkeyServer, *command: str) -> Damage:
    def damage() -> None:
        with server.client() as client:
            client.execute_command(*command)

    return damage


SQLITE = {
    "state": "REPLACE INTO states VALUES (1, 0, '{}')",
    "journal": "UPDATE journal SET events = '[7]' WHERE id = 1",
    "details": "UPDATE workflows SET details = json_remove(details, '$.ttl_s') WHERE id = 1",
    "graph": "UPDATE graphs SET content = '{}' WHERE id = 1",
}
VALKEY = {
    "state": ("HSET", "kvflow:workflow:/w", "state", "{}"),
    "details": ("HSET", "kvflow:workflow:/w", "details", "x"),
    "no graph": ("HDEL", "kvflow:workflow:/w", "graph"),
}


@pytest.fixture(params=[*(f"sqlite {name}" for name in SQLITE), *(f"valkey {n}" for n in VALKEY)])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Damage]]:
    kind, _, what = request.param.partition(" ")
    if kind == "sqlite":
        path = tmp_path / "workflows.db"
        yield str(path), sqlite_damage(path, SQLITE[what])
    else:
        with valkey_server(tmp_path) as server:
            yield server.address, valkey_damage(server, *VALKEY[what])


def test_it_is_over_when_it_is_used(
    damaged: tuple[str, Damage], caplog: pytest.LogCaptureFixture
) -> None:
    database, damage = damaged
    with serving(database) as (_, client):
        client.post("/v1/workflows", json=cycle("w", agents=4))
        client.post("/v1/workflows/w/events", json=started("a0"))
        client.post("/v1/workflows", json=cycle("other"))
    damage()

    with serving(database) as (service, client):
        assert set(service.streams.keys()) == {("default", "w"), ("default", "other")}
        answer = client.post("/v1/workflows/w/events", json=started("a1"))
        assert answer.status_code == 404
        eventually(lambda: service.streams.keys() == (("default", "other"),))
        assert "cannot be read back" in caplog.text
        assert client.get("/v1/workflows/other").status_code == 200
        assert len(client.get("/v1/workflows").json()["workflows"]) == 1
        assert client.post("/v1/workflows", json=cycle("w")).status_code == 201
        eventually(lambda: len(service.streams.keys()) == 2)

    with serving(database) as (service, client):
        assert client.get("/v1/workflows/w").status_code == 200


def test_one_that_nobody_uses_ends_in_time_and_keeps_no_other_from_it(
    damaged: tuple[str, Damage],
) -> None:
    database, damage = damaged
    with serving(database) as (_, client):
        client.post("/v1/workflows", json=cycle("w", agents=4, ttl_s=0.5))
        client.post("/v1/workflows/w/events", json=started("a0"))
        client.post("/v1/workflows", json=cycle("other", ttl_s=0.5))
    damage()

    with serving(database) as (service, client):
        assert client.get("/v1/workflows").status_code == 200
        eventually(lambda: service.streams.keys() == ())
        assert client.get("/v1/overview/workflows").json()["workflows"] == []


def test_one_whose_client_is_not_known_stops_no_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "workflows.db"
    with serving(str(path)) as (_, client):
        for name in ("a", "w", "z"):
            client.post("/v1/workflows", json=cycle(name))
    sqlite_damage(path, "UPDATE workflows SET details = '7' WHERE workflow_id = 'w'")()

    with serving(str(path)) as (service, client):
        assert set(service.streams.keys()) == {("default", "a"), ("default", "z")}
        assert "is dropped" in caplog.text
        assert client.post("/v1/workflows", json=cycle("w")).status_code == 201
        assert client.post("/v1/workflows", json=cycle("y")).status_code == 201
    with serving(str(path)) as (service, _):
        assert len(service.streams.keys()) == 4


async def test_one_that_is_just_being_deleted_is_not_taken_for_it(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "workflows.db", 10, in_memory=1)
    await store.insert(record("w"))
    kept = await advanced(store, ("", "w"), 1)
    await store.insert(record("other"))  # drives the first one out of memory
    write = store._writer.write

    async def write_slowly(one) -> None:  # type: ignore[no-untyped-def]
        await write(one)
        assert await store.get(("", "w")) is None

    store._writer.write = write_slowly  # type: ignore[method-assign]
    await store.delete(kept)
    store._writer.write = write  # type: ignore[method-assign]
    assert store._dropped.empty()
    assert await store.count() == 1
    await store.close()


async def test_a_key_is_taken_again_only_when_the_old_row_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or both would be in one transaction, which none of its writes would outlast."""
    path = tmp_path / "workflows.db"
    store = SQLiteStore(path, 1000)
    for name in ("w", "v"):
        await store.insert(record(name))
    await store.close()
    sqlite_damage(path, "INSERT INTO states VALUES (1, 0, '{}')")()

    store = SQLiteStore(path, 1000)
    commit, committing = store._writer._commit, threading.Event()

    def commit_slowly(writes: list[Any]) -> Exception | None:
        if not committing.is_set():
            committing.set()
            time.sleep(0.3)
        return commit(writes)

    monkeypatch.setattr(store._writer, "_commit", commit_slowly)

    async def make_again() -> None:
        if await store.get(("", "w")) is None:
            await store.insert(record("w"))

    # What follows is written in one transaction, as far as it does not wait for each other.
    first = asyncio.create_task(store.insert(record("first")))
    await asyncio.to_thread(committing.wait)
    # The first look goes on beside the second, as reading takes no lock.
    await asyncio.gather(first, store.get(("", "w")), make_again(), store.insert(record("x")))
    assert await store.get(("", "w")) is not None
    assert await store.count() == 4
    await store.close()


async def test_a_change_that_is_no_good_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvflow.server.workflows._FOLLOW_AGAIN_S", 0.0)
    service = build_service(ServiceSettings())
    service.streams.publish(StoredState(("c", "w"), "{}"))
    service.streams.publish(StoredState(("c", "lost"), "{}"))
    given = iter([ValueError("no good"), Change(("c", "w")), None])

    class Store:
        def live(self):  # type: ignore[no-untyped-def]
            return self._some([[StoredState(("c", "w"), "{}")]])

        async def changes(self):  # type: ignore[no-untyped-def]
            while (one := next(given)) is not None:
                if isinstance(one, Exception):
                    raise one
                yield [one]

        async def _some(self, lists):  # type: ignore[no-untyped-def]
            for one in lists:
                yield one

    workflows: Workflows = service.workflows
    workflows._store = Store()  # type: ignore[assignment]
    await asyncio.wait_for(workflows.follow(), 30)
    assert service.streams.keys() == ()
    assert "could not be told" in caplog.text
