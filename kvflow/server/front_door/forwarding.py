"""One call passed to the engine and its answer back, byte by byte as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import httpx2
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kvflow.server.front_door.engine import Engine
from kvflow.server.front_door.errors import PASSED_ON_KEY, openai_error
from kvflow.server.front_door.usage import TokenUsage, UsageReader
from kvflow.server.trace_requests import TRACE_CONTEXT, trace_headers

__all__ = ["CallEnd", "Forwarded", "request_headers"]

Outcome = Literal["finished", "failed", "cancelled"]
RawHeaders = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        *(b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
# Not of the client's: they are about the connection to us, or mean something to us alone.
_NOT_TO_ENGINE: Final = _HOP_BY_HOP | frozenset(
    (
        *(b"host", b"content-length", b"accept-encoding", b"authorization", b"cookie"),
        *(b"expect", b"forwarded"),
        *TRACE_CONTEXT,
    )
)
_NOT_TO_ENGINE_PREFIXES: Final = (b"x-kvflow-", b"x-dynamo-", b"x-forwarded-")
# What SGLang lets its router change of a request; a client of a shared service is not its router.
_ROUTERS_PREFIX: Final = b"x-override-"
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | frozenset((b"date", b"server"))


def request_headers(
    given: RawHeaders, engine_authorization: str | None, *, shared: bool
) -> list[tuple[bytes, bytes]]:
    """The headers the engine gets.

    Args:
        given: the client's, names in lower case.
        engine_authorization: the engine's own key goes before whatever the client has sent.
        shared: the service has keys; then the client's ``Authorization`` is ours and stays here.
    """
    connection = b",".join(value for name, value in given if name == b"connection").lower()
    named = {token.strip() for token in connection.split(b",")}
    dropped = _NOT_TO_ENGINE_PREFIXES + ((_ROUTERS_PREFIX,) if shared else ())
    kept = [
        (name, value)
        for name, value in given
        if name not in _NOT_TO_ENGINE and name not in named and not name.startswith(dropped)
    ]
    # As it is, so that the token counts at its end can be read.
    kept.append((b"accept-encoding", b"identity"))
    kept.extend((name.encode(), value.encode("latin-1")) for name, value in trace_headers().items())
    if engine_authorization is not None:
        kept.append((b"authorization", engine_authorization.encode()))
    elif not shared:
        kept.extend((name, value) for name, value in given if name == b"authorization")
    return kept


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How a call ended.

    Attributes:
        status: the answer's, ours if the engine gave none; ``None`` if the client left before.
        first_byte_s: from the call to the first byte of the engine's answer, if there was one.
    """

    outcome: Outcome
    status: int | None
    duration_s: float
    first_byte_s: float | None
    usage: TokenUsage


class Forwarded(Response):
    """Sends a request to the engine when it is itself to be sent, and is the engine's answer.

    Nothing is held: the next chunk is taken from the engine when the client's connection has room
    for more, and what the engine says, errors too, is passed on as it is. When the client hangs
    up, the connection to the engine is closed at once, which is how an engine learns of it. If the
    engine breaks off, so does the answer.

    Args:
        extra_headers: added to the answer, whoever it is from.
        on_end: called once, when the call is over, however it ended.
    """

    def __init__(
        self,
        engine: Engine,
        method: str,
        target: str,
        headers: RawHeaders,
        content: bytes | None,
        *,
        extra_headers: RawHeaders = (),
        started_s: float,
        on_end: Callable[[CallEnd], None],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._request = engine.client.build_request(method, target, content=content)
        self._request.headers = httpx2.Headers(
            [*headers, *((k, v) for k, v in self._request.headers.raw if k.lower() in _FRAMING)]
        )
        self._extra_headers = list(extra_headers)
        self._started_s = started_s
        self._on_end = on_end
        self._usage = UsageReader()
        self._status: int | None = None
        self._first_byte_s: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome: Outcome = "failed"
        passing = asyncio.create_task(self._pass(scope, receive, send), name="kvflow-call")
        watching = asyncio.create_task(_disconnect(receive), name="kvflow-call-watch")
        try:
            await asyncio.wait({passing, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            passing.cancel()
            # Until it has let go of the engine.
            await asyncio.wait({passing, watching})
            if passing.cancelled():
                outcome = "cancelled"
            elif passing.exception() is None:
                outcome = passing.result()
            self._on_end(self._end(outcome))
        if outcome != "cancelled":
            passing.result()

    def _end(self, outcome: Outcome) -> CallEnd:
        duration_s = time.perf_counter() - self._started_s
        return CallEnd(outcome, self._status, duration_s, self._first_byte_s, self._usage.usage())

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> Outcome:
        try:
            answer = await self._engine.client.send(self._request, stream=True)
        except httpx2.TransportError as error:
            self._engine.failed()
            refusal = _no_answer(self._engine.url, error)
            refusal.raw_headers.extend(self._extra_headers)
            self._status = refusal.status_code
            await refusal(scope, receive, send)
            return "failed"
        try:
            self._status = answer.status_code
            scope[PASSED_ON_KEY] = True
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status_code,
                    "headers": [
                        (name.lower(), value)
                        for name, value in answer.headers.raw
                        if name.lower() not in _NOT_TO_CLIENT
                    ]
                    + self._extra_headers,
                }
            )
            async for chunk in answer.aiter_raw():
                if self._first_byte_s is None:
                    self._first_byte_s = time.perf_counter() - self._started_s
                self._usage.feed(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx2.TransportError:
            # The client has a part of the answer. Not to end it properly is all that can be done:
            # the server then breaks the connection off, as the engine has.
            self._engine.failed()
            return "failed"
        finally:
            await answer.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return "finished" if answer.status_code < 400 else "failed"


_FRAMING: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))


async def _disconnect(receive: Receive) -> Message:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return message


def _no_answer(url: str, error: httpx2.TransportError) -> Response:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        message = f"the engine at {url} cannot be reached; is it running? ({_words(error)})"
        return openai_error(502, message, "engine_unreachable")
    if isinstance(error, httpx2.TimeoutException):
        message = (
            f"the engine at {url} has said nothing for too long (KVFLOW_ENGINE_TIMEOUT_S); "
            "the call was given up"
        )
        return openai_error(504, message, "engine_timeout")
    message = f"the engine at {url} broke off before it answered ({_words(error)})"
    return openai_error(502, message, "engine_broke_off")


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
