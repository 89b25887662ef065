"""The storage tier of a simulated cache: without limit, behind a link of its own.

As SGLang's HiCache with ``--hicache-storage-prefetch-policy wait_complete``: what has been copied
to the host goes on to storage, and a request waits for what is fetched for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from kvflow.prefetch import Link
from kvflow.simulator.links import Copy, FifoLink
from kvflow.simulator.prefixes import Path, Prefix

__all__ = ["Fetch", "StorageTier"]


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """A copy from storage to the host under way.

    Attributes:
        path: what is fetched lies on it, from ``start`` to ``end``.
        wanted_tokens: what was asked for.
        request: the request that waits for it, or None.
        owner: number of the owner it is made ahead for, or None.
    """

    path: Path
    start: int
    end: int
    wanted_tokens: int
    copy: Copy
    request: str | None
    owner: int | None

    @property
    def tokens(self) -> int:
        return self.end - self.start

    def covers(self, path: Path, limit: int) -> bool:
        """Whether it brings something that a prompt begins with."""
        if limit <= self.start:
            return False
        last = self.path[-1].holding(min(self.end, limit))
        return last.depth < len(path) and path[last.depth] is last


class StorageTier:
    """What is stored, and what is being fetched."""

    def __init__(self, link: Link) -> None:
        self._link = FifoLink(link)
        self._stored: dict[Prefix, int] = {}
        self.fetches: deque[Fetch] = deque()

    @property
    def fetching_tokens(self) -> int:
        return sum(fetch.tokens for fetch in self.fetches)

    @property
    def fetched_tokens(self) -> int:
        """All that has ever been fetched, or is being."""
        return self._link.tokens

    def store(self, prefix: Prefix, start: int, end: int) -> None:
        """Take what ``prefix`` has from ``start`` to ``end``."""
        each: Prefix | None = prefix
        while each is not None and each.aligned > start:
            self._stored[each] = max(min(each.aligned, end), self._stored.get(each, 0))
            each = each.parent

    def reach(self, path: Iterable[Prefix], start: int, limit: int) -> int:
        """Up to where the path is stored without a gap from ``start`` on."""
        at = start
        for prefix in path:
            if prefix.aligned <= at:
                continue
            at = max(at, min(self._stored.get(prefix, 0), limit))
            if at < prefix.aligned:
                break
        return at

    def fetch(
        self,
        path: Path,
        start: int,
        end: int,
        *,
        wanted_tokens: int,
        now_s: float,
        request: str | None = None,
        owner: int | None = None,
    ) -> Fetch:
        """Start a copy to the host, where there is room for it."""
        copy = self._link.submit(end - start, now_s)
        fetch = Fetch(path, start, end, wanted_tokens, copy, request, owner)
        self.fetches.append(fetch)
        return fetch

    def cancel(self, owner: int) -> Fetch | None:
        """Forget the fetch made ahead for an owner. The link carries it to its end all the same."""
        for fetch in self.fetches:
            if fetch.owner == owner:
                self.fetches.remove(fetch)
                return fetch
        return None
