"""Which engines there were, remembered over a restart of the service."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from kvflow.protocol import EngineAway
from kvflow.server.store import StoreUnavailableError, WorkflowStore
from kvflow.server.stream import EngineStreams

__all__ = ["Sightings"]

_WRITE_AGAIN_S: Final = 60.0
_FORGET_AFTER_S: Final = 7 * 24 * 3600.0
_MOST: Final = 1000


class Sightings:
    """When each engine was last connected, to about a minute.

    In the database's own notes, so that after a crash an operator sees which engines have not come
    back. Those not seen for a week are forgotten, and the oldest where there are over 1,000.

    Args:
        clock: the time in seconds since 1970, as it is for people.
    """

    def __init__(
        self,
        store: WorkflowStore,
        streams: EngineStreams,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._streams = streams
        self._clock = clock
        self._seen_s: dict[str, float] = {}
        self._written_s: dict[str, float] = {}

    async def load(self) -> None:
        """Read what is remembered. Once, at the start."""
        for engine_id, note in (await self._store.notes("engine")).items():
            seen_s = note.get("seen_unix_s")
            if isinstance(seen_s, int | float):
                self._seen_s[engine_id] = self._written_s[engine_id] = float(seen_s)

    async def look(self) -> None:
        """Take note of the engines that are connected now. About once a second.

        Raises:
            StoreUnavailableError: it could not be written; the next look tries again.
        """
        now_s = self._clock()
        for one in self._streams.subscriptions:
            self._seen_s[one.engine_id] = now_s
        # Of clocks that jump, a difference in either direction is worth a write.
        for engine_id, seen_s in list(self._seen_s.items()):
            if abs(seen_s - self._written_s.get(engine_id, 0.0)) >= _WRITE_AGAIN_S:
                await self._store.note("engine", engine_id, {"seen_unix_s": seen_s})
                self._written_s[engine_id] = seen_s
        for engine_id in self._outdated(now_s):
            await self._store.note("engine", engine_id, None)
            self._seen_s.pop(engine_id, None)
            self._written_s.pop(engine_id, None)

    def away(self) -> list[EngineAway]:
        """Engines that are not connected now, the last one seen first."""
        here = {one.engine_id for one in self._streams.subscriptions}
        found = [(seen_s, name) for name, seen_s in self._seen_s.items() if name not in here]
        return [
            EngineAway(engine_id=engine_id, last_seen_unix_s=round(seen_s, 3))
            for seen_s, engine_id in sorted(found, reverse=True)
        ]

    async def close(self) -> None:
        """Write down who is here, as far as that is possible."""
        now_s = self._clock()
        try:
            for one in self._streams.subscriptions:
                await self._store.note("engine", one.engine_id, {"seen_unix_s": now_s})
        except StoreUnavailableError:
            return  # the store has said so

    def _outdated(self, now_s: float) -> list[str]:
        by_age = sorted(self._seen_s, key=self._seen_s.__getitem__, reverse=True)
        too_many = set(by_age[_MOST:])
        return [
            name
            for name in by_age
            if name in too_many or self._seen_s[name] < now_s - _FORGET_AFTER_S
        ]
