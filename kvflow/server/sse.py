"""Server-sent events over one long response, whoever reads them."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvflow.server.direct_write import ChunkWriter, chunk_writer
from kvflow.server.stream import EngineStreams
from kvflow.server.subscription import Subscription

__all__ = ["EngineStreamResponse", "MakeMessage", "SseResponse"]

logger = logging.getLogger("kvflow.server")

MakeMessage = Callable[[], bytes]
"""Called when the connection can take a message, which is made of the state at that time."""


class SseResponse(Response):
    """Lasts until the reader goes or takes nothing for ``stall_s``, or the messages end.

    Args:
        reader: who reads, for the log.
    """

    media_type = "text/event-stream"

    def __init__(self, reader: str, stall_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # There is no length to tell: the response has no planned end.
        del self.headers["content-length"]
        self.reader = reader
        self._stall_s = stall_s
        self._sending_since_s: float | None = None

    @abstractmethod
    def subscribed(self) -> AbstractContextManager[AsyncGenerator[MakeMessage, None]]:
        """The messages, for as long as the ``with`` block lasts.

        Sending one need not wait at all, so each must be waited for, if only for others to get
        their turn.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.subscribed() as messages:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(messages, send), name="kvflow-sse-send")
                watcher = tasks.create_task(_disconnect(receive), name="kvflow-sse-watch")
                stall = tasks.create_task(self._stalled(sender), name="kvflow-sse-stall")
                await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
                for task in (sender, watcher, stall):
                    task.cancel()

    async def _send(self, messages: AsyncGenerator[MakeMessage, None], send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        now_s = asyncio.get_running_loop().time
        async with aclosing(messages):
            async for make_message in messages:
                self._sending_since_s = now_s()
                # An empty chunk puts nothing on the wire, but waits like any other until the
                # connection can take more.
                await send({"type": "http.response.body", "body": b"", "more_body": True})
                body = make_message()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._sending_since_s = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stalled(self, sender: asyncio.Task[None]) -> None:
        """End the sending if one message takes too long.

        A clock of its own for all messages: one for each would take longer than the message.
        """
        now_s = asyncio.get_running_loop().time
        while True:
            since_s = self._sending_since_s
            left_s = self._stall_s - (0.0 if since_s is None else now_s() - since_s)
            if left_s <= 0:
                logger.warning(
                    "%s has read nothing for %g s; giving its connection up",
                    self.reader,
                    self._stall_s,
                )
                sender.cancel()
                return
            await asyncio.sleep(left_s)


class EngineStreamResponse(SseResponse):
    """An engine's stream: a snapshot, then deltas and heartbeats."""

    def __init__(self, streams: EngineStreams, engine_id: str | None, stall_s: float) -> None:
        super().__init__(f"engine {engine_id or '(unnamed)'}", stall_s)
        self._streams = streams
        self._engine_id = engine_id
        self._direct: ChunkWriter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._direct = chunk_writer(scope)
        await super().__call__(scope, receive, send)

    @contextmanager
    def subscribed(self) -> Iterator[AsyncGenerator[MakeMessage, None]]:
        with self._streams.subscribe(self._engine_id) as subscription:
            self.reader = f"engine {subscription.engine_id}"
            logger.info("%s connected", self.reader)
            self._warn_of_a_namesake(subscription)
            # Used when there is nothing to send in the other way, so never before the snapshot.
            subscription.direct = self._direct
            try:
                yield _engine_messages(subscription)
            finally:
                logger.info("%s disconnected", self.reader)

    def _warn_of_a_namesake(self, subscription: Subscription) -> None:
        name = subscription.engine_id
        if sum(one.engine_id == name for one in self._streams.subscriptions) > 1:
            logger.warning(
                "engine %s is connected already. If that is another engine, its reports and this "
                "one's are taken for each other's: give each a KVFLOW_ENGINE_ID of its own. "
                "If it is the same one back after a broken connection, all is well",
                name,
            )


async def _engine_messages(subscription: Subscription) -> AsyncGenerator[MakeMessage, None]:
    make_message: MakeMessage | None = subscription.snapshot
    while make_message is not None:
        yield make_message
        make_message = await subscription.next_message()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
