"""Workflows in the memory of this process; gone when it ends."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from kvflow.protocol import StepEvent
from kvflow.server.store.base import StoreFullError, WorkflowKey, WorkflowRecord

__all__ = ["MemoryStore"]

_SPARE_DEADLINES: Final = 1024


class MemoryStore:
    """A ``WorkflowStore`` in a dict.

    ``update``, ``get`` and ``delete`` cost O(1), ``insert`` O(log n) amortised, ``page``
    O(n log limit), ``expired`` O(log n) for each deadline that has passed.
    """

    def __init__(self, max_workflows: int) -> None:
        self._max_workflows = max_workflows
        self._records: dict[WorkflowKey, WorkflowRecord] = {}
        # One deadline or more per workflow, none later than its record's: expires_at_s only moves
        # on, so it is enough to look at the record again once an old deadline has passed.
        self._deadlines: list[tuple[float, WorkflowKey]] = []

    async def insert(self, record: WorkflowRecord) -> None:
        if len(self._records) >= self._max_workflows:
            raise StoreFullError(self._max_workflows)
        self._records[record.key] = record
        heapq.heappush(self._deadlines, (record.expires_at_s, record.key))
        if len(self._deadlines) > 2 * len(self._records) + _SPARE_DEADLINES:
            # Workflows that were deleted long before their deadline have left theirs behind.
            self._deadlines = [(r.expires_at_s, r.key) for r in self._records.values()]
            heapq.heapify(self._deadlines)

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        self._records[record.key] = record

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        return self._records.get(key)

    async def delete(self, key: WorkflowKey) -> None:
        del self._records[key]

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

    async def expired(self, now_s: float, limit: int) -> list[WorkflowRecord]:
        found: dict[WorkflowKey, WorkflowRecord] = {}
        while self._deadlines and self._deadlines[0][0] <= now_s and len(found) < limit:
            _, key = heapq.heappop(self._deadlines)
            record = self._records.get(key)
            if record is None or key in found:
                continue
            if record.expires_at_s <= now_s:
                found[key] = record
            else:
                heapq.heappush(self._deadlines, (record.expires_at_s, key))
        # They stay in the store until they are deleted, so they must be found again.
        for record in found.values():
            heapq.heappush(self._deadlines, (record.expires_at_s, record.key))
        return sorted(found.values(), key=lambda record: record.expires_at_s)

    async def count(self) -> int:
        return len(self._records)
