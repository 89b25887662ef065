"""When an event's effect reaches the engines: every stream is read, and each event timed there."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

from benchmarks.service.samples import Samples
from benchmarks.service.wire import StreamReader

__all__ = ["Effects"]

_PATIENCE_S: Final = 20.0
_AT_ONCE: Final = 50


class Effects:
    """The open streams, and for each event how long every one of them took to show it.

    A stream that sends the workflow at a later version has shown this one as well.
    """

    def __init__(self) -> None:
        self.latencies = Samples()
        self._due: dict[bytes, deque[tuple[int, float]]] = {}
        self._readers: list[StreamReader] = []
        self._connecting = True
        self._messages_before = 0

    @classmethod
    @asynccontextmanager
    async def watching(cls, port: int, engines: int) -> AsyncIterator[Self]:
        """Open the streams and wait until each has its snapshot.

        Raises:
            TimeoutError: one does not get it.
        """
        effects = cls()
        loop = asyncio.get_running_loop()
        try:
            for first in range(0, engines, _AT_ONCE):
                fresh = [
                    StreamReader(f"engine-{number}", effects._seen)
                    for number in range(first, min(engines, first + _AT_ONCE))
                ]
                effects._readers += fresh
                for reader in fresh:
                    await loop.create_connection(lambda r=reader: r, "127.0.0.1", port)
                async with asyncio.timeout(_PATIENCE_S):
                    for reader in fresh:
                        await reader.connected.wait()
            await asyncio.sleep(0.5)
            effects._connecting = False
            effects._messages_before = sum(reader.messages for reader in effects._readers)
            yield effects
        finally:
            for reader in effects._readers:
                reader.close()

    @property
    def messages(self) -> int:
        """How many messages came on all streams since they were open."""
        return sum(reader.messages for reader in self._readers) - self._messages_before

    def due(self, workflow_id: bytes, version: int, at_s: float) -> None:
        """An event that leads to this version is due at this time."""
        self._due.setdefault(workflow_id, deque()).append((version, at_s))

    async def settled(self) -> bool:
        """Wait for what is under way; whether every stream has seen every event."""
        deadline_s = time.perf_counter() + _PATIENCE_S
        while time.perf_counter() < deadline_s:
            if all(self._has_all(reader) for reader in self._readers):
                return True
            await asyncio.sleep(0.05)
        return False

    def _has_all(self, reader: StreamReader) -> bool:
        return all(
            reader.last.get(workflow_id, -1) >= events[-1][0]
            for workflow_id, events in self._due.items()
        )

    def _seen(self, reader: StreamReader, workflow_id: bytes, version: int, at_s: float) -> None:
        before = reader.last.get(workflow_id, -1)
        reader.last[workflow_id] = version
        if self._connecting:
            return
        # From the newest back: only those since this stream's last message are new to it.
        for event_version, due_s in reversed(self._due.get(workflow_id, ())):
            if event_version <= before:
                break
            if event_version <= version:
                self.latencies.add(at_s - due_s)
