"""Workflows in an SQLite database: what was acknowledged outlasts the process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from kvflow.graph import AgentStepGraph
from kvflow.protocol import StepEvent
from kvflow.server.store.base import (
    Change,
    LearnedKey,
    NoteKind,
    StoredState,
    StoreFullError,
    WorkflowKey,
    WorkflowRecord,
)
from kvflow.server.store.deadlines import Deadlines
from kvflow.server.store.encoding import (
    details_text,
    events_text,
    graph_text,
    state_is_due,
    state_text,
)
from kvflow.server.store.sqlite_file import DatabaseFile
from kvflow.server.store.sqlite_reader import Listed, Reader
from kvflow.server.store.sqlite_writer import Writer
from kvflow.server.store.sqlite_writes import (
    Created,
    Deleted,
    Learned,
    Noted,
    Ticked,
    Updated,
    write_all,
)

__all__ = ["SQLiteStore"]

_IN_MEMORY: Final = 20_000
_LISTED_AT_ONCE: Final = 256
_TICK_S: Final = 10.0
_GRAPHS_IN_MEMORY: Final = 64


@dataclass(slots=True)
class _Entry:
    """What is known of every workflow, whether or not the rest of it is in memory."""

    row: int
    client_id: str
    version: int
    expires_at_s: float
    journal_chars: int = 0
    state_chars: int = 0


class SQLiteStore:
    """A ``WorkflowStore`` in one file, for one service process.

    A write returns when its commit has reached the disk. What is in memory changes after that, so
    that nobody sees what could still be lost.

    Per workflow the database holds the whole state as of some version and the events since, so
    that an event costs a write of its own size. In memory are a few numbers for every workflow and
    the ``in_memory`` that were used last; others are read back when they are needed.

    Args:
        path: the file; made if it is not there, as is its folder.
        max_workflows: how many may be live.
        in_memory: how many to keep decoded.

    Raises:
        EnvironmentProblemError: the file cannot be used; says why and what to do.
    """

    shared = False

    def __init__(self, path: Path, max_workflows: int, in_memory: int = _IN_MEMORY) -> None:
        self._max_workflows = max_workflows
        self._in_memory = in_memory
        self._entries: dict[WorkflowKey, _Entry] = {}
        self._records: OrderedDict[WorkflowKey, WorkflowRecord] = OrderedDict()
        self._deadlines = Deadlines(self._expires_at_s)
        self._graphs: OrderedDict[int, tuple[AgentStepGraph, str, str]] = OrderedDict()
        self._dropped: asyncio.Queue[Change] = asyncio.Queue()
        self._inserting = 0
        self._next_row = 1
        self._file = DatabaseFile(path)
        with self._file.opening():
            self._reader = Reader(self._file)
            self._listed = self._load()
            # While the service is down its clock stands still: nobody could have sent an event,
            # and no clock of the machine has to be believed.
            self._began_s = self._reader.now_s() - time.monotonic()
            self._ticked_s = self.now_s()
            self._writer = Writer(self._file, self.now_s)

    @property
    def problem(self) -> str | None:
        return self._writer.problem

    def now_s(self) -> float:
        return self._began_s + time.monotonic()

    async def keep_time(self) -> None:
        # Every commit brings the clock along; this is for a service that has nothing to do.
        if self.now_s() > self._ticked_s + _TICK_S:
            self._ticked_s = self.now_s()
            await self._writer.write(Ticked(self.now_s()))

    async def insert(self, record: WorkflowRecord) -> None:
        if len(self._entries) + self._inserting >= self._max_workflows:
            raise StoreFullError(self._max_workflows)
        entry = _Entry(self._next_row, record.client_id, record.version, record.expires_at_s)
        self._next_row += 1
        graph, digest = self._graph(record.graph)
        write = Created(
            row=entry.row,
            namespace=record.namespace,
            workflow_id=record.workflow_id,
            details=details_text(record),
            graph=graph,
            graph_digest=digest,
            expires_at_s=record.expires_at_s,
            steps=record.steps_json(),
        )
        self._inserting += 1
        try:
            await self._writer.write(write)
        finally:
            self._inserting -= 1
        self._entries[record.key] = entry
        self._deadlines.add(record.expires_at_s, record.key, self._entries)
        self._remember(record)

    async def update(self, record: WorkflowRecord, events: Sequence[StepEvent]) -> None:
        entry = self._entries[record.key]
        text = events_text(events) if record.version != entry.version else None
        journal_chars = entry.journal_chars + len(text or "")
        state: str | None = None
        if state_is_due(journal_chars, entry.state_chars):
            state = state_text(record.state)
        await self._writer.write(
            Updated(
                row=entry.row,
                version=record.version,
                expires_at_s=record.expires_at_s,
                steps=record.steps_json(),
                events=text,
                state=state,
            )
        )
        entry.version = record.version
        entry.expires_at_s = record.expires_at_s
        entry.journal_chars = journal_chars if state is None else 0
        entry.state_chars = entry.state_chars if state is None else len(state)
        self._remember(record)

    async def get(self, key: WorkflowKey) -> WorkflowRecord | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        record = self._records.get(key)
        if record is not None:
            self._records.move_to_end(key)
            return record
        for found in await self._reader.run(partial(self._reader.workflows, [entry.row])):
            if found.record is not None:
                return self._read_back(found.record, entry)
            await self._drop(key, entry)
        return None

    async def delete(self, record: WorkflowRecord) -> None:
        await self._writer.write(Deleted(self._entries[record.key].row))
        self._entries.pop(record.key, None)
        self._records.pop(record.key, None)

    async def page(
        self,
        *,
        namespace: str | None,
        client_id: str | None,
        after: WorkflowKey | None,
        limit: int,
    ) -> list[WorkflowRecord]:
        keys = await self._reader.run(
            partial(self._reader.page, namespace, client_id, after or ("", ""), limit)
        )
        # Held here, as what is read back may drive those in memory out of it.
        page = {key: self._records.get(key) for key in keys}
        absent = {
            entry.row: entry
            for key, record in page.items()
            if record is None and (entry := self._entries.get(key)) is not None
        }
        if absent:
            for found in await self._reader.run(partial(self._reader.workflows, list(absent))):
                if (record := found.record) is not None:
                    page[record.key] = self._read_back(record, absent[found.row])
        return [record for record in page.values() if record is not None]

    async def expired(self, now_s: float, limit: int) -> list[WorkflowKey]:
        return self._deadlines.passed(now_s, limit)

    async def count(self) -> int:
        return len(self._entries)

    async def live(self) -> AsyncIterator[Sequence[WorkflowRecord | StoredState]]:
        states, self._listed = self._listed, []
        for start in range(0, len(states), _LISTED_AT_ONCE):
            yield states[start : start + _LISTED_AT_ONCE]
            await asyncio.sleep(0)

    async def changes(self) -> AsyncIterator[Sequence[Change]]:
        while True:
            yield [await self._dropped.get()]

    async def note(self, kind: NoteKind, name: str, values: Mapping[str, object] | None) -> None:
        await self._writer.write(Noted(kind, name, None if values is None else json.dumps(values)))

    async def notes(self, kind: NoteKind) -> dict[str, dict[str, object]]:
        return await self._reader.run(partial(self._reader.notes, kind))

    async def keep_learned(self, texts: Mapping[LearnedKey, str | None]) -> None:
        await self._writer.write(Learned(tuple(texts.items())))

    async def learned(self) -> AsyncIterator[Sequence[tuple[LearnedKey, str]]]:
        following: int | None = 0
        while following is not None:
            found, following = await self._reader.run(partial(self._reader.learned, following))
            yield found

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.stop()
        self._reader.stop()
        self._file.release()

    def _load(self) -> list[StoredState]:
        """Read what every workflow needs; what engines are told of them is handed on by live()."""
        states: list[StoredState] = []
        for one in self._reader.listed():
            self._entries[one.key] = _entry(one)
            self._deadlines.add(one.expires_at_s, one.key, self._entries)
            self._next_row = one.row + 1
            states.append(one.told)
        if self._reader.nameless:
            with suppress(sqlite3.Error), closing(self._file.connect()) as connection:
                write_all(connection, [Deleted(row) for row in self._reader.nameless])
        return states

    async def _drop(self, key: WorkflowKey, entry: _Entry) -> None:
        """Forget a workflow that cannot be read back: its id must not be taken for ever."""
        await self._writer.write(Deleted(entry.row))
        if self._entries.get(key) is entry:
            del self._entries[key]
            self._dropped.put_nowait(Change((entry.client_id, key[1])))

    def _read_back(self, record: WorkflowRecord, entry: _Entry) -> WorkflowRecord:
        """Take a workflow into memory, unless it was changed while it was being read."""
        if self._entries.get(record.key) is not entry:
            return record
        if (current := self._records.get(record.key)) is not None:
            return current
        if record.version == entry.version and record.expires_at_s == entry.expires_at_s:
            self._remember(record)
        return record

    def _remember(self, record: WorkflowRecord) -> None:
        self._records[record.key] = record
        self._records.move_to_end(record.key)
        if len(self._records) > self._in_memory:
            self._records.popitem(last=False)

    def _graph(self, graph: AgentStepGraph) -> tuple[str, str]:
        """The graph's text and its digest."""
        # By identity: graphs that are equal may be declared in another order, which counts here.
        known = self._graphs.get(id(graph))
        if known is None:
            text = graph_text(graph)
            known = (graph, text, hashlib.sha256(text.encode()).hexdigest())
            self._graphs[id(graph)] = known
            if len(self._graphs) > _GRAPHS_IN_MEMORY:
                self._graphs.popitem(last=False)
        return known[1:]

    def _expires_at_s(self, key: WorkflowKey) -> float | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.expires_at_s


def _entry(one: Listed) -> _Entry:
    return _Entry(
        one.row,
        one.told.client_id,
        one.version,
        one.expires_at_s,
        one.journal_chars,
        one.state_chars,
    )
