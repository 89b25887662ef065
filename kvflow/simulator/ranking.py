"""The order in which each policy gives up nodes, lowest key first.

Those of SGLang are the ``get_priority`` of the class of the same name in its
``mem_cache/evict_policy.py`` (0.5.23).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Protocol

from kvflow.eviction import EvictionKey
from kvflow.simulator.radix import Node

__all__ = [
    "LFURanking",
    "LRURanking",
    "PriorityRanking",
    "Ranking",
    "SLRURanking",
    "TTLRanking",
]

SLRU_PROTECTED_HITS = 2


class Ranking(Protocol):
    """Ranks nodes. Between two calls a node's key only grows, unless it is named as changed."""

    def key(self, node: Node) -> EvictionKey:
        """The node with the lowest key is evicted first."""

    def lowered(self, now_s: float) -> Iterable[Node]:
        """Nodes whose keys have fallen by now because time has passed."""


class LRURanking:
    """Least recently used first."""

    def key(self, node: Node) -> EvictionKey:
        return (0, node.recency)

    def lowered(self, now_s: float) -> Iterable[Node]:
        return ()


class LFURanking(LRURanking):
    """Least often used first. A split gives both halves the count."""

    def key(self, node: Node) -> EvictionKey:
        return (node.hits, node.recency)


class SLRURanking(LRURanking):
    """What was used once before what was used again."""

    def key(self, node: Node) -> EvictionKey:
        return (int(node.hits >= SLRU_PROTECTED_HITS), node.recency)


class PriorityRanking(LRURanking):
    """Lowest priority first; a node keeps the highest that a request has brought."""

    def key(self, node: Node) -> EvictionKey:
        return (node.priority, node.recency)


class TTLRanking:
    """What nobody waits for first; what is pinned until some time only if nothing else is left."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._expiring: list[tuple[float, int, Node]] = []

    def key(self, node: Node) -> EvictionKey:
        return (int(node.pinned_until_s > self._now_s), node.recency)

    def pin(self, nodes: Iterable[Node], until_s: float) -> None:
        """Keep these nodes until then; never shortens a pin."""
        for node in nodes:
            if until_s > node.pinned_until_s:
                node.pinned_until_s = until_s
                heapq.heappush(self._expiring, (until_s, node.number, node))

    def split(self, upper: Node) -> None:
        """A node was cut; the new upper part is pinned as it was."""
        if upper.pinned_until_s > self._now_s:
            heapq.heappush(self._expiring, (upper.pinned_until_s, upper.number, upper))

    def lowered(self, now_s: float) -> Iterable[Node]:
        self._now_s = now_s
        expired = []
        while self._expiring and self._expiring[0][0] <= now_s:
            expired.append(heapq.heappop(self._expiring)[2])
        return expired
