"""The store in memory, beyond what all stores do."""

from __future__ import annotations

from kvflow.server.store import MemoryStore
from tests.server.workflow_bodies import record


async def test_deadlines_of_deleted_workflows_do_not_pile_up() -> None:
    store = MemoryStore(10)
    await store.insert(record("stays", expires_at_s=1.0))

    for _ in range(5000):
        await store.insert(record("w", expires_at_s=1e9))
        await store.delete(record("w"))

    assert len(store._deadlines) < 2000
    assert await store.expired(2.0, 10) == [("", "stays")]
