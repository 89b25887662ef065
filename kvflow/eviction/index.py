"""An index of evictable nodes, kept in eviction order while the tree changes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from kvflow.eviction.order import EvictionKey

__all__ = ["EvictionIndex"]

N = TypeVar("N", bound=Hashable)

_SLACK = 64
_MAX_STALE_RATIO = 3
_UNRANKED_AT_MOST = 64
_MANY_SHARE = 4


class EvictionIndex(Generic[N]):
    """The evictable nodes, lowest eviction key first.

    A binary heap with lazy deletion: ``discard`` only forgets, and what is out of date is dropped
    once it comes to the top. What was added of late or refreshed is ranked when the order is asked
    for: many leaves become evictable and cease to be (a request reads them) with no eviction in
    between, and where a message weighed many anew, building the heap once is cheaper. So a change
    costs O(log n) amortised and an eviction pays for what it evicts and for what changed since the
    last one, not for all the leaves there are. (SGLang's Python tree core builds a heap of all
    leaves at each eviction: 0.5.23, ``mem_cache/unified_cache/components/full.py``.)

    A key may grow unannounced (a node was accessed, so its recency moved on); whatever may lower
    a key has to be followed by ``refresh``.

    Not thread-safe: it belongs to the thread that owns the tree.
    """

    __slots__ = ("_heap", "_key", "_keys", "_tie", "_unranked")

    def __init__(self, key: Callable[[N], EvictionKey], tie: Callable[[N], int]) -> None:
        """``key`` ranks a node; ``tie`` is unique per node, so that equal keys are ordered too."""
        self._key = key
        self._tie = tie
        self._heap: list[tuple[EvictionKey, int, N]] = []
        self._keys: dict[N, EvictionKey] = {}
        # In order of time, the same in every process; None: the key is not worked out yet.
        self._unranked: dict[N, EvictionKey | None] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._unranked)

    def __contains__(self, node: object) -> bool:
        return node in self._keys or node in self._unranked

    def add(self, node: N) -> None:
        """Make ``node`` evictable; nothing happens if it is. O(log n) amortised."""
        if node not in self._keys:
            self._unranked[node] = None
            if len(self._unranked) > _UNRANKED_AT_MOST:
                self._rank_all()

    def discard(self, node: N) -> None:
        """Make ``node`` not evictable; nothing happens if it is not. O(log n) amortised."""
        if node in self._unranked:
            del self._unranked[node]
        elif self._keys.pop(node, None) is not None:
            self._drop_outdated_top()

    def refresh(self, node: N) -> None:
        """Rank ``node`` anew after its weight changed; ignored if it is not evictable."""
        known = self._keys.get(node)
        if known is not None:
            if (key := self._key(node)) != known:
                del self._keys[node]
                self._unranked[node] = key
        elif self._unranked.get(node) is not None:
            self._unranked[node] = self._key(node)

    def lowest(self) -> N | None:
        """The node to evict first, left in place; None if nothing is evictable."""
        self._rank_all()
        heap = self._heap
        while heap:
            key, tie, node = heap[0]
            now = self._key(node)
            if now == key:
                return node
            self._keys[node] = now
            heapq.heapreplace(heap, (now, tie, node))
            self._drop_outdated_top()
        return None

    def below(self, key: EvictionKey) -> Iterator[N]:
        """The nodes that rank below ``key``, in no particular order. O(n) for all of them."""
        self._rank_all()
        return (node for node, known in self._keys.items() if known < key)

    def _rank_all(self) -> None:
        unranked, self._unranked = self._unranked, {}
        ranked = ((node, key or self._key(node)) for node, key in unranked.items())
        if unranked and len(unranked) * _MANY_SHARE > len(self._keys):
            self._keys.update(ranked)
            self._rebuild()
        else:
            for node, key in ranked:
                self._push(node, key)
            self._drop_outdated_top()

    def _push(self, node: N, key: EvictionKey) -> None:
        self._keys[node] = key
        heapq.heappush(self._heap, (key, self._tie(node), node))
        if len(self._heap) > _SLACK + _MAX_STALE_RATIO * len(self._keys):
            self._rebuild()
        else:
            self._drop_outdated_top()

    def _rebuild(self) -> None:
        self._heap = [(key, self._tie(node), node) for node, key in self._keys.items()]
        heapq.heapify(self._heap)

    def _drop_outdated_top(self) -> None:
        heap, keys = self._heap, self._keys
        while heap and keys.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
