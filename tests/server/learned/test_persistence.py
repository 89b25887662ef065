"""What was learned outlasts the service, a little behind what is known."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from kvflow.errors import FamilyNotFoundError
from kvflow.graph.learning import TransitionModel
from kvflow.graph.timing import FamilyDurations
from kvflow.server import ServiceSettings, build_service
from kvflow.server.learned import persistence as module
from kvflow.server.learned.entries import learned_text
from kvflow.server.learned.orders import LearnedOrders
from kvflow.server.learned.persistence import LearnedPersistence
from kvflow.server.store import LearnedKey, MemoryStore, StoreUnavailableError
from tests.graph.learning.playing import chain, whole
from tests.server.conftest import FakeClock
from tests.server.keys.conftest import made
from tests.server.keys.made import MadeKeys
from tests.server.learned.test_learned_api import begin, send, taught
from tests.server.workflow_bodies import started

__all__ = ["made"]


class CountingStore(MemoryStore):
    """Remembers what was written, write by write."""

    def __init__(self) -> None:
        super().__init__(10)
        self.writes: list[dict[LearnedKey, str | None]] = []
        self.away = False

    async def keep_learned(self, texts: Mapping[LearnedKey, str | None]) -> None:
        if self.away:
            raise StoreUnavailableError("away")
        self.writes.append(dict(texts))
        await super().keep_learned(texts)

    def families(self) -> list[str]:
        return sorted(key.family for key in self._learned)


def key(family: str, kind: str = "order") -> LearnedKey:
    return LearnedKey(kind, "", "default", family)  # type: ignore[arg-type]


def model(workflows: int = 3, agents: str = "abcd") -> TransitionModel:
    found = TransitionModel()
    for _ in range(workflows):
        whole(found, chain(agents))
    return found


def known(orders: LearnedOrders, family: str) -> TransitionModel:
    found = orders.known("order")["", "default", family]
    assert isinstance(found, TransitionModel)
    return found


async def reloaded(store: MemoryStore) -> LearnedOrders:
    orders = LearnedOrders()
    await LearnedPersistence(orders, store).load()
    return orders


async def test_it_comes_back() -> None:
    store, orders = CountingStore(), LearnedOrders()
    orders.restore(key("x"), model())
    durations = FamilyDurations()
    durations.learn_run("a", 2.5)
    orders.restore(key("x", "durations"), durations)
    await LearnedPersistence(orders, store).close()

    again = await reloaded(store)
    assert known(again, "x").successors("a") == ["b"]
    assert again.graph("", "default", "x").agent_ids == ("a", "b", "c", "d")
    assert [agent.expected_duration_s for agent in again.graph("", "default", "x").agents] == [
        *(2.5, None, None, None)
    ]


async def test_a_family_is_written_when_it_learned_and_not_again_at_once() -> None:
    store, orders, clock = CountingStore(), LearnedOrders(), FakeClock()
    persistence = LearnedPersistence(orders, store, clock=clock)
    for name in ("busy", "quiet"):
        orders.restore(key(name), model())
    orders.restore(key("nothing-yet"), TransitionModel())
    await persistence.look()
    assert [sorted(one.family for one in write) for write in store.writes] == [["busy", "quiet"]]

    for _ in range(20):
        clock.now_s += 1
        whole(known(orders, "busy"), chain("abcd"))
        await persistence.look()
    assert store.families() == ["busy", "quiet"]
    assert [list(write) for write in store.writes[1:]] == [[key("busy")]] * 4
    assert known(await reloaded(store), "busy").revision == known(orders, "busy").revision


async def test_many_families_are_written_some_at_a_time_and_none_is_left_out() -> None:
    store, orders, clock = CountingStore(), LearnedOrders(), FakeClock()
    persistence = LearnedPersistence(orders, store, clock=clock)
    for number in range(450):
        orders.restore(key(f"f{number}"), model(1))
    counts = []
    for _ in range(4):
        await persistence.look()
        counts.append(len(store.families()))
        clock.now_s += 1
    assert counts == [200, 400, 450, 450]
    assert max(map(len, store.writes)) <= 200

    for number in range(450):
        whole(known(orders, f"f{number}"), "+a -a")
    store.writes.clear()
    await persistence.close()
    assert sum(map(len, store.writes)) == 450


async def test_large_ones_do_not_share_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_CHARS", 1)
    store, orders = CountingStore(), LearnedOrders()
    for number in range(3):
        orders.restore(key(f"f{number}"), model(1))
    await LearnedPersistence(orders, store).look()
    assert [len(write) for write in store.writes] == [1, 1, 1]


async def test_what_is_forgotten_is_forgotten_in_the_store_at_once() -> None:
    store, orders = CountingStore(), LearnedOrders()
    persistence = LearnedPersistence(orders, store)
    orders.restore(key("x"), model())
    await persistence.look()
    with pytest.raises(FamilyNotFoundError):
        await persistence.forget("", "default", "y")
    store.away = True
    with pytest.raises(StoreUnavailableError):
        await persistence.forget("", "default", "x")
    assert key("x")[1:] in orders.known("order")
    store.away = False
    await persistence.forget("", "default", "x")
    assert store.families() == []
    assert not orders.known("order")
    # What is learned of it from now on is kept again, whatever its revision.
    orders.restore(key("x"), model())
    await persistence.look()
    assert store.families() == ["x"]


async def test_a_family_that_memory_has_no_room_for_leaves_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvflow.server.learned.orders.MAX_FAMILIES", 3)
    store, orders = CountingStore(), LearnedOrders()
    persistence = LearnedPersistence(orders, store)
    for number in range(5):
        durations = FamilyDurations()
        durations.learn_run("a", 1.0)
        orders.restore(key(f"f{number}", "durations"), durations)
        await persistence.look()
    assert store.families() == ["f2", "f3", "f4"]


async def test_the_store_is_bounded_and_those_written_longest_ago_make_room() -> None:
    store, orders, clock = CountingStore(), LearnedOrders(), FakeClock()
    size = len(learned_text(model(1)))
    persistence = LearnedPersistence(orders, store, clock=clock, max_kind_chars=3 * size + 10)
    for number in range(6):
        orders.restore(key(f"f{number}"), model(1))
        await persistence.look()
        clock.now_s += 10
    assert store.families() == ["f3", "f4", "f5"]
    await persistence.look()
    assert len(store.writes) == 6 + 3
    whole(known(orders, "f0"), "+a -a")
    await persistence.look()
    assert store.families() == ["f0", "f4", "f5"]


async def test_a_family_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CHARS", len(learned_text(model())) + 50)
    store, orders, clock = CountingStore(), LearnedOrders(), FakeClock()
    persistence = LearnedPersistence(orders, store, clock=clock)
    orders.restore(key("x"), model())
    orders.restore(key("y"), model())
    await persistence.look()
    assert store.families() == ["x", "y"]
    clock.now_s += 10
    whole(known(orders, "x"), chain("pqrstuvw" * 3))
    await persistence.look()
    assert store.families() == ["y"]  # and not as it was long ago


async def test_a_store_that_is_away_is_written_to_later() -> None:
    store, orders = CountingStore(), LearnedOrders()
    persistence = LearnedPersistence(orders, store)
    orders.restore(key("x"), model())
    store.away = True
    with pytest.raises(StoreUnavailableError):
        await persistence.look()
    await persistence.close()
    store.away = False
    await persistence.look()
    assert store.families() == ["x"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (key("bad"), "no JSON"),
        (key("bad"), "[]"),
        (key("bad"), '{"form": 2}'),
        (key("bad"), learned_text(FamilyDurations())),
        (key("bad", "durations"), learned_text(model())),
        (key("bad", "else"), learned_text(model())),
        (key("bad"), learned_text(model()).replace('"a"', '"no identifier"')),
        (key("bad"), "[" * 100_000),
    ],
)
async def test_an_entry_that_cannot_be_read_is_dropped(
    entry: LearnedKey, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CountingStore()
    await store.keep_learned({entry: text, key("good"): learned_text(model())})
    orders = await reloaded(store)
    assert list(orders.known("order")) == [key("good")[1:]]
    assert not orders.known("durations")
    assert store.families() == ["good"]
    assert "family='bad'" in caplog.text
    assert "is dropped" in caplog.text


async def test_a_store_that_cannot_be_read_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStore):
        def __init__(self, error: Exception) -> None:
            super().__init__(10)
            self._error = error

        def learned(self):  # type: ignore[no-untyped-def]
            raise self._error

    for error in (StoreUnavailableError("away"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")):
        orders = await reloaded(Broken(error))
        assert not orders.known("order")
        assert "not brought back" in caplog.text
        caplog.clear()


@contextmanager
def service(database: Path, clock: FakeClock, keys: Path | None = None) -> Iterator[TestClient]:
    settings = ServiceSettings(database=str(database), sweep_interval_s=3600, keys_file=keys)
    with TestClient(build_service(settings, clock=clock).app) as client:
        yield client


def test_over_a_restart_of_the_service(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "workflows.db"
    with service(path, clock) as client:
        taught(client, clock, name="review")
        before = client.get("/v1/learned").json()
        graph = client.get("/v1/learned/review").json()

    with service(path, clock) as client:
        assert client.get("/v1/learned").json() == before
        assert client.get("/v1/learned/review").json() == graph
        begin(client, "w", name="review")
        answer = send(client, "w", started("a"))
        assert answer["steps_to_execution"] == {"a": 0, "b": 1, "c": 2, "d": 3}
        steps = client.get("/v1/workflows/w/steps").json()
        assert steps["expected_s_to_execution"] == {"a": 0, "b": 5, "c": 10, "d": 15}
        assert client.delete("/v1/learned/review").status_code == 204

    with service(path, clock) as client:
        # The workflow that was under way when the service ended has taught it no more.
        assert client.get("/v1/learned").json()["families"] == []


def test_a_database_of_before_is_brought_up_to_date(tmp_path: Path, clock: FakeClock) -> None:
    from kvflow.server.store import sqlite_schema

    path, steps = tmp_path / "workflows.db", sqlite_schema._STEPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_schema, "_STEPS", steps[:1])
        with service(path, clock) as client:
            client.post("/v1/workflows", json={"agents": [{"agent_id": "a"}], "entry": ["a"]})
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    with service(path, clock) as client:
        assert len(client.get("/v1/workflows").json()["workflows"]) == 1
        taught(client, clock)
    with service(path, clock) as client:
        assert len(client.get("/v1/learned").json()["families"]) == 1


def test_what_a_kill_leaves(tmp_path: Path, clock: FakeClock) -> None:
    path, copy = tmp_path / "workflows.db", tmp_path / "copy.db"
    settings = ServiceSettings(database=str(path), sweep_interval_s=0.02)
    with TestClient(build_service(settings, clock=clock).app) as client:
        taught(client, clock)
        with closing(sqlite3.connect(path)) as connection:
            for _ in range(1000):
                rows = connection.execute("SELECT content FROM learned").fetchall()
                if len(rows) == 2:
                    break
                time.sleep(0.02)
        # The files as they are at this moment, which is what a killed process leaves.
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    with service(copy, clock) as client:
        families = client.get("/v1/learned").json()["families"]
        assert [one["family"] for one in families] == ["from:a"]


def test_a_damaged_entry_in_the_database(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "workflows.db"
    with service(path, clock) as client:
        taught(client, clock, name="good")
        taught(client, clock, name="bad")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE learned SET content = CAST(X'FF00' AS TEXT) WHERE family = 'bad' "
            "AND kind = 'order'"
        )
        connection.execute(
            "UPDATE learned SET content = substr(content, 9) WHERE family = 'bad' "
            "AND kind = 'durations'"
        )
    with service(path, clock) as client:
        families = client.get("/v1/learned").json()["families"]
        assert [one["family"] for one in families] == ["good"]
    assert "is no text" in caplog.text
    assert "is dropped" in caplog.text


def test_clients_find_their_own(tmp_path: Path, clock: FakeClock, made: MadeKeys) -> None:
    path = tmp_path / "workflows.db"

    def families(client: TestClient, name: str) -> list[str]:
        answer = client.get("/v1/learned", headers=made.headers(name)).json()
        return [one["family"] for one in answer["families"]]

    with service(path, clock, made.path) as client:
        client.headers.update(made.headers("team-a"))
        taught(client, clock, name="secret")
    with service(path, clock, made.path) as client:
        assert families(client, "team-a") == ["secret"]
        assert families(client, "team-b") == []
        assert families(client, "ops") == []


def test_the_text_is_small_and_plain() -> None:
    text = learned_text(model())
    assert text.isascii()
    assert len(text) < 500
    assert json.loads(text)["form"] == 1
