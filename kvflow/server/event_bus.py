"""What happens in the service, told to whoever listens in this process.

A publisher never waits: an event goes into the queue of each listener that wants it, and a listener
whose queue is full is dropped. Nothing is kept for those who come later.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

from kvflow.errors import KVFlowError
from kvflow.server.metrics import ServiceMetrics

__all__ = ["EVENT_KINDS", "BusEvent", "EventBus", "EventKind", "Listener", "TooManyReadersError"]

EventKind = Literal[
    "workflow.created",
    "workflow.closed",
    "step.started",
    "step.finished",
    "engine.connected",
    "engine.disconnected",
    "engine.report",
    "call.finished",
]
EVENT_KINDS: Final[frozenset[str]] = frozenset(get_args(EventKind))

# Two lists of step events, of which a request may bring 10,000, fit: a listener that is only slower
# than lists are published is not dropped.
MAX_WAITING: Final = 20_000
_TAKEN_AT_ONCE: Final = 256


class TooManyReadersError(KVFlowError):
    """As many read the service's events as may (HTTP 503)."""

    def __init__(self, max_readers: int) -> None:
        self.max_readers = max_readers
        super().__init__(
            f"the service's events have {max_readers} readers, the most they may have "
            "(KVFLOW_MAX_EVENT_READERS); close some, or try again later"
        )


@dataclass(frozen=True, slots=True)
class BusEvent:
    """One thing that happened.

    Attributes:
        data: the particulars, of values that JSON has. Shared by all listeners: not to be changed.
        namespace: whose it is; ``None`` if it concerns the service as a whole, as engines do.
        at_unix_s: when it was published.
    """

    kind: str
    data: Mapping[str, Any]
    namespace: str | None = ""
    at_unix_s: float = field(default=0.0, compare=False)


class EventBus:
    """Events of one service process. Belongs to its event loop; no method waits.

    Args:
        max_waiting: events that may wait for one listener; with one more it is dropped.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        metrics: ServiceMetrics,
        *,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_waiting = max_waiting
        self._metrics = metrics
        self._clock = clock
        self._listeners: dict[Listener, None] = {}
        self._closed = False

    def wanted(self, kind: EventKind) -> bool:
        """Whether anyone listens to this kind; if not, there is no need to make its data."""
        return any(kind in listener.kinds for listener in self._listeners)

    def publish(
        self, kind: EventKind, data: Mapping[str, Any], *, namespace: str | None = ""
    ) -> None:
        """Tell all who listen to this kind in this namespace. O(listeners); never raises.

        ``namespace`` of ``None`` is for what is nobody's own: only those who listen to all
        namespaces hear of it.
        """
        if not self._listeners:
            return
        event = BusEvent(kind, data, namespace, self._clock())
        for listener in tuple(self._listeners):
            if listener.wants(event) and not listener.put(event):
                self._metrics.listeners_dropped.inc()
                self.forget(listener)

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    def subscribe(
        self,
        kinds: Collection[str] | None = None,
        namespace: str | None = None,
        *,
        where: Mapping[str, Any] | None = None,
    ) -> Listener:
        """Listen from now on, to these kinds (all if ``None``) in this namespace (``None``: all).

        ``where`` picks events whose data have these values. To be closed, best by ``with``::

            with bus.subscribe({"step.started"}, identity.namespace) as events:
                async for event in events: ...
        """
        wanted = EVENT_KINDS if kinds is None else frozenset(kinds)
        listener = Listener(self, wanted, namespace, where or {})
        if self._closed:
            listener.end()
        else:
            self._listeners[listener] = None
            self._metrics.listeners.set(len(self._listeners))
        return listener

    def forget(self, listener: Listener) -> None:
        """Tell this listener nothing any more."""
        self._listeners.pop(listener, None)
        self._metrics.listeners.set(len(self._listeners))

    def close(self) -> None:
        """End all listeners' iterations, and those to come. They still get what waits for them."""
        self._closed = True
        for listener in tuple(self._listeners):
            listener.end()
            self.forget(listener)


class Listener(AsyncIterator[BusEvent]):
    """One who listens: a context manager, and an iterator over events for one task.

    The iteration ends when the bus is closed, or when events came faster than they were taken:
    then ``dropped`` is true, and all events up to that moment have been given out.
    """

    def __init__(
        self,
        bus: EventBus,
        kinds: frozenset[str],
        namespace: str | None,
        where: Mapping[str, Any],
    ) -> None:
        self.kinds = kinds
        self.namespace = namespace
        self._where = where.items()
        self.dropped = False
        self._bus = bus
        self._waiting: deque[BusEvent] = deque()
        self._ended = False
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Events that were published and not taken yet."""
        return len(self._waiting)

    @property
    def max_waiting(self) -> int:
        """With more than that it is dropped."""
        return self._bus.max_waiting

    def wants(self, event: BusEvent) -> bool:
        return (
            event.kind in self.kinds
            and self.namespace in (None, event.namespace)
            and all(event.data.get(name) == value for name, value in self._where)
        )

    def put(self, event: BusEvent) -> bool:
        """For the bus. False: the queue is full, and with that this listener is dropped."""
        if len(self._waiting) >= self._bus.max_waiting:
            self.dropped = True
            self.end()
            return False
        self._waiting.append(event)
        self._wake.set()
        return True

    def end(self) -> None:
        """For the bus: nothing comes after what waits."""
        self._ended = True
        self._wake.set()

    async def take(self, limit: int = _TAKEN_AT_ONCE) -> list[BusEvent]:
        """Wait for events; at least one and at most ``limit``, oldest first. ``[]``: the end.

        Nothing is lost when the waiting is cancelled.
        """
        while not self._waiting and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def close(self) -> None:
        """Listen no longer; what waits is forgotten."""
        self._bus.forget(self)
        self._waiting.clear()
        self.end()

    async def __anext__(self) -> BusEvent:
        for event in await self.take(1):
            return event
        raise StopAsyncIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
