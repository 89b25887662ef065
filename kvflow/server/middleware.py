"""What is checked of a request before a route sees it: its key, and the form of its body."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from email.message import Message as MimeHeaders
from typing import Final

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.problems import problem_response

__all__ = ["CheckBody", "RequireKey"]

_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})


class RequireKey:
    """ASGI middleware: 401 for all paths but ``open_paths`` without ``Authorization: Bearer``.

    What is not named is closed, so that a new route cannot be left open by mistake. The comparison
    takes the same time whatever the key given.
    """

    def __init__(self, app: ASGIApp, api_key: str, open_paths: Collection[str]) -> None:
        self._app = app
        self._key = api_key.encode()
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key):
            await self._app(scope, receive, send)
            return
        challenge = 'Bearer realm="kvflow"'
        if given:
            challenge += ', error="invalid_token"'
            detail = "the API key in the Authorization header is not this service's key"
        else:
            detail = "this service has an API key: send it as 'Authorization: Bearer <key>'"
        response = problem_response(401, detail, headers={"WWW-Authenticate": challenge})
        await response(scope, receive, send)


class CheckBody:
    """ASGI middleware: 413 for a body over ``max_bytes``, 415 for one that is not JSON.

    Insisting on a JSON content type keeps web pages out: a browser sends such a request to another
    site only after asking that site, which this service never allows.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _BODY_METHODS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        content_type = headers.get("content-type", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            refusal = problem_response(413, self._too_large(), headers={"Connection": "close"})
        elif not _is_json(content_type):
            given = f"not {content_type[:100]!r}" if content_type else "and there is none"
            refusal = problem_response(
                415, f"the Content-Type must be application/json, {given}", headers=None
            )
        else:
            await self._app(scope, self._counted(receive), send)
            return
        await refusal(scope, receive, send)

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counted_receive() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._too_large(), {"Connection": "close"})
            return message

        return counted_receive

    def _too_large(self) -> str:
        return f"the body must be at most {self._max_bytes} bytes (KVFLOW_MAX_BODY_BYTES)"


def _is_json(content_type: str) -> bool:
    headers = MimeHeaders()
    headers["content-type"] = content_type
    subtype = headers.get_content_subtype()
    is_application = headers.get_content_maintype() == "application"
    return is_application and (subtype == "json" or subtype.endswith("+json"))
