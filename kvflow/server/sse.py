"""The engines' stream over HTTP: server-sent events on one long response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvflow.server.stream import EngineStreams, Subscription

__all__ = ["EngineStreamResponse"]

logger = logging.getLogger("kvflow.server")


class EngineStreamResponse(Response):
    """Lasts until the engine goes, takes nothing for ``stall_s``, or the service shuts down."""

    media_type = "text/event-stream"

    def __init__(self, streams: EngineStreams, engine_id: str | None, stall_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # There is no length to tell: the response has no planned end.
        del self.headers["content-length"]
        self._streams = streams
        self._engine_id = engine_id
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.subscribe(self._engine_id) as subscription:
            logger.info("engine %s connected", subscription.engine_id)
            try:
                async with asyncio.TaskGroup() as tasks:
                    sender = tasks.create_task(
                        self._send(subscription, send), name="kvflow-stream-send"
                    )
                    watcher = tasks.create_task(_disconnect(receive), name="kvflow-stream-watch")
                    await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
                    sender.cancel()
                    watcher.cancel()
            finally:
                logger.info("engine %s disconnected", subscription.engine_id)

    async def _send(self, subscription: Subscription, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        make_message: Callable[[], bytes] | None = subscription.snapshot
        while make_message is not None:
            try:
                async with asyncio.timeout(self._stall_s):
                    # An empty chunk puts nothing on the wire, but waits like any other until the
                    # connection can take more: the message is then made of the state at that time.
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
                    body = make_message()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except TimeoutError:
                logger.warning(
                    "engine %s has read nothing for %g s; giving its connection up",
                    subscription.engine_id,
                    self._stall_s,
                )
                return
            # Sending need not wait at all; other requests get their turn between two messages.
            await asyncio.sleep(0)
            make_message = await subscription.next_message()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
