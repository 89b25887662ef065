"""Learned workflows are beside the store, declared ones in it."""

from __future__ import annotations

from dataclasses import replace

from kvflow.graph.learning import LearnedState, TransitionModel
from kvflow.server.store import LearnedAside, MemoryStore, WorkflowRecord
from tests.server.workflow_bodies import record


def learned(workflow_id: str, **more: float) -> WorkflowRecord:
    state = LearnedState(TransitionModel())
    return replace(record(workflow_id), state=state, graph=state.graph, **more)


async def test_each_kind_is_kept_in_its_place_and_found() -> None:
    inner = MemoryStore(10)
    store = LearnedAside(inner, 10)
    for one in (record("b"), learned("a"), learned("c", expires_at_s=50.0)):
        await store.insert(one)
    assert await inner.count() == 1
    assert await store.count() == 3
    assert [one.workflow_id for one in await _page(store, None)] == ["a", "b"]
    assert [one.workflow_id for one in await _page(store, ("", "b"))] == ["c"]
    assert await store.expired(60.0, 5) == [("", "c")]
    assert await store.expired(200.0, 2) == [("", "c"), ("", "a")]
    assert [one.workflow_id async for batch in store.live() for one in batch] == ["b", "a", "c"]  # type: ignore[union-attr]
    found = await store.get(("", "a"))
    assert found is not None
    assert found.learned
    await store.update(replace(found, expires_at_s=70.0), ())
    assert await inner.get(("", "a")) is None
    await store.delete(replace(found, expires_at_s=70.0))
    assert await store.get(("", "a")) is None
    assert await inner.count() == 1


async def _page(store: LearnedAside, after: tuple[str, str] | None) -> list[WorkflowRecord]:
    return await store.page(namespace="", client_id=None, after=after, limit=2)
