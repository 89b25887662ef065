"""Tells the engines' streams that something has changed: a few at a time, however many there are.

A change concerns every engine. Were all their streams served at once, a thousand of them would keep
the event loop for as long as it takes to write a thousand messages, and each request would wait for
that. So between two slices the loop turns to what else there is. What changes meanwhile goes into
the messages of the streams that have not had their turn yet.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import ExitStack
from typing import Final, Protocol

from kvflow.server.turns import long_work

__all__ = ["FanOut", "Waiting"]

# Some 0.2 ms of writing messages: a request needs several turns.
_SLICE: Final = 16


class Waiting(Protocol):
    """One who waits for news."""

    def take_turn(self) -> bool:
        """There may be news; whether it goes on waiting. Does not wait itself nor raise."""


class FanOut:
    """Those who wait for a change. Belongs to one event loop."""

    def __init__(self) -> None:
        self._idle: dict[Waiting, None] = {}
        self._turns: OrderedDict[Waiting, None] = OrderedDict()
        self._scheduled = False
        self._round = ExitStack()

    def wait_for_news(self, one: Waiting) -> None:
        """It gets a turn after the next change. Called in the event loop."""
        self._turns.pop(one, None)
        self._idle[one] = None

    def forget(self, one: Waiting) -> None:
        """It waits no longer."""
        self._idle.pop(one, None)
        self._turns.pop(one, None)

    def all(self) -> None:
        """Something changed. O(those that wait and have not been told of an earlier change)."""
        if self._idle:
            self._turns.update(self._idle)
            self._idle.clear()
        if self._turns and not self._scheduled:
            # More than a slice takes turns of the loop, as long work does.
            if len(self._turns) > _SLICE:
                self._round.enter_context(long_work())
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._next_slice)

    def _next_slice(self) -> None:
        self._scheduled = False
        for _ in range(min(_SLICE, len(self._turns))):
            one, _ = self._turns.popitem(last=False)
            if one.take_turn():
                self._idle[one] = None
        if self._turns:
            self._schedule()
        else:
            self._round.close()
