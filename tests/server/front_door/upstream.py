"""An engine for tests, over real HTTP on loopback: it does as a call's ``model`` says."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from kvflow.server.run import listen
from tests.server.running import PATIENCE_S, eventually

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 8},
}
WORDS = ["Hello", " from", " the", " engine"]


class Upstream:
    """Speaks as SGLang with the plugin, unless told what else it is.

    Models: ``whole`` answers at once; ``words`` streams ``WORDS``; ``slow`` sends one event and
    goes on when ``go_on`` is set; ``endless`` streams large chunks until it is hung up on; ``mute``
    never answers; ``breaks`` closes the connection within the answer; ``refuses`` answers
    418.
    """

    def __init__(self) -> None:
        self.reset()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                interface="asgi3",
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )
        self._sockets = listen("127.0.0.1", 0)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": self._sockets}, daemon=True
        )

    def reset(self) -> None:
        """Forget what was, before the next test."""
        self.owned_by = "sglang"
        self.server_info: dict[str, Any] | None = {"radix_cache_backend": "kvflow"}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.asked = 0
        self.hung_up = threading.Event()
        self.go_on = threading.Event()
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._sockets[0].getsockname()[1]}"

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]

    def start(self) -> None:
        self._thread.start()
        eventually(lambda: self._server.started)

    def stop(self) -> None:
        self.go_on.set()
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        path = scope["path"]
        if path == "/v1/models":
            data = {"object": "list", "data": [{"id": "m", "owned_by": self.owned_by}]}
            await _answer(send, 200, json.dumps(data).encode())
            return
        if path in ("/server_info", "/get_server_info"):
            self.asked += 1
            status = 404 if self.server_info is None else 200
            await _answer(send, status, json.dumps(self.server_info or {}).encode())
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        query = scope["query_string"].decode()
        self.requests.append((path + (f"?{query}" if query else ""), headers, body))
        try:
            model = json.loads(body).get("model", "whole")
        except (ValueError, AttributeError):
            await _answer(send, 400, b'{"error": {"message": "what is this?"}}')
            return
        behave = getattr(self, "_" + str(model).replace("-", "_"), self._whole)
        watch = asyncio.create_task(self._watch(receive))
        try:
            work = asyncio.create_task(behave(scope, send))
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            work.cancel()
            await asyncio.wait({work})
        finally:
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        hung_up = self.hung_up
        while (await receive())["type"] != "http.disconnect":
            pass
        hung_up.set()

    async def _whole(self, scope: Scope, send: Send) -> None:
        message = {"role": "assistant", "content": "".join(WORDS)}
        content = {"id": "1", "choices": [{"index": 0, "message": message}], "usage": USAGE}
        await _answer(send, 200, json.dumps(content).encode())

    async def _refuses(self, scope: Scope, send: Send) -> None:
        headers = [(b"x-engine", b"yes"), (b"content-type", b"application/problem+json")]
        await _answer(send, 418, b'{"error": {"message": "no tea here"}}', headers)

    async def _words(self, scope: Scope, send: Send) -> None:
        await _head(send)
        for word in WORDS:
            await _event(send, {"choices": [{"index": 0, "delta": {"content": word}}]})
        await _event(send, {"choices": [], "usage": USAGE})
        await _end(send)

    async def _slow(self, scope: Scope, send: Send) -> None:
        await _head(send)
        await _event(send, {"choices": [{"index": 0, "delta": {"content": "first"}}]})
        go_on = self.go_on
        while not go_on.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.01)
        await _end(send)

    async def _endless(self, scope: Scope, send: Send) -> None:
        await _head(send)
        chunk = b"x" * 64 * 1024
        while True:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self.sent_bytes += len(chunk)
            # Sending to a connection that is gone does not wait.
            await asyncio.sleep(0)

    async def _mute(self, scope: Scope, send: Send) -> None:
        await asyncio.sleep(PATIENCE_S)

    async def _breaks(self, scope: Scope, send: Send) -> None:
        await _head(send)
        await _event(send, {"choices": [{"index": 0, "delta": {"content": "half"}}]})
        await asyncio.sleep(0.05)
        # Returning without an end is how an ASGI app breaks its connection.


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    upstream.start()
    try:
        yield upstream
    finally:
        upstream.stop()


@contextmanager
def curt_port() -> Iterator[str]:
    """The address of an engine that closes every connection once it has read something."""

    class Curt(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Curt) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silent_port() -> Iterator[str]:
    """The address of a port that nothing listens on, held so that nothing else takes it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    sent = headers or [(b"content-type", b"application/json")]
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*sent, length]})
    await send({"type": "http.response.body", "body": body})


async def _head(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _event(send: Send, data: Mapping[str, Any]) -> None:
    body = f"data: {json.dumps(data)}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})
