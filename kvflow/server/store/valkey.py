"""Workflows on a Valkey (or Redis) server, for several services behind one address."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from kvflow.graph import AgentStepGraph
from kvflow.protocol import StepEvent
from kvflow.server.store.base import (
    Change,
    LearnedKey,
    NoteKind,
    StoreConflictError,
    StoredState,
    StoreFullError,
    StoreUnavailableError,
    WorkflowKey,
    WorkflowRecord,
)
from kvflow.server.store.encoding import (
    UNREADABLE,
    details_text,
    events_text,
    graph_from_text,
    graph_text,
    replay,
    state_from_text,
    state_is_due,
    state_text,
)
from kvflow.server.store.valkey_link import MAX_TICK_S, Link
from kvflow.server.store.valkey_scripts import DELETE, INSERT, POSITION, READ, TICK, UPDATE

__all__ = ["ValkeyStore"]

_IN_MEMORY: Final = 20_000
_GRAPHS_IN_MEMORY: Final = 256
_LISTED_AT_ONCE: Final = 500
_TICK_S: Final = 1.0
_AFTER_FAILURE_S: Final = 0.5
_SEPARATOR: Final = "\0"

logger = logging.getLogger("kvflow.server")


@dataclass(frozen=True, slots=True)
class _Known:
    """A workflow as this replica last saw it; good as long as the server has the same token."""

    record: WorkflowRecord
    journal_chars: int
    state_chars: int


class ValkeyStore:
    """A ``WorkflowStore`` that several service processes share.

    Each write is one script on the server, which does nothing if the workflow was changed since
    it was read; so versions have no gaps, whichever replicas the events come to. Every change is
    also put into one stream, which all replicas read to tell their engines.

    How durable a write is, is up to the server (``appendonly``, ``appendfsync``).

    Args:
        address: ``valkey://[user:password@]host:port/number``; ``valkeys://`` with TLS. ``redis``
            and ``rediss`` mean the same.
        max_workflows: how many may be live.

    Raises:
        EnvironmentProblemError: the server cannot be used.
    """

    shared = True

    def __init__(self, address: str, max_workflows: int) -> None:
        self._link = Link(address)
        self._max_workflows = max_workflows
        self._known: OrderedDict[WorkflowKey, _Known] = OrderedDict()
        self._graphs: OrderedDict[str, AgentStepGraph] = OrderedDict()
        self._read_to = ("0-0", 0)
        self._synced = (self._link.first_now_s, time.monotonic())

    @property
    def problem(self) -> str | None:
        return self._link.problem

    def now_s(self) -> float:
        now_s, at_s = self._synced
        return now_s + time.monotonic() - at_s

    async def keep_time(self) -> None: ...  # changes() does

    async def insert(self, record: WorkflowRecord) -> None:
        graph = graph_text(record.graph)
        token = uuid.uuid4().hex
        answer = await self._link.run(
            INSERT,
            _names(record.key),
            _member(record.key),
            token,
            self._max_workflows,
            record.client_id,
            record.workflow_id,
            details_text(record),
            hashlib.sha256(graph.encode()).hexdigest(),
            graph,
            record.expires_at_s,
            record.steps_json(),
        )
        if answer == "full":
            raise StoreFullError(self._max_workflows)
        self._written(answer, record.key)
        self._remember(_Known(replace(record, revision=token), 0, 0))

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        known = self._known.get(record.key)
        journal_chars, state_chars = (known.journal_chars, known.state_chars) if known else (0, 0)
        text = events_text(events) if events else ""
        journal_chars += len(text)
        state = state_text(record.state) if state_is_due(journal_chars, state_chars) else ""
        token = uuid.uuid4().hex
        answer = await self._link.run(
            UPDATE,
            _names(record.key),
            _member(record.key),
            record.revision,
            token,
            record.version,
            record.expires_at_s,
            record.steps_json(),
            record.client_id,
            record.workflow_id,
            text,
            state,
        )
        self._written(answer, record.key)
        sizes = (0, len(state)) if state else (journal_chars, state_chars)
        self._remember(_Known(replace(record, revision=token), *sizes))

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        known = self._known.get(key)
        revision = known.record.revision if known else ""
        found = await self._link.run(READ, _names(key), revision)
        if not found:
            self._known.pop(key, None)
            return None
        if known is not None and found[0] == revision:
            return known.record
        try:
            read = self._decoded(key, *found)
        except UNREADABLE:
            logger.exception("workflow %r cannot be read back and is dropped", "/".join(key))
            await self._drop(key, found[0])
            return None
        self._remember(read)
        return read.record

    async def delete(self, record: WorkflowRecord) -> None:
        answer = await self._delete(record.key, record.revision, record.client_id)
        self._written(answer, record.key)
        self._known.pop(record.key, None)

    async def page(
        self,
        *,
        namespace: str | None,
        client_id: str | None,
        after: WorkflowKey | None,
        limit: int,
    ) -> list[WorkflowRecord]:
        page: list[WorkflowRecord] = []
        start = after or (namespace or "", "")
        while len(page) < limit:
            keys = await self._keys_after(start, limit - len(page))
            for key in keys:
                if namespace is not None and key[0] != namespace:
                    return page
                record = await self.get(key)
                if record is not None and client_id in (None, record.client_id):
                    page.append(record)
            if not keys:
                break
            start = keys[-1]
        return page

    async def expired(self, now_s: float, limit: int) -> list[WorkflowKey]:
        with self._link.answering():
            members = await self._link.client.zrangebyscore(
                "kvflow:expires", "-inf", now_s, start=0, num=limit
            )
        return [_key(member) for member in members]

    async def count(self) -> int:
        with self._link.answering():
            return int(await self._link.client.zcard("kvflow:keys"))

    async def live(self) -> AsyncIterator[Sequence[WorkflowRecord | StoredState]]:
        # What changes while they are read is among the changes after this.
        last_id, number = await self._link.run(POSITION, [])
        start: WorkflowKey = ("", "")
        while keys := await self._keys_after(start, _LISTED_AT_ONCE):
            with self._link.answering():
                pipeline = self._link.client.pipeline(transaction=False)
                for key in keys:
                    pipeline.hmget(_names(key)[0], "client", "steps")
                found = await pipeline.execute()
            yield [
                StoredState((client_id, key[1]), steps)
                for key, (client_id, steps) in zip(keys, found, strict=True)
                if client_id is not None and steps is not None
            ]
            start = keys[-1]
        self._read_to = (last_id, int(number))

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        while True:
            try:
                await self._tick()
                last_id, number = self._read_to
                found = await self._link.changes_after(last_id)
            except StoreUnavailableError:
                await asyncio.sleep(_AFTER_FAILURE_S)
                continue
            if found and int(found[0][1]["n"]) != number + 1:
                # Some are gone from the stream that this replica has not read, or all of it is.
                yield [Change(None)]
                continue
            if found:
                self._read_to = (found[-1][0], int(found[-1][1]["n"]))
                yield [_change(fields) for _, fields in found]

    async def note(self, kind: NoteKind, name: str, values: Mapping[str, object] | None) -> None:
        with self._link.answering():
            if values is None:
                await self._link.client.hdel(f"kvflow:notes:{kind}", name)
            else:
                await self._link.client.hset(f"kvflow:notes:{kind}", name, json.dumps(values))

    async def notes(self, kind: NoteKind) -> dict[str, dict[str, object]]:
        with self._link.answering():
            found = await self._link.client.hgetall(f"kvflow:notes:{kind}")
        return {name: json.loads(content) for name, content in found.items()}

    async def keep_learned(self, texts: Mapping[LearnedKey, str | None]) -> None:
        kept = {json.dumps(key): text for key, text in texts.items() if text is not None}
        forgotten = [json.dumps(key) for key, text in texts.items() if text is None]
        with self._link.answering():
            pipeline = self._link.client.pipeline(transaction=True)
            if kept:
                pipeline.hset("kvflow:learned", mapping=kept)
            if forgotten:
                pipeline.hdel("kvflow:learned", *forgotten)
            await pipeline.execute()

    async def learned(self) -> AsyncIterator[Sequence[tuple[LearnedKey, str]]]:
        with self._link.answering():
            names = await self._link.client.hkeys("kvflow:learned")
        for start in range(0, len(names), _LISTED_AT_ONCE):
            some = names[start : start + _LISTED_AT_ONCE]
            with self._link.answering():
                texts = await self._link.client.hmget("kvflow:learned", some)
            yield [
                (key, text)
                for name, text in zip(some, texts, strict=True)
                if text is not None and (key := _learned_key(name)) is not None
            ]

    async def close(self) -> None:
        await self._link.close()

    async def _drop(self, key: WorkflowKey, token: str) -> None:
        """Forget a workflow that cannot be read back: its id must not be taken for ever."""
        self._known.pop(key, None)
        with self._link.answering():
            client_id = await self._link.client.hget(_names(key)[0], "client")
        # If another replica was faster, it has done the same.
        await self._delete(key, token, client_id or key[0])

    async def _delete(self, key: WorkflowKey, token: str, client_id: str) -> str:
        names = [*_names(key), f"kvflow:deletion:{uuid.uuid4().hex}"]
        answer: str = await self._link.run(DELETE, names, _member(key), token, client_id, key[1])
        return answer

    async def _tick(self) -> None:
        if time.monotonic() > self._synced[1] + _TICK_S:
            now_s = float(await self._link.run(TICK, [], str(MAX_TICK_S)))
            # Never back: what has expired stays so.
            self._synced = (max(now_s, self.now_s()), time.monotonic())

    async def _keys_after(self, start: WorkflowKey, limit: int) -> list[WorkflowKey]:
        with self._link.answering():
            members = await self._link.client.zrangebylex(
                "kvflow:keys", f"({_member(start)}", "+", start=0, num=limit
            )
        return [_key(member) for member in members]

    def _written(self, answer: str, key: WorkflowKey) -> None:
        if answer != "done":
            self._known.pop(key, None)
            raise StoreConflictError

    def _decoded(self, key: WorkflowKey, token: str, *found: Any) -> _Known:
        details, graph_content, expires_at_s, state_content, journal = found
        graph = self._graphs.get(graph_content)
        if graph is None:
            graph = self._graphs[graph_content] = graph_from_text(graph_content)
            if len(self._graphs) > _GRAPHS_IN_MEMORY:
                self._graphs.popitem(last=False)
        state = state_from_text(graph, state_content or None)
        replay(state, journal)
        record = WorkflowRecord(
            workflow_id=key[1],
            namespace=key[0],
            graph=graph,
            state=state,
            expires_at_s=float(expires_at_s),
            revision=token,
            **json.loads(details),
        )
        return _Known(record, sum(map(len, journal)), len(state_content))

    def _remember(self, known: _Known) -> None:
        self._known[known.record.key] = known
        self._known.move_to_end(known.record.key)
        if len(self._known) > _IN_MEMORY:
            self._known.popitem(last=False)


def _member(key: WorkflowKey) -> str:
    return _SEPARATOR.join(key)


def _key(member: str) -> WorkflowKey:
    namespace, _, workflow_id = member.partition(_SEPARATOR)
    return (namespace, workflow_id)


def _learned_key(name: str) -> LearnedKey | None:
    try:
        return LearnedKey(*json.loads(name))
    except (ValueError, TypeError):
        logger.warning("%.100r is no name of something learned; it is left out", name)
        return None


def _names(key: WorkflowKey) -> list[str]:
    return [f"kvflow:workflow:{key[0]}/{key[1]}", f"kvflow:journal:{key[0]}/{key[1]}"]


def _change(fields: Mapping[str, str]) -> Change:
    key = (fields["c"], fields["w"])
    return Change(key, StoredState(key, fields["s"]) if fields["s"] else None)
