"""When an event's effect reaches the engines: every stream is read, and each event timed there.

What a message says is looked up afterwards: that takes longer than receiving it, and a thousand
streams would wait for each other here rather than in the service.
"""

from __future__ import annotations

import asyncio
import re
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
_STATE: Final = re.compile(rb'"workflow_id":"([^"]+)","version":(\d+)')
# What comes before it has the number of the message, which differs from engine to engine.
_CONTENT: Final = b',"closed":'

_States = list[tuple[bytes, int]]


class Effects:
    """The open streams, and for each event how long every one of them took to show it.

    A stream that sends the workflow at a later version has shown this one as well.
    """

    def __init__(self) -> None:
        self.latencies = Samples()
        self._due: dict[bytes, deque[tuple[int, float]]] = {}
        self._readers: list[StreamReader] = []
        self._seen: dict[StreamReader, dict[bytes, int]] = {}
        self._received: list[tuple[StreamReader, bytes, float]] = []
        self._same: dict[bytes, bytes] = {}
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
                    StreamReader(f"engine-{number}", effects._receive)
                    for number in range(first, min(engines, first + _AT_ONCE))
                ]
                effects._readers += fresh
                effects._seen.update((reader, {}) for reader in fresh)
                for reader in fresh:
                    await loop.create_connection(lambda r=reader: r, "127.0.0.1", port)
                async with asyncio.timeout(_PATIENCE_S):
                    for reader in fresh:
                        await reader.connected.wait()
            await asyncio.sleep(0.5)
            effects._look()
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
            await asyncio.sleep(0.05)
            self._look()
            if all(self._has_all(reader) for reader in self._readers):
                return True
        return False

    def _has_all(self, reader: StreamReader) -> bool:
        seen = self._seen[reader]
        return all(
            seen.get(workflow_id, -1) >= events[-1][0] for workflow_id, events in self._due.items()
        )

    def _receive(self, reader: StreamReader, messages: bytes, at_s: float) -> None:
        content = messages[max(0, messages.find(_CONTENT)) :]
        self._received.append((reader, self._same.setdefault(content, content), at_s))

    def _look(self) -> None:
        """Time what was received since the last look."""
        states: dict[bytes, _States] = {}
        for reader, content, at_s in self._received:
            if content not in states:
                states[content] = [(key, int(text)) for key, text in _STATE.findall(content)]
            seen = self._seen[reader]
            for workflow_id, version in states[content]:
                before = seen.get(workflow_id, -1)
                seen[workflow_id] = version
                self._time(workflow_id, before, version, at_s)
        self._received.clear()
        self._same.clear()

    def _time(self, workflow_id: bytes, before: int, version: int, at_s: float) -> None:
        # From the newest back: only those since this stream's last message are new to it.
        for event_version, due_s in reversed(self._due.get(workflow_id, ())):
            if event_version <= before:
                break
            if event_version <= version:
                self.latencies.add(at_s - due_s)
