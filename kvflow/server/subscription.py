"""One engine's connection: what it is told next, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from kvflow.server.stream import EngineStreams

__all__ = ["DirectWriter", "News", "Subscription"]

# Put together by hand: a model takes longer than all else that sending a message takes.
_SNAPSHOT: Final = (
    b'id: %d\nevent: snapshot\ndata: {"seq":%d,"lease_s":%b,"more":%b,"workflows":[%b]}\n\n'
)
_DELTA: Final = (
    b'id: %d\nevent: delta\ndata: {"seq":%d,"closed":[%b],"more":%b,"workflows":[%b]}\n\n'
)
_HEARTBEAT: Final = b'id: %d\nevent: heartbeat\ndata: {"seq":%d}\n\n'


@dataclass(frozen=True, slots=True)
class News:
    """What is new to all who are at one place in the log of changes: the same bytes for each.

    Attributes:
        position: where they are when they have been told.
        following: the number of the change after that, if it did not all fit.
        workflow_count: how many states are in it.
        closed: ``ClosedWorkflow`` in JSON, separated by commas.
        workflows: ``WorkflowSteps`` in JSON, separated by commas.
    """

    position: int
    following: int | None
    workflow_count: int
    closed: bytes
    workflows: bytes

    def __bool__(self) -> bool:
        return bool(self.workflows or self.closed)


class DirectWriter(Protocol):
    """A way to the engine that is shorter than the server's, while the connection is free."""

    def is_free(self) -> bool:
        """Whether all that was written before is on its way."""

    def write(self, message: bytes) -> None:
        """Does not wait."""


class Subscription:
    """Which changes an engine knows, and what it is told next.

    Args:
        connected_at_s: on the service's clock, for those who ask.
    """

    def __init__(self, streams: EngineStreams, engine_id: str, connected_at_s: float) -> None:
        self.engine_id = engine_id
        self.connected_at_s = connected_at_s
        self.last_seq = -1
        self.position = 0
        self.wake = asyncio.Event()
        self.direct: DirectWriter | None = None
        self._streams = streams
        self._said_at_s = time.monotonic()
        self._messages_told = streams.messages_told
        self._workflows_told = streams.metrics.stream_workflows
        # What lived at the start is told in parts; each says whether more of it follows.
        self._first_state_until = streams.last_change
        self._said_more = False

    @property
    def pending(self) -> int:
        """Workflows that changed and have not been sent; if there are many, at most."""
        return self._streams.pending_since(self.position)

    def snapshot(self) -> bytes:
        """The first message."""
        news = self._take("snapshot")
        seq, lease_s = self.last_seq, str(self._streams.lease_s).encode()
        return _SNAPSHOT % (seq, seq, lease_s, self._more(), news.workflows)

    async def next_message(self) -> Callable[[], bytes] | None:
        """Wait until there is something to say; the message is made by calling the answer.

        That is for the moment when the connection can take it, as the state may change till then.
        Others get their turn in any case. ``None``: the stream ends.
        """
        if self._has_news():
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        while not self._has_news():
            silent_for_s = self._said_at_s + self._streams.heartbeat_s - time.monotonic()
            if silent_for_s <= 0:
                return self._heartbeat
            self.wake.clear()
            self._streams.fan_out.wait_for_news(self)
            heartbeat = loop.call_later(silent_for_s, self.wake.set)
            try:
                await self.wake.wait()
            finally:
                heartbeat.cancel()
        self._streams.fan_out.forget(self)
        return None if self._streams.shutting_down else self._delta

    def take_turn(self) -> bool:
        """Something has changed: say so at once if there is a way, or else wake who sends.

        Whether it is said, so that the subscription waits for news again.
        """
        told = self._tell_directly()
        if not told:
            self.wake.set()
        return told

    def _tell_directly(self) -> bool:
        """Whether all is said."""
        if self._said_more or self._streams.shutting_down:
            return False
        news = self._streams.news_since(self.position)
        if not news:
            self.position = news.position
            return True
        if self.direct is None or not self.direct.is_free():
            return False
        self.direct.write(self._delta())
        return not self._said_more and self.position == self._streams.last_change

    def _has_news(self) -> bool:
        return (
            self._said_more
            or self._streams.shutting_down
            or bool(self._streams.news_since(self.position))
        )

    def _delta(self) -> bytes:
        news = self._take("delta")
        seq = self.last_seq
        return _DELTA % (seq, seq, news.closed, self._more(), news.workflows)

    def _more(self) -> bytes:
        return b"true" if self._said_more else b"false"

    def _heartbeat(self) -> bytes:
        self._said("heartbeat")
        return _HEARTBEAT % (self.last_seq, self.last_seq)

    def _take(self, event: str) -> News:
        news = self._streams.news_since(self.position)
        self.position = news.position
        self._said_more = news.following is not None and news.following <= self._first_state_until
        self._said(event)
        self._workflows_told.inc(news.workflow_count)
        return news

    def _said(self, event: str) -> None:
        self.last_seq += 1
        self._said_at_s = time.monotonic()
        self._messages_told[event].inc()
