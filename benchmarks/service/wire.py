"""HTTP/1.1 as the load generator needs it: little enough to leave the service its core.

A general client costs more for a request than the service does; then one would measure the client.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

__all__ = ["Answer", "Connection", "StreamReader", "request"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MESSAGE_END: Final = b"\n\n\r\n"  # of a message that is one chunk


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(method: str, path: str, body: bytes | None = None) -> bytes:
    """The bytes of a request on a connection that stays open."""
    head = f"{method} {path} HTTP/1.1\r\nHost: kvflow\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """A connection that stays open, or is opened anew if the service closed it while it was idle.

    One request at a time.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        connection = cls(port)
        await connection._connect()
        return connection

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    async def ask(self, payload: bytes) -> Answer:
        """Send a request and wait for its answer.

        Raises:
            ConnectionError: the service closes the connection instead.
        """
        if self._transport is None or self._transport.is_closing():
            await self._connect()
        self._waiting = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(payload)
        return await self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of uvloop's making: it need not be a subclass.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        found = _LENGTH.search(self._received, 0, head_end)
        end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self._received) < end:
            return
        answer = Answer(int(self._received[9:12]), bytes(self._received[head_end + 4 : end]))
        del self._received[:end]
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError("the service closed the connection"))


class StreamReader(asyncio.Protocol):
    """One engine's stream: calls ``received(reader, messages, at_s)`` for what has come whole."""

    def __init__(
        self,
        engine_id: str,
        received: Callable[[StreamReader, bytes, float], None],
        path: str | None = None,
    ) -> None:
        self.messages = 0
        self.lost = False
        self.connected = asyncio.Event()
        self._path = path or f"/v1/engines/stream?engine_id={engine_id}"
        self._received = received
        self._rest: deque[bytes] = deque()
        self._transport: asyncio.Transport | None = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of uvloop's making: it need not be a subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(request("GET", self._path))

    def data_received(self, data: bytes) -> None:
        at_s = time.perf_counter()
        if not data.endswith(_MESSAGE_END):
            self._rest.append(data)
            return
        if self._rest:
            data = b"".join(self._rest) + data
            self._rest.clear()
        self.messages += data.count(_MESSAGE_END)
        self.connected.set()
        self._received(self, data, at_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
