"""What connected engines are told: a snapshot, then what changes.

A subscription does not hold messages but the *set* of workflows whose state its engine has not
seen yet. When its connection can take more, the present state of those goes out as one message. So
a slow engine costs no memory beyond the set, misses only states that are out of date anyway, and
never the last one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final, Literal, Protocol

from kvflow.protocol import ClosedWorkflow, WorkflowSteps
from kvflow.server.event_bus import EventBus
from kvflow.server.fan_out import FanOut
from kvflow.server.hints import HintEffect, HintOverlay
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.store import StoredState, StreamKey, WorkflowRecord

__all__ = ["EngineStreams", "StateWatcher", "Subscription"]

# Some 100 workflows of 50 agents, which take a few milliseconds to encode: how long one message may
# keep everything else waiting.
_MESSAGE_CHARS: Final = 128 * 1024


class _Live:
    """A workflow's present state, encoded once however many engines it goes to."""

    __slots__ = ("_json", "_overlay", "record")

    def __init__(self, record: WorkflowRecord | StoredState, overlay: HintOverlay) -> None:
        self.record = record
        self._overlay = overlay
        self._json: str | None = None

    @property
    def json(self) -> str:
        if self._json is None:
            key, self._json = self.record.stream_key, self.record.steps_json()
            if key in self._overlay:
                told = WorkflowSteps.model_validate_json(self._json)
                told.steps_to_execution = dict(self._overlay.steps(key, told.steps_to_execution))
                self._json = told.model_dump_json()
        return self._json

    def encoded(self) -> bytes:
        return self.json.encode()


class StateWatcher(Protocol):
    """Is told of every workflow's state, as engines are. Neither method waits nor raises."""

    def changed(self, key: StreamKey, state: Callable[[], bytes]) -> None:
        """A workflow is new or has changed; calling ``state`` makes its ``WorkflowSteps``."""

    def closed(self, key: StreamKey) -> None:
        """A workflow was deleted or has expired."""


