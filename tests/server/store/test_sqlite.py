"""What only the SQLite store does: files, durability, and what goes wrong with either."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kvflow.errors import EnvironmentProblemError
from kvflow.server.store import StoreUnavailableError
from kvflow.server.store.sqlite import SQLiteStore
from kvflow.server.store.sqlite_schema import migrate
from tests.server.store.test_conformance import advanced, started
from tests.server.workflow_bodies import record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "workflows.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, 1000)
    yield store
    await store.close()


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


async def test_a_write_is_in_the_file_when_it_returns(store: SQLiteStore, path: Path) -> None:
    await store.insert(record("w"))
    assert rows(path, "workflows") == 1
    await advanced(store, ("", "w"), 3)
    assert rows(path, "journal") == 3


async def test_only_the_owner_can_read_it(store: SQLiteStore, path: Path) -> None:
    await store.insert(record("w"))
    for one in path.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) & 0o077 == 0, one


async def test_the_journal_stays_in_proportion(store: SQLiteStore, path: Path) -> None:
    await store.insert(record("w"))
    await advanced(store, ("", "w"), 600)

    assert rows(path, "states") == 1
    with closing(sqlite3.connect(path)) as connection:
        (journal,) = connection.execute("SELECT sum(length(events)) FROM journal").fetchone()
        (state,) = connection.execute("SELECT sum(length(content)) FROM states").fetchone()
    assert journal < state + 4200


async def test_nothing_is_left_of_a_deleted_workflow(store: SQLiteStore, path: Path) -> None:
    await store.insert(record("w"))
    await store.delete(await advanced(store, ("", "w"), 300))

    for table in ("workflows", "positions", "states", "journal"):
        assert rows(path, table) == 0


async def test_graphs_are_stored_once_and_not_for_ever(store: SQLiteStore, path: Path) -> None:
    for i in range(5):
        await store.insert(record(f"w{i}"))
    assert rows(path, "graphs") == 1

    async def come_and_go(number: int) -> None:
        one = record(f"v{number}", agent_id=f"a{number}")
        await store.insert(one)
        await store.delete(one)

    await asyncio.gather(*(come_and_go(i) for i in range(990)))
    await asyncio.gather(*(come_and_go(i) for i in range(990, 1100)))
    assert rows(path, "graphs") < 200
    assert await store.get(("", "w0")) is not None


async def test_those_used_least_leave_memory_and_come_back(path: Path) -> None:
    store = SQLiteStore(path, 1000, in_memory=4)
    for i in range(20):
        await store.insert(record(f"w{i:02}", namespace="n"))
        await advanced(store, ("n", f"w{i:02}"), i)

    assert len(store._records) == 4
    for i in range(20):
        found = await store.get(("n", f"w{i:02}"))
        assert found is not None
        assert found.version == i
    page = await store.page(namespace="n", client_id=None, after=None, limit=20)
    assert [one.version for one in page] == list(range(20))
    await store.close()


async def test_reading_beside_writing_gives_nothing_old(path: Path) -> None:
    store = SQLiteStore(path, 1000, in_memory=1)
    await store.insert(record("w"))
    await store.insert(record("other"))
    seen: list[int] = []

    async def read() -> None:
        while len(seen) < 300:
            await store.get(("", "other"))  # drives "w" out of memory
            found = await store.get(("", "w"))
            assert found is not None
            seen.append(found.version)

    reading = asyncio.create_task(read())
    await advanced(store, ("", "w"), 150)
    await reading
    assert seen == sorted(seen)
    found = await store.get(("", "w"))
    assert found is not None
    assert found.version == 150
    await store.close()


async def test_many_writes_share_commits(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    commit = store._writer._commit
    monkeypatch.setattr(
        store._writer, "_commit", lambda writes: (batches.append(len(writes)), commit(writes))[1]
    )
    await asyncio.gather(*(store.insert(record(f"w{i}")) for i in range(500)))

    assert sum(batches) == 500
    assert len(batches) < 50


async def test_a_full_disk_changes_nothing_and_mends(store: SQLiteStore, path: Path) -> None:
    await store.insert(record("w"))
    kept = await advanced(store, ("", "w"), 1)
    (pages,) = store._writer._connection.execute("PRAGMA page_count").fetchone()
    store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")
    large = "x" * 200
    state = kept.state.copy()
    events = [started(state, "a", f"{large}{i}") for i in range(500)]

    with pytest.raises(StoreUnavailableError, match="the disk is full; nothing was changed"):
        await store.update(replace(kept, state=state), events)
    assert store.problem is not None
    assert await store.get(kept.key) is kept

    store._writer._connection.execute("PRAGMA max_page_count = 1000000")
    await store.update(replace(kept, state=state), events)
    assert store.problem is None
    assert rows(path, "journal") + rows(path, "states") >= 1


async def test_a_lock_of_another_program(store: SQLiteStore, path: Path) -> None:
    store._writer._connection.execute("PRAGMA busy_timeout = 50")
    await store.insert(record("w"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="another program holds a lock on it"):
            await store.insert(record("v"))
        assert await store.get(("", "v")) is None
        assert await store.count() == 1
        other.execute("ROLLBACK")
    await store.insert(record("v"))
    assert await store.count() == 2


async def test_a_workflow_that_is_not_legible_makes_room(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLiteStore(path, 1000)
    for name in ("w", "v"):
        await store.insert(record(name))
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO states VALUES (1, 0, '{}')")

    store = SQLiteStore(path, 1000)
    assert await store.get(("", "w")) is None
    assert "cannot be read back" in caplog.text
    await store.insert(record("w"))
    assert await store.get(("", "w")) is not None
    assert await store.get(("", "v")) is not None
    await store.close()


async def test_one_service_at_a_time(store: SQLiteStore, path: Path) -> None:
    with pytest.raises(EnvironmentProblemError, match="in use by another kvflow serve"):
        SQLiteStore(path, 1000)


async def test_the_clock_stands_still_while_the_service_is_down(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(path, 1000)
    await store.insert(record("w", expires_at_s=store.now_s() + 60))
    await store.close()
    # Neither how long the machine was off nor what its clock shows matters.
    monkeypatch.setattr("time.time", lambda: 4e9)

    store = SQLiteStore(path, 1000)
    assert await store.expired(store.now_s(), 10) == []
    assert await store.expired(store.now_s() + 61, 10) == [("", "w")]
    await store.close()


def problem(path: Path) -> str:
    with pytest.raises(EnvironmentProblemError) as raised:
        SQLiteStore(path, 1000)
    assert str(path) in str(raised.value)
    assert raised.value.remedy
    return str(raised.value)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    path.write_bytes(b"this is no database" * 1000)
    assert "the file is damaged" in problem(path)


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be opened" in problem(tmp_path / "file" / "workflows.db")
    assert "cannot be opened" in problem(tmp_path)


def test_the_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
    assert "another program" in problem(path)


async def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    await SQLiteStore(path, 1000).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "newer KVFlow (form 99" in problem(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)


def test_migrations_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvflow.server.store import sqlite_schema

    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, "it")
        steps = (*sqlite_schema._STEPS, ("ALTER TABLE notes ADD COLUMN x", "SELECT * FROM nowhere"))
        monkeypatch.setattr(sqlite_schema, "_STEPS", steps)
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            migrate(connection, "it")
        # All of a step or none of it.
        columns = [row[1] for row in connection.execute("PRAGMA table_info(notes)")]
        assert "x" not in columns
        monkeypatch.setattr(sqlite_schema, "_STEPS", (*steps[:-1], steps[-1][:1]))
        migrate(connection, "it")
        migrate(connection, "it")
        assert connection.execute("PRAGMA user_version").fetchone() == (len(steps),)
