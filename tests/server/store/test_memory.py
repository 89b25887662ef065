"""The store in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvflow.server.store import MemoryStore, StoreFullError
from tests.server.workflow_bodies import record


async def test_insert_get_update_delete() -> None:
    store = MemoryStore(10)
    first = record("w")

    assert await store.get(("", "w")) is None
    await store.insert(first)
    assert await store.get(("", "w")) is first
    renewed = replace(first, expires_at_s=200.0)
    await store.update(renewed, ())
    assert await store.get(("", "w")) is renewed
    await store.delete(("", "w"))
    assert await store.get(("", "w")) is None
    assert await store.count() == 0


async def test_page_is_ordered_and_filtered() -> None:
    store = MemoryStore(10)
    for name, client_id in [("b", "x"), ("a", "y"), ("d", "x"), ("c", "x")]:
        await store.insert(record(name, client_id=client_id))

    async def ids(client_id: str | None, after: str | None, limit: int) -> list[str]:
        key = None if after is None else ("", after)
        page = await store.page(namespace="", client_id=client_id, after=key, limit=limit)
        return [one.workflow_id for one in page]

    assert await ids(None, None, 10) == ["a", "b", "c", "d"]
    assert await ids(None, "a", 2) == ["b", "c"]
    assert await ids("x", "b", 10) == ["c", "d"]
    assert await ids("x", "bb", 10) == ["c", "d"]
    assert await ids("z", None, 10) == []


async def test_expired_goes_by_the_present_deadline() -> None:
    store = MemoryStore(10)
    for name, expires_at_s in [("late", 30.0), ("early", 10.0), ("renewed", 5.0)]:
        await store.insert(record(name, expires_at_s=expires_at_s))
    await store.update(record("renewed", expires_at_s=20.0), ())

    async def expired(now_s: float, limit: int = 10) -> list[str]:
        return [key[1] for key in await store.expired(now_s, limit)]

    assert await expired(9.9) == []
    assert await expired(10.0) == ["early"]
    assert await expired(20.0) == ["early", "renewed"]
    assert await expired(99.0, limit=2) == ["early", "renewed"]
    await store.delete(("", "early"))
    assert await expired(99.0) == ["renewed", "late"]
    await store.delete(("", "renewed"))
    await store.insert(record("renewed", expires_at_s=50.0))
    assert await expired(49.0) == ["late"]


async def test_deadlines_of_deleted_workflows_do_not_pile_up() -> None:
    store = MemoryStore(10)
    await store.insert(record("stays", expires_at_s=1.0))

    for _ in range(5000):
        await store.insert(record("w", expires_at_s=1e9))
        await store.delete(("", "w"))

    assert len(store._deadlines) < 2000
    assert await store.expired(2.0, 10) == [("", "stays")]


async def test_a_full_store_refuses() -> None:
    store = MemoryStore(1)
    await store.insert(record("w"))

    with pytest.raises(StoreFullError, match="KVFLOW_MAX_WORKFLOWS"):
        await store.insert(record("v"))
    assert await store.count() == 1
