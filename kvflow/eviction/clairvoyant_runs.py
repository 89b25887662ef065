"""The best hit rate any eviction policy could have had, over runs of pages instead of pages."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

__all__ = ["PageRun", "RunCall", "RunCalls", "clairvoyant_hit_pages"]

_NEVER: Final = 2**62
_SLACK: Final = 64
_MAX_STALE_RATIO: Final = 3


class PageRun(NamedTuple):
    """Consecutive pages that whoever reads one of them reads all of.

    Attributes:
        identity: equal for equal pages after an equal beginning, and only for these.
    """

    identity: int
    pages: int


class RunCall(NamedTuple):
    """One access to a cache, at an instant.

    Attributes:
        runs: from the first page on, in this order.
        counted: how many of these, from the first on, are looked for; 0 for what only brings, as an
            answer does, and for what is not to be counted.
        brings: whether all its pages are in the cache after it. If not, it only looks.
        unneeded_pages: how many of its last pages need no room.
        holds: from now on none of its pages can go, until as many ``releases`` as ``holds``.
        releases: after this access these pages are held once less.
    """

    runs: Sequence[PageRun]
    counted: int
    brings: bool = True
    unneeded_pages: int = 0
    holds: Sequence[PageRun] = ()
    releases: Sequence[PageRun] = ()


class RunCalls(Protocol):
    """Accesses in their order, which can be gone through from either end."""

    def __iter__(self) -> Iterator[RunCall]: ...
    def __reversed__(self) -> Iterator[RunCall]: ...


def clairvoyant_hit_pages(calls: RunCalls, capacity_pages: int | None) -> list[int]:
    """Pages found in cache, per access, under Belady's rule.

    Exactly what ``clairvoyant_hit_tokens`` answers for the same calls page by page, for each page
    of a run is used next when the others are. So a run is looked at once instead of once a page,
    and where not all of it can stay its last pages go. What makes it a bound and what it ignores
    is said there. In addition:

    * An access with ``counted`` 0 has no claim: pages are kept for what is counted alone, so no
      policy finds more in the accesses that count, however it treats the others.
    * Where calls overlap, give each three times: as a look when it is scheduled, with what it finds
      counted; when its prompt has been computed, from where on it holds it; and when it has ended,
      with its answer. Whatever the policy, what it finds has been in the cache since some earlier
      such instant, at the two later instants all its pages are there at once, and between them
      its prompt is. So this is a bound for overlapping calls as well, given the order in which
      these instants come.

    Args:
        calls: all accesses.
        capacity_pages: size of the cache, of all its tiers together; None: no limit.

    Raises:
        ValueError: the pages of an access do not fit, or not with those that are held.

    Complexity: O(R log R) for R runs over all accesses; 8 bytes a run, and what is cached at a
    time.
    """
    return _Belady(_next_uses(calls), capacity_pages).hit_pages(calls)


class _Belady:
    """The cache while the accesses are gone through."""

    def __init__(self, next_uses: array[int], capacity_pages: int | None) -> None:
        self._next_uses = next_uses
        self._capacity = capacity_pages
        self._cached: dict[int, int] = {}
        self._current: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._order: list[tuple[int, int, int]] = []
        self._total = 0

    def hit_pages(self, calls: RunCalls) -> list[int]:
        hits: list[int] = []
        for position, call in enumerate(calls):
            hits.append(self._found(call))
            if call.brings:
                self._bring(position, call)
            else:
                self._look(call)
        return hits

    def _found(self, call: RunCall) -> int:
        found = 0
        for identity, pages in call.runs[: call.counted]:
            there = self._cached.get(identity, 0)
            found += there
            if there < pages:
                break
        return found

    def _look(self, call: RunCall) -> None:
        before = 0
        for identity, pages in call.runs:
            next_use = self._next_uses.pop()
            if identity in self._cached:
                self._put(identity, next_use, before)
            before += pages

    def _bring(self, position: int, call: RunCall) -> None:
        cached = self._cached
        for identity, pages in call.runs:
            self._total += pages - cached.get(identity, 0)
            cached[identity] = pages
        self._make_room(position, call)
        for identity, _ in call.holds:
            self._held[identity] = self._held.get(identity, 0) + 1
        before = 0
        for identity, pages in call.runs:
            self._put(identity, self._next_uses.pop(), before)
            before += pages
        before = 0
        for identity, pages in call.releases:
            self._held[identity] -= 1
            if not self._held[identity]:
                del self._held[identity]
                self._put(identity, self._current[identity], before)
            before += pages

    def _put(self, identity: int, next_use: int, before: int) -> None:
        """Note when a run is used next; of those used at once the last ones are to go first."""
        self._current[identity] = next_use
        if self._capacity is None:
            return
        heapq.heappush(self._order, (-next_use, -before, identity))
        if len(self._order) > _SLACK + _MAX_STALE_RATIO * len(self._cached):
            self._order = [
                entry for entry in set(self._order) if self._current.get(entry[2]) == -entry[0]
            ]
            heapq.heapify(self._order)

    def _make_room(self, position: int, call: RunCall) -> None:
        if self._capacity is None:
            return
        limit = self._capacity + call.unneeded_pages
        if self._total <= limit:
            return
        running = {run.identity for run in call.runs}
        while self._total > limit:
            if not self._order:
                raise ValueError(
                    f"access {position} needs {sum(run.pages for run in call.runs)} pages; "
                    f"the cache has {self._capacity}, and some may be held"
                )
            entry = heapq.heappop(self._order)
            identity = entry[2]
            if identity in running or identity in self._held:
                continue
            if self._current.get(identity) != -entry[0]:
                continue
            pages = self._cached[identity]
            gone = min(pages, self._total - limit)
            self._total -= gone
            if gone < pages:
                self._cached[identity] = pages - gone
                heapq.heappush(self._order, entry)
            else:
                del self._cached[identity], self._current[identity]


def _next_uses(calls: RunCalls) -> array[int]:
    """For each run of each access the position of the next one that looks for it.

    Last access first, and the last run of each first. ``_NEVER`` if it is brought before that.
    """
    upcoming: dict[int, int] = {}
    uses = array("q")
    position = sum(1 for _ in calls)
    for call in reversed(calls):
        position -= 1
        for depth in range(len(call.runs) - 1, -1, -1):
            identity = call.runs[depth].identity
            uses.append(upcoming.get(identity, _NEVER))
            if depth < call.counted:
                upcoming[identity] = position
            elif call.brings:
                upcoming.pop(identity, None)
    return uses
