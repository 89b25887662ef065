"""A way from an endless response to its connection that is shorter than the server's.

Uvicorn's takes longer for a small message than the system does, and with a thousand engines there
are a thousand for every change.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import Scope

__all__ = ["TRANSPORT", "ChunkWriter", "chunk_writer"]

TRANSPORT: Final = "kvflow.transport"
"""ASGI extension: the connection's ``asyncio.Transport``, of servers that say so."""


class ChunkWriter:
    """Writes to a connection on which a response is under way, in HTTP/1.1's chunks."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def is_free(self) -> bool:
        """Whether all that was written before is on its way."""
        transport = self._transport
        return transport.get_write_buffer_size() == 0 and not transport.is_closing()

    def write(self, message: bytes) -> None:
        """Does not wait: what the system does not take stays in memory."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(message), message))


def chunk_writer(scope: Scope) -> ChunkWriter | None:
    """Valid from when the response's head was sent until its last chunk is."""
    transport = scope.get("extensions", {}).get(TRANSPORT)
    return None if transport is None else ChunkWriter(transport)
