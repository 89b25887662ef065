"""Which workflows' time is over, without looking at all of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sized
from typing import Final, Protocol

from kvflow.server.store.base import WorkflowKey

__all__ = ["Deadlines"]

_SPARE: Final = 1024


class _Keys(Iterable[WorkflowKey], Sized, Protocol):
    """The keys of a dict."""


class Deadlines:
    """One deadline or more per workflow, none later than its real one.

    ``expires_at_s`` only moves on, so it is enough to look at the workflow again once an old
    deadline has passed. A renewal costs nothing therefore.

    Args:
        expires_at_s: the present deadline of a workflow; ``None`` if there is no such.
    """

    def __init__(self, expires_at_s: Callable[[WorkflowKey], float | None]) -> None:
        self._expires_at_s = expires_at_s
        self._heap: list[tuple[float, WorkflowKey]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, expires_at_s: float, key: WorkflowKey, live: _Keys) -> None:
        """A workflow is new; ``live`` are all there are. O(log n) amortised."""
        heapq.heappush(self._heap, (expires_at_s, key))
        if len(self._heap) > 2 * len(live) + _SPARE:
            # Workflows that were deleted long before their deadline have left theirs behind.
            present = ((self._expires_at_s(one), one) for one in live)
            self._heap = [(at_s, one) for at_s, one in present if at_s is not None]
            heapq.heapify(self._heap)

    def passed(self, now_s: float, limit: int) -> list[WorkflowKey]:
        """At most ``limit`` workflows whose deadline is not after ``now_s``, earliest first.

        They are found again until they are gone. O(log n) for each deadline that has passed.
        """
        found: dict[WorkflowKey, float] = {}
        while self._heap and self._heap[0][0] <= now_s and len(found) < limit:
            _, key = heapq.heappop(self._heap)
            expires_at_s = self._expires_at_s(key)
            if expires_at_s is None or key in found:
                continue
            if expires_at_s <= now_s:
                found[key] = expires_at_s
            else:
                heapq.heappush(self._heap, (expires_at_s, key))
        for key, expires_at_s in found.items():
            heapq.heappush(self._heap, (expires_at_s, key))
        return sorted(found, key=found.__getitem__)
