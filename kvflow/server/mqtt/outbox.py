"""What is to be published, until the broker takes it.

Two kinds. *States* are retained: the last value per topic is all that counts, so a state that
changes ten times before the broker takes it goes out once. *Notices* are said once: they wait in a
bounded queue, and with the queue full or the broker away they are dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvflow.server.mqtt.metrics import MqttMetrics

__all__ = ["Outbox", "Outgoing"]

MAX_NOTICES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message; an empty payload clears a state."""

    topic: str
    payload: bytes
    retain: bool

    @property
    def kind(self) -> str:
        return "state" if self.retain else "notice"


class Outbox:
    """Belongs to the service's event loop. Putting something in never waits and never fails."""

    def __init__(self, metrics: MqttMetrics, max_notices: int = MAX_NOTICES) -> None:
        self._metrics = metrics
        self._max_notices = max_notices
        self._states: dict[str, Callable[[], bytes]] = {}
        self._changed: dict[str, None] = {}
        self._notices: deque[Outgoing] = deque()
        self._connected = False
        self._wake = asyncio.Event()

    def __contains__(self, topic: str) -> bool:
        """Whether this topic has a state now."""
        return topic in self._states

    def keep(self, topic: str, payload: Callable[[], bytes]) -> None:
        """A state is new or has changed; it is made when it goes out."""
        self._states[topic] = payload
        self._mark(topic)

    def clear(self, topic: str) -> None:
        """A state is gone; whoever subscribes from now on hears nothing of it."""
        self._states.pop(topic, None)
        self._mark(topic)

    def send(self, topic: str, payload: bytes) -> None:
        """Say something once."""
        if not self._connected or len(self._notices) >= self._max_notices:
            self._metrics.published.labels("notice", "dropped").inc()
            return
        self._notices.append(Outgoing(topic, payload, retain=False))
        self._wake.set()

    def connect(self) -> None:
        """A connection is there: every state goes out, as the broker may have none of them."""
        self._connected = True
        self._changed = dict.fromkeys(self._states)
        self._wake.set()

    def disconnect(self) -> None:
        """The broker is away. Nothing piles up till it is back."""
        self._connected = False
        self._changed.clear()
        self._metrics.published.labels("notice", "dropped").inc(len(self._notices))
        self._notices.clear()

    async def take(self, limit: int) -> list[Outgoing]:
        """Wait for messages: at least one, at most ``limit``, each state once."""
        while not self._changed and not self._notices:
            self._wake.clear()
            await self._wake.wait()
        return self.take_now(limit)

    def take_now(self, limit: int) -> list[Outgoing]:
        """The same without waiting."""
        taken: list[Outgoing] = []
        while self._notices and len(taken) < limit:
            taken.append(self._notices.popleft())
        while self._changed and len(taken) < limit:
            topic = next(iter(self._changed))
            del self._changed[topic]
            make = self._states.get(topic)
            taken.append(Outgoing(topic, b"" if make is None else make(), retain=True))
        return taken

    def _mark(self, topic: str) -> None:
        if self._connected:
            self._changed[topic] = None
            self._wake.set()
