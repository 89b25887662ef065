"""``/v1/events``: what happens in the service, as server-sent events for whoever may see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from kvflow.protocol import Identifier
from kvflow.server.event_bus import BusEvent, EventBus, EventKind, Listener, TooManyReadersError
from kvflow.server.event_models import EventsEnd, ServiceEvent
from kvflow.server.identity import Identity, RequestIdentity
from kvflow.server.openapi import SSE_ITEM, problems
from kvflow.server.sse import MakeMessage, SseResponse

__all__ = ["EventStreamResponse", "event_routes"]

_EVENTS_PER_MESSAGE: Final = 128
_DOC: Final[dict[str, Any]] = {
    "description": "Server-sent events. The name of each is its kind, `id` a number that grows by "
    "one within this response, `data` a `ServiceEvent`. Further names: `hello`, the first; "
    "`heartbeat`, when nothing else came; `dropped` and `end`, the last, with an `EventsEnd`.",
    "content": {"text/event-stream": {"itemSchema": SSE_ITEM}},
}


def event_routes(
    bus: EventBus, *, heartbeat_s: float, stall_s: float, max_readers: int
) -> APIRouter:
    """``/v1/events``."""
    router = APIRouter(prefix="/v1/events", tags=["events"])

    @router.get(
        "",
        status_code=200,
        response_class=EventStreamResponse,
        responses={200: _DOC, **problems(422, 503)},
    )
    async def stream_events(
        who: RequestIdentity,
        kind: Annotated[
            list[EventKind] | None, Query(description="Only these kinds; repeat it for several.")
        ] = None,
        workflow_id: Annotated[
            Identifier | None, Query(description="Only what is about this workflow.")
        ] = None,
        client_id: Annotated[
            Identifier | None, Query(description="Only what is about this client's workflows.")
        ] = None,
    ) -> EventStreamResponse:
        """What happens from now on, as server-sent events. A client sees what is its own.

        A reader that does not keep up is dropped, with a last event that says so.
        """
        if bus.listeners >= max_readers:
            raise TooManyReadersError(max_readers)
        where = {"workflow_id": workflow_id, "client_id": client_id}

        def listen() -> Listener:
            return bus.subscribe(
                kind,
                _visible_namespace(who),
                where={name: value for name, value in where.items() if value is not None},
            )

        return EventStreamResponse(listen, heartbeat_s, stall_s)

    return router


def _visible_namespace(who: Identity) -> str | None:
    """``None`` for all: only who runs the service, and has named no client, sees everybody's."""
    everything = who.scope in ("admin", "open") and who.client_id is None
    return None if everything else who.namespace


class EventStreamResponse(SseResponse):
    """What a listener hears, who begins to listen with the response and ends with it."""

    def __init__(self, listen: Callable[[], Listener], heartbeat_s: float, stall_s: float) -> None:
        super().__init__("a reader of /v1/events", stall_s)
        self._listen = listen
        self._heartbeat_s = heartbeat_s

    @contextmanager
    def subscribed(self) -> Iterator[AsyncGenerator[MakeMessage, None]]:
        with self._listen() as listener:
            yield _messages(listener, self._heartbeat_s)


async def _messages(listener: Listener, heartbeat_s: float) -> AsyncGenerator[MakeMessage, None]:
    seq = 0
    yield lambda: _message("hello", 0, f'{{"seq":0,"heartbeat_s":{heartbeat_s}}}')
    while True:
        try:
            async with asyncio.timeout(heartbeat_s):
                events = await listener.take(_EVENTS_PER_MESSAGE)
        except TimeoutError:
            seq += 1
            yield _heartbeat(seq)
            continue
        if not events:
            break
        yield _several(seq + 1, events)
        seq += len(events)
        # A reader that keeps up with a flood of events must not keep all else waiting.
        await asyncio.sleep(0)
    last = _dropped(seq + 1, listener) if listener.dropped else _end(seq + 1)
    yield lambda: last


def _several(first_seq: int, events: list[BusEvent]) -> MakeMessage:
    return lambda: b"".join(_event(first_seq + i, event) for i, event in enumerate(events))


def _event(seq: int, event: BusEvent) -> bytes:
    data = ServiceEvent.model_construct(
        seq=seq, kind=event.kind, at_unix_s=event.at_unix_s, data=dict(event.data)
    )
    return _message(event.kind, seq, data.model_dump_json())


def _heartbeat(seq: int) -> Callable[[], bytes]:
    return lambda: _message("heartbeat", seq, f'{{"seq":{seq}}}')


def _dropped(seq: int, listener: Listener) -> bytes:
    reason = (
        f"events came faster than they were read: more than {listener.max_waiting} were waiting. "
        "Those up to here are complete; connect again for what happens from then on"
    )
    return _message("dropped", seq, EventsEnd(seq=seq, reason=reason).model_dump_json())


def _end(seq: int) -> bytes:
    return _message(
        "end", seq, EventsEnd(seq=seq, reason="the service is shutting down").model_dump_json()
    )


def _message(name: str, seq: int, data: str) -> bytes:
    return f"id: {seq}\nevent: {name}\ndata: {data}\n\n".encode()
