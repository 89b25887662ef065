"""What the service does with workflows: create, read, update by events, delete, expire."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence, Set
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from kvflow.errors import (
    ForbiddenError,
    QuotaError,
    WorkflowConflictError,
    WorkflowNotFoundError,
)
from kvflow.graph import AgentStepGraph, GraphPool, WorkflowState
from kvflow.graph_specs import agents_from, edges_from
from kvflow.protocol import LearnedWorkflowSpec, StepEvent, WorkflowSpec
from kvflow.server.applying import EventRefusedError, apply_all, count_outcomes, take_times
from kvflow.server.event_bus import EventBus
from kvflow.server.finishing import finished
from kvflow.server.learned.orders import LearnedOrders, expected_times
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.recorder import Recorder
from kvflow.server.store import (
    Change,
    ExpectedTimes,
    StoreConflictError,
    StoreUnavailableError,
    WorkflowKey,
    WorkflowRecord,
    WorkflowStore,
)
from kvflow.server.stream import EngineStreams
from kvflow.server.turns import AT_ONCE, long_work
from kvflow.server.workflow_events import publish_closed, publish_created, publish_steps

__all__ = ["EventRefusedError", "EventsApplied", "Workflows"]

# Above this size, building and checking a graph takes milliseconds and moves to a thread.
_LARGE_GRAPH: Final = 2_000
_SWEEP_BATCH: Final = 256
_CONFLICTS: Final = 200
_CONFLICT_PAUSE_S: Final = 0.01
_FOLLOW_AGAIN_S: Final = 1.0

logger = logging.getLogger("kvflow.server")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EventsApplied:
    """What a request's events did; ``record`` is the workflow after them."""

    record: WorkflowRecord
    applied: int
    duplicates: int
    mispredictions: int


