"""Wakes the engines' streams when something changes: a few at a time, however many there are.

A change concerns every engine. Were all their streams woken at once, a thousand of them would keep
the event loop for as long as it takes to write a thousand messages, and each request would wait for
that. So between two slices the loop turns to what else there is. What changes meanwhile goes into
the messages of the streams that have not had their turn yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

__all__ = ["FanOut"]

# Half a millisecond of writing messages: a request needs several turns.
_SLICE: Final = 16


class FanOut:
    """Those who wait for a change, each with the event that wakes it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._idle: dict[asyncio.Event, None] = {}
        self._turns: dict[asyncio.Event, None] = {}
        self._scheduled = False

    def wait_for_news(self, wake: asyncio.Event) -> None:
        """Set ``wake`` after the next change. Called in the event loop."""
        wake.clear()
        self._turns.pop(wake, None)
        self._idle[wake] = None

    def forget(self, wake: asyncio.Event) -> None:
        """It waits no longer."""
        self._idle.pop(wake, None)
        self._turns.pop(wake, None)

    def all(self) -> None:
        """Something changed for all who wait. O(those that wait and have not been told yet)."""
        if self._idle:
            self._turns |= self._idle
            self._idle.clear()
            self._schedule()

    def some(self, wakes: Iterable[asyncio.Event]) -> None:
        """Something changed for these only."""
        for wake in wakes:
            if wake in self._idle:
                del self._idle[wake]
                self._turns[wake] = None
        if self._turns:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next_slice)

    def _next_slice(self) -> None:
        self._scheduled = False
        for _ in range(min(_SLICE, len(self._turns))):
            wake = next(iter(self._turns))
            del self._turns[wake]
            wake.set()
        if self._turns:
            self._schedule()
