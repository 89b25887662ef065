"""What connected engines are told: a snapshot, then what changes.

A subscription does not hold messages but a place in the log of changes, which has only the last one
of each workflow. When its connection can take more, the present state of what has changed since
goes out as one message. So a slow engine costs no memory, misses only states that are out of date
anyway, and never the last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from kvflow.protocol import ClosedWorkflow, WorkflowSteps
from kvflow.server.changes import ChangeLog
from kvflow.server.event_bus import EventBus
from kvflow.server.fan_out import FanOut
from kvflow.server.hints import HintEffect, HintOverlay
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.store import StoredState, StreamKey, WorkflowRecord
from kvflow.server.subscription import News, Subscription

__all__ = ["EngineStreams", "StateWatcher"]

# Some 100 workflows of 50 agents, which take a few milliseconds to encode: how long one message may
# keep everything else waiting.
_MESSAGE_BYTES: Final = 128 * 1024


class _Live:
    """A workflow's present state, encoded once however many engines it goes to."""

    __slots__ = ("_json", "_overlay", "record")

    def __init__(self, record: WorkflowRecord | StoredState, overlay: HintOverlay) -> None:
        self.record = record
        self._overlay = overlay
        self._json: bytes | None = None

    def json(self) -> bytes:
        if self._json is None:
            key, text = self.record.stream_key, self.record.steps_json()
            if key in self._overlay:
                told = WorkflowSteps.model_validate_json(text)
                told.steps_to_execution = dict(self._overlay.steps(key, told.steps_to_execution))
                text = told.model_dump_json()
            self._json = text.encode()
        return self._json


class StateWatcher(Protocol):
    """Is told of every workflow's state, as engines are. Neither method waits nor raises."""

    def changed(self, key: StreamKey, state: Callable[[], bytes]) -> None:
        """A workflow is new or has changed; calling ``state`` makes its ``WorkflowSteps``."""

    def closed(self, key: StreamKey) -> None:
        """A workflow was deleted or has expired."""


class EngineStreams:
    """The live workflows as engines see them, and the engines that are connected.

    Belongs to one event loop. No method waits, so a change is visible to all subscriptions or to
    none. A change costs the same for any number of engines; they are told of it afterwards.
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
        self._log = ChangeLog(lambda: (one.position for one in self._subscriptions))
        # By position, until the next change.
        self._news: dict[int, News] = {}
        self.fan_out = FanOut()
        # Looking them up each time would take as long as the rest of a message.
        self.messages_told = {
            event: metrics.stream_messages.labels(event)
            for event in ("snapshot", "delta", "heartbeat")
        }
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
        """A workflow is new, or its state or deadline has changed."""
        if record.stream_key not in self._live:
            self._live_by_client[record.client_id] += 1
        self._live[record.stream_key] = _Live(record, self._overlay)
        self.metrics.workflows.set(len(self._live))
        self._log.changed(record.stream_key)
        self._news.clear()
        self.fan_out.all()
        for watcher in self._watchers:
            watcher.changed(record.stream_key, self._live[record.stream_key].json)

    def close(self, key: StreamKey) -> None:
        """A workflow was deleted or has expired."""
        if self._live.pop(key, None) is not None:
            self._live_by_client[key[0]] -= 1
            if not self._live_by_client[key[0]]:
                del self._live_by_client[key[0]]
        self._overlay.drop(key)
        self.metrics.workflows.set(len(self._live))
        self._log.closed(key)
        self._news.clear()
        self.fan_out.all()
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

    @property
    def last_change(self) -> int:
        """The position of a reader that knows all."""
        return self._log.last

    def pending_since(self, position: int) -> int:
        """Of how many workflows a reader there has yet to be told; if many, at most."""
        return self._log.count_since(position)

    def news_since(self, position: int) -> News:
        """One message's worth of what is new to a reader there: made once for all who are."""
        found = self._news.get(position)
        if found is None:
            found = self._news[position] = self._make_news(position)
        return found

    def _make_news(self, position: int) -> News:
        workflows: list[bytes] = []
        closed: list[bytes] = []
        size = 0
        following = None
        for change in self._log.since(position):
            if size >= _MESSAGE_BYTES:
                following = change.number
                break
            position = change.number
            if change.closed:
                client_id, workflow_id = change.key
                one = ClosedWorkflow(client_id=client_id, workflow_id=workflow_id)
                closed.append(one.model_dump_json().encode())
                size += len(closed[-1])
            else:
                workflows.append(self._live[change.key].json())
                size += len(workflows[-1])
        return News(
            position=self._log.last if following is None else position,
            following=following,
            workflow_count=len(workflows),
            closed=b",".join(closed),
            workflows=b",".join(workflows),
        )

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
        subscription = Subscription(self, name, self._clock())
        self._subscriptions[subscription] = None
        self.metrics.engines.set(len(self._subscriptions))
        self.bus.publish("engine.connected", {"engine_id": name}, namespace=None)
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription]
            self.fan_out.forget(subscription)
            self.metrics.engines.set(len(self._subscriptions))
            self.bus.publish("engine.disconnected", {"engine_id": name}, namespace=None)