class Workflows:
    """The live workflows, kept in the store and shown to the engines.

    Changes of one workflow happen one after the other, each with its message to the engines, so
    that engines see them in order; different workflows do not wait for each other.
    """

    def __init__(
        self,
        store: WorkflowStore,
        streams: EngineStreams,
        metrics: ServiceMetrics,
        clock: Callable[[], float],
        recorder: Recorder,
        *,
        bus: EventBus,
        orders: LearnedOrders | None = None,
        has_keys: Callable[[str], bool] = lambda client_id: False,
    ) -> None:
        self._store = store
        self._orders = LearnedOrders() if orders is None else orders
        self._has_keys = has_keys
        self._streams = streams
        self._metrics = metrics
        self._clock = clock
        self._recorder = recorder
        self._bus = bus
        self._graphs = GraphPool()
        self._locks: WeakValueDictionary[WorkflowKey, asyncio.Lock] = WeakValueDictionary()
        self._being_created: Counter[str] = Counter()

    async def load(self) -> None:
        """Show the engines what the store holds. Once, before the first request."""
        async for states in self._store.live():
            for state in states:
                self._streams.publish(state)

    async def follow(self) -> None:
        """Show the engines what all replicas do, where several share the store, and what the store
        has lost. Ends with the store's changes only."""
        while True:
            try:
                async for changes in self._store.changes():
                    for change in changes:
                        await self._take(change)
            except Exception:
                # Engines that hear nothing more would be worse than any change that is no good.
                logger.exception("a change in the store could not be told to the engines")
                await asyncio.sleep(_FOLLOW_AGAIN_S)
                await self._take(Change(None))
            else:
                return

    async def _take(self, change: Change) -> None:
        if change.stream_key is None:
            with suppress(StoreUnavailableError):  # it will be said again
                await self._reload()
        elif change.state is not None:
            self._streams.publish(change.state)
        else:
            self._streams.close(change.stream_key)
            self._orders.gone(change.stream_key)

    async def _reload(self) -> None:
        gone = set(self._streams.keys())
        async for states in self._store.live():
            for state in states:
                self._streams.publish(state)
                gone.discard(state.stream_key)
        for key in gone:
            self._streams.close(key)

    async def create(
        self,
        spec: WorkflowSpec | LearnedWorkflowSpec,
        *,
        namespace: str = "",
        most: int | None = None,
    ) -> tuple[WorkflowRecord, bool]:
        """Create a workflow; ``(record, whether it is new)``.

        In a namespace of its own the workflow is that client's, whatever ``spec.client_id`` says.

        Creating what exists with the same content changes nothing but its deadline, which starts
        anew. The order of agents, edges and entry agents is not content. A declaration takes the
        place of a workflow that declared nothing.

        Engines know a workflow by its client and id alone, so one that is new ends the one of the
        same two in the other namespace, where the client has just got its first key or lost its
        last one.

        Raises:
            ForbiddenError: outside its namespace, for a client that has one.
            GraphError, InvalidInputError: the graph cannot work.
            WorkflowConflictError: it exists with other content.
            StoreFullError: there are too many workflows.
            QuotaError: the client whose namespace it is has ``most`` live workflows already.
        """
        if not namespace and self._has_keys(spec.client_id):
            raise ForbiddenError(
                ("client_id",),
                f"client {spec.client_id!r} has keys of its own, and so a namespace of its own",
            )
        fresh = await self._fresh_record(spec, namespace)
        return await self._agreed(lambda: self._create(fresh, most))

    async def _create(self, fresh: WorkflowRecord, most: int | None) -> tuple[WorkflowRecord, bool]:
        async with self._lock_both(fresh):
            existing = await self._find(fresh.key)
            if existing is not None and existing.learned and not fresh.learned:
                await self._close(existing, "deleted")
                existing = None
            if existing is None:
                if (twin := await self._twin(fresh)) is not None:
                    await self._close(twin, "deleted")
                with self._room(fresh.namespace, most):
                    with self._metrics.store_seconds.labels("insert").time():
                        await self._store.insert(fresh)
                    self._publish(fresh)
                self._metrics.created.inc()
                if not fresh.learned:
                    self._recorder.created(fresh)
                publish_created(self._bus, fresh)
                return fresh, True
            if differing := _differing(existing, fresh):
                raise WorkflowConflictError(fresh.workflow_id, differing)
            renewed = replace(existing, expires_at_s=fresh.expires_at_s)
            await self._store.update(renewed, ())
            self._publish(renewed)
            return renewed, False

    async def get(self, workflow_id: str, *, namespace: str = "") -> WorkflowRecord:
        """The workflow.

        Raises:
            WorkflowNotFoundError: there is no live workflow with this id.
        """
        key = (namespace, workflow_id)
        record = await self._store.get(key)
        if record is not None and record.expires_at_s <= self._clock():
            record = await self._agreed(lambda: self._find_locked(key))
        if record is None:
            raise WorkflowNotFoundError(workflow_id)
        return record

    def expected(self, record: WorkflowRecord) -> ExpectedTimes | None:
        """When its agents are expected to run, as seen now; None if no durations are known."""
        return self._orders.expected(record, self._clock())

    async def page(
        self,
        *,
        client_id: str | None,
        after: str | None,
        limit: int,
        namespace: str | None = "",
    ) -> tuple[list[WorkflowRecord], str | None]:
        """At most ``limit`` workflows by id, and the ``after`` of the next page, if there is one.

        A page can have fewer than ``limit`` although more follow, as expired ones are left out.
        With ``namespace`` of ``None`` it is over all of them, and ``after`` is
        ``<namespace>/<workflow_id>``.
        """
        key: WorkflowKey | None = None
        if after is not None:
            within, _, last = after.rpartition("/")
            key = (within if namespace is None else namespace, last)
        records = await self._store.page(
            namespace=namespace, client_id=client_id, after=key, limit=limit + 1
        )
        following: str | None = None
        if len(records) > limit:
            last_one = records[limit - 1]
            following = last_one.workflow_id if namespace is not None else "/".join(last_one.key)
        now_s = self._clock()
        return [record for record in records[:limit] if record.expires_at_s > now_s], following

    async def delete(self, workflow_id: str, *, namespace: str = "") -> None:
        """End the workflow.

        Raises:
            WorkflowNotFoundError: there is no live workflow with this id.
        """
        await self._agreed(lambda: self._delete((namespace, workflow_id)))

    async def _delete(self, key: WorkflowKey) -> None:
        async with self._lock(key):
            record = await self._find(key)
            if record is None:
                raise WorkflowNotFoundError(key[1])
            await self._close(record, "deleted")

    async def apply(
        self, workflow_id: str, events: Sequence[StepEvent], *, namespace: str = ""
    ) -> EventsApplied:
        """Apply the events in order: all, or on any error none.

        The deadline starts anew even if every event is a duplicate. Costs O(events) and one
        recomputation of this workflow's steps.

        Raises:
            WorkflowNotFoundError: there is no live workflow with this id.
            EventRefusedError: an event names an unknown agent or does not fit the state.
        """
        with long_work() if len(events) > AT_ONCE else nullcontext():
            return await self._agreed(lambda: self._apply((namespace, workflow_id), events))

    async def _apply(self, key: WorkflowKey, events: Sequence[StepEvent]) -> EventsApplied:
        async with self._lock(key):
            record = await self._find(key)
            if record is None:
                raise WorkflowNotFoundError(key[1])
            started_s = time.perf_counter()
            now_s = self._clock()
            state = self._orders.state(record, events) or record.state.copy()
            outcomes, sources = await apply_all(state, events)
            state.step_values()  # computed here and kept by the state, for all who ask later
            times = self._orders.times(record)
            await take_times(times, events, sources, now_s)
            updated = replace(
                record,
                state=state,
                graph=state.graph,
                expected=expected_times(state, times, now_s),
                expires_at_s=now_s + record.ttl_s,
            )
            self._metrics.update_seconds.observe(time.perf_counter() - started_s)
            with self._metrics.store_seconds.labels("update").time():
                await self._store.update(updated, events)
            self._orders.applied(updated, times)
            self._publish(updated)
            paired = zip(events, outcomes, strict=True)
            new = [event for event, outcome in paired if not outcome.duplicate]
            if new and not updated.learned:
                self._recorder.applied(updated.recorded_id, new)
            await publish_steps(self._bus, updated, events, outcomes)
        counts = count_outcomes(events, outcomes)
        for names, count in counts.items():
            self._metrics.events.labels(*names).inc(count)
        by_outcome = Counter[str]()
        for (_, outcome), count in counts.items():
            by_outcome[outcome] += count
        return EventsApplied(
            record=updated,
            applied=by_outcome["applied"] + by_outcome["misprediction"],
            duplicates=by_outcome["duplicate"],
            mispredictions=by_outcome["misprediction"],
        )

    async def sweep(self) -> int:
        """End all workflows whose time is over; how many there were."""
        swept = 0
        while expired := await self._store.expired(self._clock(), _SWEEP_BATCH):
            # At once, as a durable store writes many workflows about as fast as one.
            ended = await asyncio.gather(
                *(finished(self._expire(key)) for key in expired), return_exceptions=True
            )
            for error in ended:
                if isinstance(error, BaseException):
                    raise error
            if not any(ended):
                break
            swept += sum(map(bool, ended))
            await asyncio.sleep(0)
        return swept

    async def end_outside(self, client_ids: Set[str]) -> Counter[str]:
        """End the workflows that these clients have outside the namespaces of their own; how many
        of each. O(live workflows)."""
        ended = Counter[str]()
        for number, (client_id, workflow_id) in enumerate(self._streams.keys()):
            if client_id in client_ids:
                key = ("", workflow_id)
                ended[client_id] += await self._agreed(partial(self._end_outside, key, client_id))
            if number % _SWEEP_BATCH == 0:
                await asyncio.sleep(0)
        return +ended

    async def _end_outside(self, key: WorkflowKey, client_id: str) -> bool:
        record = await self._store.get(key)
        if record is None or record.client_id != client_id:
            return False
        async with self._lock_both(record):
            found = await self._find(key)
            if found is None or found.client_id != client_id:
                return False
            twin = await self._twin(found)
            await self._close(found, "deleted")
            if twin is not None:
                # Engines took the end for that of this one.
                await self._store.update(twin, ())
                self._publish(twin)
        return True

    @contextmanager
    def _room(self, namespace: str, most: int | None) -> Iterator[None]:
        has = self._streams.live_of(namespace) + self._being_created[namespace]
        if most is not None and has >= most:
            raise QuotaError(
                f"client {namespace!r} may have {most} live workflows and has as many; delete "
                "some, or create them with a shorter ttl_s"
            )
        self._being_created[namespace] += 1
        try:
            yield
        finally:
            self._being_created[namespace] -= 1
            if not self._being_created[namespace]:
                del self._being_created[namespace]

    async def _expire(self, key: WorkflowKey) -> bool:
        """End the workflow if its time is over."""
        try:
            async with self._lock(key):
                # It may have had an event, or be another by now, since it was listed.
                there = await self._store.get(key) is not None
                return there and await self._find(key) is None
        except StoreConflictError:
            return False  # another replica was at it, too

    async def _agreed(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do it on the workflow as it is stored, again if another replica was faster."""
        for _ in range(_CONFLICTS):
            try:
                return await finished(attempt())
            except StoreConflictError:
                # Not in step with the other one, or both may meet again.
                await asyncio.sleep(random.uniform(0, _CONFLICT_PAUSE_S))
        raise StoreUnavailableError(
            "other replicas of the service kept changing this workflow; nothing was changed, "
            "try again"
        )

    def _publish(self, record: WorkflowRecord) -> None:
        # Of a shared store, what is told to engines comes from follow() alone: one order for all.
        if record.learned or not self._store.shared:
            self._streams.publish(record)

    def _lock(self, key: WorkflowKey) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    @asynccontextmanager
    async def _lock_both(self, record: WorkflowRecord) -> AsyncIterator[None]:
        """The locks of the workflow and of its twin, in one order for all."""
        first, second = sorted((record.key, _twin_key(record)))
        async with self._lock(first), self._lock(second):
            yield

    async def _twin(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """The live workflow that engines could not tell from this one."""
        if not self._streams.live_of(record.client_id):
            return None
        twin = await self._find(_twin_key(record))
        return twin if twin is not None and twin.client_id == record.client_id else None

    async def _find_locked(self, key: WorkflowKey) -> WorkflowRecord | None:
        async with self._lock(key):
            return await self._find(key)

    async def _find(self, key: WorkflowKey) -> WorkflowRecord | None:
        """The workflow if it lives; one whose time is over ends here. Called under its lock."""
        record = await self._store.get(key)
        if record is not None and record.expires_at_s <= self._clock():
            await self._close(record, "expired")
            return None
        return record

    async def _close(self, record: WorkflowRecord, reason: str) -> None:
        with self._metrics.store_seconds.labels("delete").time():
            await self._store.delete(record)
        self._metrics.closed.labels(reason).inc()
        self._orders.closed(record)
        if record.learned or not self._store.shared:
            self._streams.close(record.stream_key)
        if not record.learned:
            self._recorder.closed(record.recorded_id, reason)
        publish_closed(self._bus, record, reason)

    async def _fresh_record(
        self, spec: WorkflowSpec | LearnedWorkflowSpec, namespace: str
    ) -> WorkflowRecord:
        state = (
            self._orders.fresh_state()
            if isinstance(spec, LearnedWorkflowSpec)
            else WorkflowState(await self._graph(spec))
        )
        return WorkflowRecord(
            workflow_id=spec.workflow_id or f"wf-{uuid.uuid4().hex}",
            client_id=namespace or spec.client_id,
            name=spec.name,
            ttl_s=spec.ttl_s,
            graph=state.graph,
            state=state,
            expires_at_s=self._clock() + spec.ttl_s,
            namespace=namespace,
        )

    async def _graph(self, spec: WorkflowSpec) -> AgentStepGraph:
        if len(spec.agents) + len(spec.edges) > _LARGE_GRAPH:
            return await asyncio.to_thread(_graph_alone, spec)
        return self._graphs.graph(agents_from(spec.agents), edges_from(spec.edges), spec.entry)


def _graph_alone(spec: WorkflowSpec) -> AgentStepGraph:
    return AgentStepGraph(agents_from(spec.agents), edges_from(spec.edges), spec.entry)


def _twin_key(record: WorkflowRecord) -> WorkflowKey:
    return ("" if record.namespace else record.client_id, record.workflow_id)


def _differing(existing: WorkflowRecord, fresh: WorkflowRecord) -> list[str]:
    contents = {
        "learn": (existing.learned, fresh.learned),
        "client_id": (existing.client_id, fresh.client_id),
        "name": (existing.name, fresh.name),
        "ttl_s": (existing.ttl_s, fresh.ttl_s),
        "agents": (frozenset(existing.graph.agents), frozenset(fresh.graph.agents)),
        "edges": (frozenset(existing.graph.edges), frozenset(fresh.graph.edges)),
        "entry": (frozenset(existing.graph.entry), frozenset(fresh.graph.entry)),
    }
    if existing.learned and fresh.learned:  # what was learned meanwhile is no content
        contents = {name: contents[name] for name in ("client_id", "name", "ttl_s")}
    return [name for name, (old, new) in contents.items() if old != new]
