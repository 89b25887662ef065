"""What is checked of the form of a request before a route sees it: its head and its body."""

from __future__ import annotations

from email.message import Message as MimeHeaders
from typing import Final

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.problems import problem_response

__all__ = ["CheckBody", "CheckHead"]

_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})


class CheckHead:
    """ASGI middleware: 431 for a request whose address and headers are over ``max_bytes``, 404 for
    a path with ``.`` or ``..`` in it.

    No route has such a path, but one that takes the rest of a path as it is would match it, and
    whoever that is passed on to would understand another path by it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._max_bytes:
            refusal = problem_response(
                431,
                f"the address and headers of a request must be at most {self._max_bytes} bytes "
                "(KVFLOW_MAX_HEAD_BYTES)",
                headers={"Connection": "close"},
            )
        elif {".", ".."} & set(scope["path"].split("/")):
            refusal = problem_response(404, "a path may not have . or .. in it")
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)


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