class EngineStreams:
    """The live workflows as engines see them, and the engines that are connected.

    Belongs to one event loop. No method waits, so a change is visible to all subscriptions or to
    none.
    """

    def __init__(
        self,
        lease_s: float,
        heartbeat_s: float,
        clock: Callable[[], float],
        metrics: ServiceMetrics,
        bus: EventBus,
    ) -> None:
        self.lease_s = lease_s
        self.heartbeat_s = heartbeat_s
        self.metrics = metrics
        self.bus = bus
        self.shutting_down = False
        self._clock = clock
        self._live: dict[StreamKey, _Live] = {}
        self._live_by_client: Counter[str] = Counter()
        self._overlay = HintOverlay()
        self._subscriptions: dict[Subscription, None] = {}
        self.fan_out = FanOut()
        self._watchers: list[StateWatcher] = []
        self._connections = 0

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The connected engines, longest first."""
        return tuple(self._subscriptions)

    @property
    def live_workflows(self) -> int:
        """How many workflows are live."""
        return len(self._live)

    def live_of(self, client_id: str) -> int:
        """How many live workflows this client has. O(1)."""
        return self._live_by_client[client_id]

    def keys(self) -> tuple[StreamKey, ...]:
        """All live workflows."""
        return tuple(self._live)

    def publish(self, record: WorkflowRecord | StoredState) -> None:
        """A workflow is new, or its state or deadline has changed. O(engines)."""
        if record.stream_key not in self._live:
            self._live_by_client[record.client_id] += 1
        self._live[record.stream_key] = _Live(record, self._overlay)
        self.metrics.workflows.set(len(self._live))
        for subscription in self._subscriptions:
            subscription.changed(record.stream_key)
        self.fan_out.all()
        for watcher in self._watchers:
            watcher.changed(record.stream_key, self._live[record.stream_key].encoded)

    def close(self, key: StreamKey) -> None:
        """A workflow was deleted or has expired. O(engines)."""
        if self._live.pop(key, None) is not None:
            self._live_by_client[key[0]] -= 1
            if not self._live_by_client[key[0]]:
                del self._live_by_client[key[0]]
        self._overlay.drop(key)
        self.metrics.workflows.set(len(self._live))
        self.fan_out.some([one.wake for one in self._subscriptions if one.closed(key)])
        for watcher in self._watchers:
            watcher.closed(key)

    def hint(
        self, key: StreamKey, agent_ids: Collection[str], effect: HintEffect, until_s: float
    ) -> bool:
        """Let these agents of a live workflow look nearer or further away for a time.

        False if there are too many hints; then none of these was taken.
        """
        if key not in self._live or not self._overlay.has_room(key, len(agent_ids)):
            return False
        for agent_id in agent_ids:
            self._overlay.put(key, agent_id, effect, until_s)
        self.publish(self._live[key].record)
        return True

    def forget_hints(self, key: StreamKey, agent_ids: Collection[str]) -> None:
        """Take back what was said of these agents."""
        for agent_id in agent_ids:
            self._overlay.forget(key, agent_id)
        if key in self._live:
            self.publish(self._live[key].record)

    def expire_hints(self) -> None:
        """Tell engines of the workflows whose hints are over. O(hints that are)."""
        for key in sorted(self._overlay.expire(self._clock())):
            if key in self._live:
                self.publish(self._live[key].record)

    def watch(self, watcher: StateWatcher) -> None:
        """Tell ``watcher`` of everything that is published from now on."""
        self._watchers.append(watcher)

    def shut_down(self) -> None:
        """End all streams, and those to come after their snapshot."""
        self.shutting_down = True
        for subscription in self._subscriptions:
            subscription.wake.set()

    @contextmanager
    def subscribe(self, engine_id: str | None) -> Iterator[Subscription]:
        """Connect an engine for the length of the ``with`` block."""
        self._connections += 1
        name = engine_id or f"engine-{self._connections}"
        subscription = Subscription(self, name, self._live, self._clock())
        self._subscriptions[subscription] = None
        self.metrics.engines.set(len(self._subscriptions))
        self.bus.publish("engine.connected", {"engine_id": name}, namespace=None)
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription]
            self.fan_out.forget(subscription.wake)
            self.metrics.engines.set(len(self._subscriptions))
            self.bus.publish("engine.disconnected", {"engine_id": name}, namespace=None)


class Subscription:
    """One engine's connection: which workflows it has yet to be told of."""

    def __init__(
        self,
        streams: EngineStreams,
        engine_id: str,
        live: dict[StreamKey, _Live],
        connected_at_s: float,
    ) -> None:
        self.engine_id = engine_id
        self.connected_at_s = connected_at_s
        self.last_seq = -1
        self.wake = asyncio.Event()
        self._streams = streams
        self._live = live
        # In the order of change. True: closed since last sent, whether or not it lives again.
        self._dirty: dict[StreamKey, bool] = dict.fromkeys(live, False)
        # What the engine holds. Only these are worth a "closed", so that workflows that come and
        # go while the connection is stuck leave nothing behind.
        self._known: set[StreamKey] = set()
        # What lived at the start and is still to be sent, and whether the last message said so.
        self._first_state = set(live)
        self._said_more = False

    @property
    def pending(self) -> int:
        """Workflows that changed and have not been sent."""
        return len(self._dirty)

    def changed(self, key: StreamKey) -> None:
        self._dirty.setdefault(key, False)

    def closed(self, key: StreamKey) -> bool:
        """Whether that is news to the engine."""
        self._first_state.discard(key)
        if key in self._known:
            self._dirty[key] = True
            return True
        self._dirty.pop(key, None)
        return False

    def snapshot(self) -> bytes:
        """The first message."""
        return self._state("snapshot", f'"lease_s":{self._streams.lease_s}')

    async def next_message(self) -> Callable[[], bytes] | None:
        """Wait until there is something to say; the message is made by calling the answer.

        That is for the moment when the connection can take it, as the state may change till then.
        Others get their turn in any case. ``None``: the stream ends.
        """
        if self._has_news():
            await asyncio.sleep(0)
        else:
            loop = asyncio.get_running_loop()
            silent_until_s = loop.time() + self._streams.heartbeat_s
            heartbeat = loop.call_at(silent_until_s, self.wake.set)
            try:
                # What woke it may be over, as the workflow of a change that is deleted again.
                while not self._has_news():
                    self._streams.fan_out.wait_for_news(self.wake)
                    await self.wake.wait()
                    if loop.time() >= silent_until_s and not self._has_news():
                        return self._heartbeat
            finally:
                heartbeat.cancel()
        return None if self._streams.shutting_down else self._delta

    def _has_news(self) -> bool:
        return bool(self._dirty) or self._said_more or self._streams.shutting_down

    def _delta(self) -> bytes:
        return self._state("delta", "")

    def _heartbeat(self) -> bytes:
        self._streams.metrics.stream_messages.labels("heartbeat").inc()
        seq = self._next_seq()
        return f'id: {seq}\nevent: heartbeat\ndata: {{"seq":{seq}}}\n\n'.encode()

    def _next_seq(self) -> int:
        self.last_seq += 1
        return self.last_seq

    def _take(self) -> tuple[list[str], list[ClosedWorkflow]]:
        """Take workflows off the dirty set, oldest change first, up to one message's worth."""
        workflows: list[str] = []
        closed: list[ClosedWorkflow] = []
        chars = 0
        while self._dirty and chars < _MESSAGE_CHARS:
            key = next(iter(self._dirty))
            was_closed = self._dirty.pop(key)
            self._first_state.discard(key)
            if was_closed:
                self._known.discard(key)
                closed.append(ClosedWorkflow(client_id=key[0], workflow_id=key[1]))
                chars += len(key[0]) + len(key[1])
            if live := self._live.get(key):
                self._known.add(key)
                workflows.append(live.json)
                chars += len(live.json)
        return workflows, closed

    def _state(self, event: Literal["snapshot", "delta"], more_fields: str) -> bytes:
        """A message with what has changed.

        Put together by hand: the workflows are JSON already, and for the rest, which differs from
        engine to engine, a model takes longer than all else that sending a message takes.
        """
        workflows, closed = self._take()
        self._said_more = bool(self._first_state)
        seq = self._next_seq()
        fields = [f'"seq":{seq}']
        if more_fields:
            fields.append(more_fields)
        if event == "delta":
            fields.append(f'"closed":[{",".join(one.model_dump_json() for one in closed)}]')
        fields.append(f'"more":{"true" if self._said_more else "false"}')
        fields.append(f'"workflows":[{",".join(workflows)}]')
        self._streams.metrics.stream_messages.labels(event).inc()
        self._streams.metrics.stream_workflows.inc(len(workflows))
        return f"id: {seq}\nevent: {event}\ndata: {{{','.join(fields)}}}\n\n".encode()
