"""Workflows that declare nothing are kept beside the store, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from kvflow.protocol import StepEvent
from kvflow.server.store.base import (
    Change,
    LearnedKey,
    NoteKind,
    StoredState,
    WorkflowKey,
    WorkflowRecord,
    WorkflowStore,
)
from kvflow.server.store.memory import MemoryStore

__all__ = ["LearnedAside"]


class LearnedAside:
    """A ``WorkflowStore`` that keeps learned workflows to itself and hands all others on.

    What a learned workflow is worth is a guess about its next calls, renewed by each of them: it
    is neither stored nor shared with other replicas. After a restart its next call makes it anew.
    """

    def __init__(self, store: WorkflowStore, max_workflows: int) -> None:
        self._store = store
        self._learned = MemoryStore(max_workflows)

    @property
    def shared(self) -> bool:
        return self._store.shared

    @property
    def problem(self) -> str | None:
        return self._store.problem

    def now_s(self) -> float:
        return self._store.now_s()

    async def keep_time(self) -> None:
        await self._store.keep_time()

    async def insert(self, record: WorkflowRecord) -> None:
        await self._of(record).insert(record)

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        await self._of(record).update(record, events)

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        return await self._learned.get(key) or await self._store.get(key)

    async def delete(self, record: WorkflowRecord) -> None:
        await self._of(record).delete(record)

    async def page(
        self,
        *,
        namespace: str | None,
        client_id: str | None,
        after: WorkflowKey | None,
        limit: int,
    ) -> list[WorkflowRecord]:
        found: list[WorkflowRecord] = []
        for store in (self._store, self._learned):
            found += await store.page(
                namespace=namespace, client_id=client_id, after=after, limit=limit
            )
        return sorted(found, key=lambda record: record.key)[:limit]

    async def expired(self, now_s: float, limit: int) -> list[WorkflowKey]:
        learned = await self._learned.expired(now_s, limit)
        left = limit - len(learned)
        return [*learned, *(await self._store.expired(now_s, left) if left else ())]

    async def count(self) -> int:
        return await self._store.count() + await self._learned.count()

    def live(self) -> AsyncIterator[Sequence[WorkflowRecord | StoredState]]:
        return self._live()

    async def _live(self) -> AsyncIterator[Sequence[WorkflowRecord | StoredState]]:
        async for records in self._store.live():
            yield records
        async for records in self._learned.live():
            yield records

    def changes(self) -> AsyncIterator[Sequence[Change]]:
        return self._store.changes()

    async def note(self, kind: NoteKind, name: str, values: Mapping[str, object] | None) -> None:
        await self._store.note(kind, name, values)

    async def notes(self, kind: NoteKind) -> dict[str, dict[str, object]]:
        return await self._store.notes(kind)

    async def keep_learned(self, texts: Mapping[LearnedKey, str | None]) -> None:
        await self._store.keep_learned(texts)

    def learned(self) -> AsyncIterator[Sequence[tuple[LearnedKey, str]]]:
        return self._store.learned()

    async def close(self) -> None:
        await self._store.close()

    def _of(self, record: WorkflowRecord) -> WorkflowStore:
        return self._learned if record.learned else self._store
