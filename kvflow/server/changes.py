"""In which order workflows last changed, so that each engine can be told what is new to it.

All engines share one log, and each has only a place in it: a change costs the same however many
there are, and those at the same place are told the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from kvflow.server.store import StreamKey

__all__ = ["Change", "ChangeLog"]

_SLACK: Final = 1024
# Exact up to here; beyond, nobody asks whether a workflow is counted twice.
_COUNTED: Final = 1000


class Change(NamedTuple):
    """A workflow was closed, or else: it is new or has another state."""

    number: int
    key: StreamKey
    closed: bool


class ChangeLog:
    """The last change of every live workflow, and those closings that a reader has yet to see.

    Changes are numbered from 1. A reader at position ``p`` knows of all changes up to ``p``.

    Args:
        positions: where the present readers are.
    """

    def __init__(self, positions: Callable[[], Iterable[int]]) -> None:
        self.last = 0
        self._positions = positions
        # Since which change a workflow lives, and its last one.
        self._born: dict[StreamKey, int] = {}
        self._latest: dict[StreamKey, int] = {}
        # Of a closing also since when the workflow had lived: whoever is not yet there has never
        # heard of it. Superseded changes stay until there are as many of them as of others.
        self._numbers: list[int] = []
        self._entries: list[tuple[StreamKey, int | None]] = []
        self._room = _SLACK

    def __len__(self) -> int:
        """How many entries are kept, for a bound on memory."""
        return len(self._numbers)

    def changed(self, key: StreamKey) -> None:
        """A workflow is new or has another state. O(1) amortised."""
        number = self._add(key, None)
        self._born.setdefault(key, number)
        self._latest[key] = number

    def closed(self, key: StreamKey) -> None:
        """A workflow is over; an unknown one is no change. O(1) amortised."""
        born = self._born.pop(key, None)
        if born is not None:
            del self._latest[key]
            self._add(key, born)

    def since(self, position: int) -> Iterator[Change]:
        """What a reader at ``position`` does not know, oldest first.

        A workflow that was closed and is there again comes as both, in this order.
        """
        for at in range(bisect_right(self._numbers, position), len(self._numbers)):
            number = self._numbers[at]
            key, born = self._entries[at]
            if born is not None:
                if born <= position:
                    yield Change(number, key, closed=True)
            elif self._latest.get(key) == number:
                yield Change(number, key, closed=False)

    def count_since(self, position: int) -> int:
        """How many workflows that is; if there are many, some may be counted twice."""
        entries = len(self._numbers) - bisect_right(self._numbers, position)
        return entries if entries > _COUNTED else len({one.key for one in self.since(position)})

    def _add(self, key: StreamKey, born: int | None) -> int:
        if len(self._numbers) >= self._room:
            self._compact()
        self.last += 1
        self._numbers.append(self.last)
        self._entries.append((key, born))
        return self.last

    def _compact(self) -> None:
        positions = sorted(self._positions())

        def is_news(number: int, key: StreamKey, born: int | None) -> bool:
            if born is None:
                return self._latest.get(key) == number
            return bisect_left(positions, born) < bisect_left(positions, number)

        kept = [
            (number, entry)
            for number, entry in zip(self._numbers, self._entries, strict=True)
            if is_news(number, *entry)
        ]
        self._numbers = [number for number, _ in kept]
        self._entries = [entry for _, entry in kept]
        self._room = 2 * len(kept) + _SLACK
