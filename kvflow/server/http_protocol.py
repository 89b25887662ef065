"""How uvicorn reads HTTP here: a head is bounded, and a response may write to its connection."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any, Final, cast

from kvflow.server.direct_write import TRANSPORT

__all__ = ["http_protocol"]

MAX_HEAD_BYTES: Final = 128 * 1024


def http_protocol() -> type[asyncio.Protocol] | str:
    """What uvicorn is to read HTTP with.

    With h11 it reads 64 KiB of a head at most. With httptools, which it prefers where that is
    installed, it would read on until memory ends; so that gets a limit here. With h11 a response
    has no way of its own to the connection.
    """
    if find_spec("httptools") is None:
        return "h11"
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class ServiceProtocol(HttpToolsProtocol):
        """Hangs up on a head that is over ``MAX_HEAD_BYTES``, give or take what came in one go.

        The application finds the transport among the request's extensions.
        """

        _head_bytes = 0
        _in_head = False

        def on_message_begin(self) -> None:
            self._in_head = True
            self._head_bytes = 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            cast(dict[str, Any], self.scope)["extensions"] = {TRANSPORT: self.transport}
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.logger.warning("A request's head is too large.")
                    self.send_400_response("The head of the request is too large.")

    return ServiceProtocol
