"""What the service has to say to the broker: plans, engines and what their caches hold, calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Final

from kvflow.server.event_bus import BusEvent, EventBus
from kvflow.server.mqtt.outbox import Outbox
from kvflow.server.mqtt.topics import Topics, is_identifier
from kvflow.server.store import StreamKey
from kvflow.server.stream import EngineStreams

__all__ = ["News"]

_KINDS: Final = frozenset(
    {"engine.connected", "engine.disconnected", "engine.report", "call.finished"}
)


class News:
    """Puts into the outbox what happens, whether or not the broker is there to take it."""

    def __init__(
        self, streams: EngineStreams, bus: EventBus, topics: Topics, outbox: Outbox
    ) -> None:
        self._streams = streams
        self._bus = bus
        self._topics = topics
        self._outbox = outbox
        streams.watch(self)

    def changed(self, key: StreamKey, plan: Callable[[], bytes]) -> None:
        """A workflow is new or has changed."""
        self._outbox.keep(self._topics.plan(*key), plan)

    def closed(self, key: StreamKey) -> None:
        """A workflow has ended."""
        self._outbox.clear(self._topics.plan(*key))

    async def follow_bus(self) -> None:
        """The task that hands on what the bus tells. Ends with the bus."""
        while True:
            with self._bus.subscribe(_KINDS) as listener:
                while events := await listener.take():
                    for event in events:
                        self._hand_on(event)
                if not listener.dropped:
                    return

    def _hand_on(self, event: BusEvent) -> None:
        if event.kind == "call.finished":
            client_id = event.data.get("client_id")
            if isinstance(client_id, str) and is_identifier(client_id):
                self._outbox.send(self._topics.calls(client_id), _document(event))
            return
        engine_id = event.data.get("engine_id")
        if not isinstance(engine_id, str) or not is_identifier(engine_id):
            return
        status = self._topics.engine_status(engine_id)
        report = self._topics.engine_report(engine_id)
        if event.kind == "engine.connected":
            self._outbox.keep(status, partial(_status, event))
        elif event.kind == "engine.report":
            self._outbox.keep(report, partial(_document, event))
        elif all(one.engine_id != engine_id for one in self._streams.subscriptions):
            # Of several connections under one name the last has ended.
            self._outbox.clear(status)
            self._outbox.clear(report)


def _status(event: BusEvent) -> bytes:
    return json.dumps({"status": "connected", "since_unix_s": event.at_unix_s}).encode()


def _document(event: BusEvent) -> bytes:
    return json.dumps({"at_unix_s": event.at_unix_s, **event.data}).encode()
