"""An engine that costs nothing, to measure what is in front of it.

Answers OpenAI's routes at once: a whole answer, or with ``"stream": true`` events at a fixed pace,
each with the time it was sent (``time.perf_counter``, which all processes of a machine share).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Final, cast

import uvloop

EVENTS: Final = 40
PACE_S: Final = 0.01
USAGE: Final = '"usage":{"prompt_tokens":900,"completion_tokens":40,"total_tokens":940}'
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WHOLE: Final = (
    '{"id":"1","object":"chat.completion","choices":[{"index":0,"finish_reason":"stop",'
    f'"message":{{"role":"assistant","content":"{"word " * 40}"}}}}],{USAGE}}}'
).encode()
_MODELS: Final = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"sglang"}]}'
_INFO: Final = b'{"radix_cache_backend":"kvflow"}'


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._streaming: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._received[:head_end])
        found = _LENGTH.search(head)
        end = head_end + 4 + (int(found[1]) if found else 0)
        if len(self._received) < end:
            return
        body = bytes(self._received[head_end + 4 : end])
        del self._received[:end]
        path = head.split(b" ", 2)[1]
        if path == b"/v1/models":
            self._whole(_MODELS)
        elif path == b"/server_info":
            self._whole(_INFO)
        elif body.endswith(b'"stream": true}') or b'"stream": true,' in body[-400:]:
            self._streaming = asyncio.create_task(self._stream())
        else:
            self._whole(_WHOLE)

    def _whole(self, body: bytes) -> None:
        assert self._transport is not None
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self._transport.write(f"{head}\r\n\r\n".encode() + body)

    async def _stream(self) -> None:
        assert self._transport is not None
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        due_s = time.perf_counter()
        for number in range(EVENTS):
            event = json.dumps({"number": number, "sent_s": time.perf_counter()})
            self._chunk(f"data: {event}\n\n".encode())
            due_s += PACE_S
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        self._chunk(f'data: {{"choices":[],{USAGE}}}\n\ndata: [DONE]\n\n'.encode())
        self._transport.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
