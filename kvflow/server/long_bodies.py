"""Long request bodies are read some at a time, and others get their turn in between.

FastAPI parses and checks a body in one go, in which nobody else is served: tens of milliseconds for
10,000 events, half a second for a graph of 100,000 edges. Here what is long is parsed in pieces and
its items become models some at a time. FastAPI then checks the whole, for which models are good as
they are; what was wrong is still as it came, so FastAPI finds it and says so.

For wrong events it need not: a list may be wrong from end to end, which takes even longer to find
and to say. ``RightEvents`` is told of the same errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from fastapi import Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from kvflow.protocol import AgentSpec, EdgeSpec, StepEvent
from kvflow.server.bodies import LIST_TAG, MAX_EVENTS
from kvflow.server.turns import AT_ONCE, long_work, others_turn

__all__ = ["LongBodyRoute", "RightEvents", "checked_events", "checked_graph", "parsed_json"]

_LONG_BYTES: Final = 32 * 1024
"""Of a body, and of the pieces it is parsed in: some tenths of a millisecond."""

_EVENTS: Final = TypeAdapter(list[StepEvent])
_AGENTS: Final = TypeAdapter(list[AgentSpec])
_EDGES: Final = TypeAdapter(list[EdgeSpec])


class LongBodyRoute(APIRoute):
    """A route whose body may be a long list of events, or a large graph."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            return await handler(_LongBodyRequest(request.scope, request.receive))

        return handle


class _LongBodyRequest(Request):
    """``json()`` may hold models where the body has objects."""

    _long_body: Any
    wrong_events: Sequence[dict[str, Any]] = ()  # of an empty body nothing is asked

    async def json(self) -> Any:
        if not hasattr(self, "_long_body"):
            raw = await self.body()
            body = await parsed_json(raw)
            self.wrong_events = await checked_events(body)
            await checked_graph(body)
            self._long_body = body
        return self._long_body


async def _refuse_wrong_events(request: Request) -> None:
    assert isinstance(request, _LongBodyRequest)  # noqa: S101 - for the type checker
    if request.wrong_events:
        errors = [
            {**error, "loc": ("body", LIST_TAG, *error["loc"])} for error in request.wrong_events
        ]
        raise RequestValidationError(errors)


RightEvents = Depends(_refuse_wrong_events)
"""Dependency of a ``LongBodyRoute`` that takes events: refuses a long list with wrong ones in it,
as FastAPI would. To come after what refuses a request whatever its body is."""


async def parsed_json(raw: bytes) -> Any:
    """What ``json.loads`` makes of it, with its errors; a long list of objects in turns.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deeply.
    """
    if len(raw) > _LONG_BYTES:
        try:
            items = await _list_in_pieces(raw)
            # Faster than json.loads, but stricter, and with other words for what is wrong.
            return from_json(raw) if items is None else items
        except ValueError:
            pass
    return json.loads(raw)


async def _list_in_pieces(raw: bytes) -> list[Any] | None:
    """The items of a list of objects; ``None`` if it is something else.

    A list is cut after an object that another follows. Where that turns out to be inside of an
    object or a text, the piece is no JSON: then one does not know better than to parse it whole.

    Raises:
        ValueError: a piece is no JSON.
    """
    text = raw.strip(b" \t\r\n")
    if text[:1] != b"[" or text[-1:] != b"]":
        return None
    items: list[Any] = []
    start = 1
    with long_work():
        while (end := text.find(b"},", start + _LONG_BYTES) + 1) > 0:
            items += from_json(b"[%b]" % text[start:end])
            start = end + 1
            await others_turn()
    last: list[Any] = from_json(b"[%b" % text[start:])
    if start > 1 and not last:
        raise ValueError("a comma is followed by nothing")
    items += last
    return items


async def checked_events(body: Any) -> list[dict[str, Any]]:
    """Make models of a long list of events, in their place in the list; of wrong ones, not.

    Returns:
        what pydantic says is wrong with these.
    """
    if isinstance(body, list) and len(body) <= MAX_EVENTS:
        return await _checked(body, _EVENTS)
    return []


async def checked_graph(body: Any) -> None:
    """Make models of the agents and edges of a large workflow, likewise."""
    if isinstance(body, dict):
        await _checked(body.get("agents"), _AGENTS)
        await _checked(body.get("edges"), _EDGES)


async def _checked(items: Any, models: TypeAdapter[Any]) -> list[dict[str, Any]]:
    wrong: list[dict[str, Any]] = []
    if not isinstance(items, list) or len(items) <= AT_ONCE:
        return wrong
    with long_work():
        for start in range(0, len(items), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            try:
                items[some] = models.validate_python(items[some], from_attributes=True)
            except ValidationError as error:
                for one in error.errors(include_url=False):
                    index, *path = one["loc"]
                    assert isinstance(index, int)  # noqa: S101 - for the type checker
                    wrong.append({**one, "loc": (start + index, *path)})
            await others_turn()
    return wrong
