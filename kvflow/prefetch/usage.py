"""What became of prefetched tokens: read by a request, or gone before one came."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["PrefetchUsage"]

N = TypeVar("N", bound=Hashable)
K = TypeVar("K", bound=Hashable)


class PrefetchUsage(Generic[N, K]):
    """Accounts for every prefetched token, per node of the radix tree. Survives splits.

    At any time ``prefetched_tokens == used_tokens + wasted_tokens + unused_tokens``.

    A node's tokens that wait to be used are held to be its first ones. Owners (``K``) are
    whatever the caller wants to be told again. What is returned names each owner once, with the
    tokens of all nodes concerned, in the order of the nodes.

    Not thread-safe: it belongs to the thread that owns the tree. Each operation is O(nodes it
    names), times the loads per node, of which there is usually one.

    Attributes:
        prefetched_tokens: all that came to the device.
        used_tokens: those a request came for, counted once.
        wasted_tokens: those that left the device before.
    """

    __slots__ = ("_waiting", "prefetched_tokens", "used_tokens", "wasted_tokens")

    def __init__(self) -> None:
        # Per node, the loads that wait to be used, from the node's first token on.
        self._waiting: dict[N, list[tuple[K, int]]] = {}
        self.prefetched_tokens = 0
        self.used_tokens = 0
        self.wasted_tokens = 0

    @property
    def unused_tokens(self) -> int:
        """Tokens on the device that wait for their first use."""
        return self.prefetched_tokens - self.used_tokens - self.wasted_tokens

    def __len__(self) -> int:
        """Nodes with tokens that wait."""
        return len(self._waiting)

    def loaded(self, node: N, tokens: int, owner: K) -> None:
        """``tokens`` of the node, after those that wait already, were prefetched for ``owner``."""
        if tokens > 0:
            self._waiting.setdefault(node, []).append((owner, tokens))
            self.prefetched_tokens += tokens

    def split(self, upper: N, lower: N, upper_tokens: int) -> None:
        """``lower`` was split: ``upper`` is new above it and has its first ``upper_tokens``."""
        loads = self._waiting.pop(lower, None)
        if loads is not None:
            head, tail = _cut(loads, upper_tokens)
            self._put(upper, head)
            self._put(lower, tail)

    def used(self, nodes: Iterable[N]) -> list[tuple[K, int]]:
        """A request came that reads ``nodes``; what waits there has been of use."""
        used: dict[K, int] = {}
        for node in nodes:
            _add(used, self._waiting.pop(node, ()))
        self.used_tokens += sum(used.values())
        return list(used.items())

    def evicted(self, node: N, tokens: int | None = None) -> list[tuple[K, int]]:
        """The node left the device, or only its last ``tokens`` of those that wait did."""
        loads = self._waiting.pop(node, [])
        keep = 0 if tokens is None else max(0, sum(size for _, size in loads) - tokens)
        kept, gone = _cut(loads, keep)
        self._put(node, kept)
        wasted: dict[K, int] = {}
        _add(wasted, gone)
        self.wasted_tokens += sum(wasted.values())
        return list(wasted.items())

    def clear(self) -> None:
        """The tree was emptied: what waits is wasted, though nobody mispredicted it."""
        self.wasted_tokens += self.unused_tokens
        self._waiting.clear()

    def _put(self, node: N, loads: list[tuple[K, int]]) -> None:
        if loads:
            self._waiting[node] = loads


def _add(totals: dict[K, int], loads: Iterable[tuple[K, int]]) -> None:
    for owner, tokens in loads:
        totals[owner] = totals.get(owner, 0) + tokens


def _cut(
    loads: list[tuple[K, int]], tokens: int
) -> tuple[list[tuple[K, int]], list[tuple[K, int]]]:
    """Divide ``loads`` after so many tokens."""
    head: list[tuple[K, int]] = []
    tail: list[tuple[K, int]] = []
    for owner, size in loads:
        first = min(size, tokens)
        tokens -= first
        if first > 0:
            head.append((owner, first))
        if first < size:
            tail.append((owner, size - first))
    return head, tail
