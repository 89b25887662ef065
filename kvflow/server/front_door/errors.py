"""Errors of the front door in the shape that OpenAI's clients read: ``{"error": {...}}``."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow.server.problems import PROBLEM_MEDIA_TYPE

__all__ = ["FRONT_DOOR_PATHS", "PASSED_ON_KEY", "AnswerAsOpenAI", "is_front_door", "openai_error"]

FRONT_DOOR_PATHS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/responses",
)
PASSED_ON_KEY: Final = "kvflow.passed_on"
"""Set in the ASGI scope of a request whose answer is the engine's, which is left as it is."""

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def openai_error(
    status: int, message: str, code: str, headers: dict[str, str] | None = None
) -> Response:
    """An error answer of our own; ``code`` is one of those in ``docs/front-door.md``."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Response(
        json.dumps({"error": error}).encode("ascii"),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


class AnswerAsOpenAI:
    """ASGI middleware: the service's own problem documents, on the front door's routes, in
    OpenAI's shape.

    To be outermost, as a missing key or a body that is too large is refused by other middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_front_door(scope["path"]):
            await self._app(scope, receive, send)
            return
        head: Message | None = None
        body = bytearray()

        async def translated_send(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start" and _is_problem(scope, message):
                head = message
            elif head is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _translated(head, bytes(body))(scope, receive, send)

        await self._app(scope, receive, translated_send)


def is_front_door(path: str) -> bool:
    """Whether the path is one that OpenAI's clients call."""
    return path in FRONT_DOOR_PATHS or path.startswith("/v1/models/")


def _is_problem(scope: Scope, head: Message) -> bool:
    if PASSED_ON_KEY in scope:
        return False
    types = [value for name, value in head["headers"] if name.lower() == b"content-type"]
    return bool(types) and types[0].startswith(PROBLEM_MEDIA_TYPE.encode())


def _translated(head: Message, body: bytes) -> Response:
    problem: dict[str, Any] = json.loads(body)
    code = problem["type"].rsplit(":", 1)[-1].replace("-", "_")
    response = openai_error(head["status"], problem["detail"], code)
    for name, value in head["headers"]:
        if name.lower() not in (b"content-type", b"content-length"):
            response.raw_headers.append((name, value))
    return response
