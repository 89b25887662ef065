"""Workflows in the memory of this process; gone when it ends."""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from kvflow.protocol import StepEvent
from kvflow.server.store.base import (
    Change,
    LearnedKey,
    NoteKind,
    StoredState,
    StoreFullError,
    WorkflowKey,
    WorkflowRecord,
)
from kvflow.server.store.deadlines import Deadlines

__all__ = ["MemoryStore"]

_LIVE_AT_ONCE: Final = 256


class MemoryStore:
    """A ``WorkflowStore`` in a dict.

    ``update``, ``get`` and ``delete`` cost O(1), ``insert`` O(log n) amortised, ``page``
    O(n log limit), ``expired`` O(log n) for each deadline that has passed.
    """

    shared = False
    problem: str | None = None

    def __init__(self, max_workflows: int) -> None:
        self._max_workflows = max_workflows
        self._records: dict[WorkflowKey, WorkflowRecord] = {}
        self._deadlines = Deadlines(self._expires_at_s)
        self._notes: dict[NoteKind, dict[str, dict[str, object]]] = {"client": {}, "engine": {}}
        self._learned: dict[LearnedKey, str] = {}

    def now_s(self) -> float:
        return time.monotonic()

    async def keep_time(self) -> None: ...

    async def insert(self, record: WorkflowRecord) -> None:
        if len(self._records) >= self._max_workflows:
            raise StoreFullError(self._max_workflows)
        self._records[record.key] = record
        self._deadlines.add(record.expires_at_s, record.key, self._records)

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        self._records[record.key] = record

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        return self._records.get(key)

    async def delete(self, record: WorkflowRecord) -> None:
        del self._records[record.key]

    async def page(
        self,
        *,
        namespace: str | None,
        client_id: str | None,
        after: WorkflowKey | None,
        limit: int,
    ) -> list[WorkflowRecord]:
        matching = (
            key
            for key, record in self._records.items()
            if (after is None or key > after)
            and (namespace is None or record.namespace == namespace)
            and (client_id is None or record.client_id == client_id)
        )
        return [self._records[key] for key in heapq.nsmallest(limit, matching)]

    async def expired(self, now_s: float, limit: int) -> list[WorkflowKey]:
        return self._deadlines.passed(now_s, limit)

    async def count(self) -> int:
        return len(self._records)

    async def live(self) -> AsyncIterator[Sequence[WorkflowRecord | StoredState]]:
        records = list(self._records.values())
        for start in range(0, len(records), _LIVE_AT_ONCE):
            yield records[start : start + _LIVE_AT_ONCE]

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        no_others: Sequence[Sequence[Change]] = ()
        for none in no_others:
            yield none

    async def note(self, kind: NoteKind, name: str, values: Mapping[str, object] | None) -> None:
        if values is None:
            self._notes[kind].pop(name, None)
        else:
            self._notes[kind][name] = dict(values)

    async def notes(self, kind: NoteKind) -> dict[str, dict[str, object]]:
        return dict(self._notes[kind])

    async def keep_learned(self, texts: Mapping[LearnedKey, str | None]) -> None:
        for key, text in texts.items():
            if text is None:
                self._learned.pop(key, None)
            else:
                self._learned[key] = text

    async def learned(self) -> AsyncIterator[Sequence[tuple[LearnedKey, str]]]:
        yield list(self._learned.items())

    async def close(self) -> None: ...

    def _expires_at_s(self, key: WorkflowKey) -> float | None:
        record = self._records.get(key)
        return None if record is None else record.expires_at_s
