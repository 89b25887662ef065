"""Which request a line of the log is about.

``IdentifyRequests`` gives every request an id, the client's own if it brings one, and answers with
it. While the request is handled, ``request_facts()`` says what is known of it; the log's formatters
ask. Nothing is computed for requests that nothing is logged about.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.identity import IDENTITY_KEY

__all__ = [
    "REQUEST_ID_HEADER",
    "IdentifyRequests",
    "about",
    "current_request",
    "id_headers",
    "request_facts",
]

REQUEST_ID_HEADER: Final = "X-Request-ID"
_ID_KEY: Final = "kvflow.request_id"
_HEADER: Final = REQUEST_ID_HEADER.lower().encode()
_GIVEN: Final = re.compile(rb"[A-Za-z0-9._:@+/=-]{1,128}")

_current: Final[ContextVar[Scope | None]] = ContextVar("kvflow_request", default=None)


class IdentifyRequests:
    """ASGI middleware: takes ``X-Request-ID`` or makes one up, and returns it with the answer.

    An id of other than 1 to 128 letters, digits and ``. _ : @ + / = -`` is not taken.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        taken = given if _GIVEN.fullmatch(given) else os.urandom(16).hex().encode()
        scope[_ID_KEY] = taken.decode()

        async def identified_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [pair for pair in message.get("headers", ()) if pair[0] != _HEADER]
                message["headers"] = [*others, (_HEADER, taken)]
            await send(message)

        with about(scope):
            await self._app(scope, receive, identified_send)


@contextmanager
def about(scope: Scope) -> Iterator[None]:
    """What is logged inside the block is about this request."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


def current_request() -> Scope | None:
    """The ASGI scope of the request that this code handles."""
    return _current.get()


def id_headers(scope: Scope) -> dict[str, str]:
    """For an answer that does not pass the middleware: the request's id, if it has one."""
    return {REQUEST_ID_HEADER: scope[_ID_KEY]} if _ID_KEY in scope else {}


def request_facts() -> dict[str, str]:
    """What is known of the request that this code handles; ``{}`` outside any."""
    scope = _current.get()
    if scope is None:
        return {}
    identity = scope.get(IDENTITY_KEY)
    span = trace.get_current_span().get_span_context()
    facts = {
        "request_id": scope.get(_ID_KEY),
        "workflow_id": scope.get("path_params", {}).get("workflow_id"),
        "client_id": identity.client_id if identity is not None else None,
        "trace_id": f"{span.trace_id:032x}" if span.is_valid else None,
        "span_id": f"{span.span_id:016x}" if span.is_valid else None,
    }
    return {name: str(value) for name, value in facts.items() if value}
