"""Reads workflows back from the SQLite database."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from kvflow.graph import AgentStepGraph
from kvflow.server.store.base import (
    LearnedKey,
    StoredState,
    StoreUnavailableError,
    WorkflowKey,
    WorkflowRecord,
)
from kvflow.server.store.encoding import UNREADABLE, graph_from_text, replay, state_from_text
from kvflow.server.store.sqlite_file import DatabaseFile, cause

__all__ = ["Found", "Listed", "Reader"]

T = TypeVar("T")
logger = logging.getLogger("kvflow.server")
_LISTED_AT_ONCE: Final = 1000

_WORKFLOW: Final = """
    SELECT w.namespace, w.workflow_id, w.details, g.digest, p.expires_at_s, s.content
    FROM workflows w
    JOIN graphs g ON g.id = w.graph
    JOIN positions p ON p.id = w.id
    LEFT JOIN states s ON s.id = w.id
    WHERE w.id = ?
"""
_LIST: Final = """
    SELECT w.id, w.namespace, w.workflow_id, w.details, p.version, p.expires_at_s, p.steps,
           coalesce((SELECT sum(length(j.events)) FROM journal j WHERE j.id = w.id), 0),
           coalesce((SELECT length(s.content) FROM states s WHERE s.id = w.id), 0)
    FROM workflows w JOIN positions p ON p.id = w.id
    WHERE w.id > ? ORDER BY w.id LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """A workflow as it is found at the start: all but its graph and state."""

    row: int
    key: WorkflowKey
    version: int
    expires_at_s: float
    told: StoredState
    journal_chars: int
    state_chars: int


@dataclass(frozen=True, slots=True)
class Found:
    """A workflow read back whole; ``None``: it is there, but cannot be read."""

    row: int
    record: WorkflowRecord | None


class Reader:
    """Reads on a thread of its own; in WAL mode the writer does not keep it waiting."""

    def __init__(self, file: DatabaseFile) -> None:
        self._path = file.path
        self._connection = file.connect(read_only=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvflow-store-read")
        self._graphs: WeakValueDictionary[str, AgentStepGraph] = WeakValueDictionary()
        self.nameless: list[int] = []

    async def run(self, read: Callable[[], T]) -> T:
        """Call one of the methods below on the reader's thread.

        Raises:
            StoreUnavailableError: the database cannot be read.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, read)
        except sqlite3.Error as error:
            raise StoreUnavailableError(
                f"the service's database cannot be read: {cause(error)}"
            ) from error

    def stop(self) -> None:
        self._thread.shutdown(wait=True)
        self._connection.close()

    def now_s(self) -> float:
        """What the service's clock last showed."""
        (now_s,) = self._connection.execute("SELECT now_s FROM clock").fetchone()
        return float(now_s)

    def listed(self) -> Iterator[Listed]:
        """All workflows, in the order in which they were created.

        Those that cannot be told from others are left out, and their rows put to ``nameless``.
        """
        last = 0
        while rows := self._connection.execute(_LIST, (last, _LISTED_AT_ONCE)).fetchall():
            for row, namespace, workflow_id, details, version, expires_at_s, steps, *sizes in rows:
                client_id = _client_id(details)
                if client_id is None:
                    logger.error(
                        "workflow number %d in %s cannot be read and is dropped", row, self._path
                    )
                    self.nameless.append(row)
                    continue
                told = StoredState((client_id, workflow_id), steps)
                yield Listed(row, (namespace, workflow_id), version, expires_at_s, told, *sizes)
            last = rows[-1][0]

    def workflows(self, rows: Sequence[int]) -> list[Found]:
        """These workflows, at one point in time; those that are not there are left out."""
        self._connection.execute("BEGIN")
        try:
            found = (self._legible(row) for row in rows)
            return [one for one in found if one is not None]
        finally:
            self._connection.execute("COMMIT")

    def page(
        self, namespace: str | None, client_id: str | None, after: WorkflowKey, limit: int
    ) -> list[WorkflowKey]:
        """Keys after ``after``, in order."""
        return self._connection.execute(
            "SELECT namespace, workflow_id FROM workflows "
            "WHERE (namespace, workflow_id) > (?1, ?2) AND (?3 IS NULL OR namespace = ?3) "
            "AND (?4 IS NULL OR json_extract(details, '$.client_id') = ?4) "
            "ORDER BY namespace, workflow_id LIMIT ?5",
            (*after, namespace, client_id, limit),
        ).fetchall()

    def notes(self, kind: str) -> dict[str, dict[str, object]]:
        rows = self._connection.execute("SELECT name, content FROM notes WHERE kind = ?", (kind,))
        return {name: json.loads(content) for name, content in rows}

    def learned(self, after: int) -> tuple[list[tuple[LearnedKey, str]], int | None]:
        """Some of what was learned, the one written longest ago first; and what to call this with
        for more, ``None``: that was all."""
        # As bytes, so that one that is no text does not keep the others from being read.
        rows = self._connection.execute(
            "SELECT id, CAST(kind AS BLOB), CAST(namespace AS BLOB), CAST(client_id AS BLOB), "
            "CAST(family AS BLOB), CAST(content AS BLOB) "
            "FROM learned WHERE id > ? ORDER BY id LIMIT ?",
            (after, _LISTED_AT_ONCE),
        ).fetchall()
        found: list[tuple[LearnedKey, str]] = []
        for row, kind, *rest in rows:
            try:
                namespace, client_id, family, content = (value.decode() for value in rest)
                key = LearnedKey(kind.decode(), namespace, client_id, family)
            except UnicodeDecodeError:
                logger.warning("number %d of what was learned is no text; it is left out", row)
                continue
            found.append((key, content))
        return found, rows[-1][0] if rows else None

    def _legible(self, row: int) -> Found | None:
        try:
            return self._workflow(row)
        except UNREADABLE:
            logger.exception("workflow number %d in %s cannot be read back", row, self._path)
            return Found(row, None)

    def _workflow(self, row: int) -> Found | None:
        one = self._connection.execute(_WORKFLOW, (row,)).fetchone()
        if one is None:
            return None
        namespace, workflow_id, details, digest, expires_at_s, content = one
        graph = self._graph(digest)
        state = state_from_text(graph, content)
        replay(
            state,
            (
                events
                for (events,) in self._connection.execute(
                    "SELECT events FROM journal WHERE id = ? ORDER BY version", (row,)
                )
            ),
        )
        record = WorkflowRecord(
            workflow_id=workflow_id,
            namespace=namespace,
            graph=graph,
            state=state,
            expires_at_s=expires_at_s,
            **json.loads(details),
        )
        return Found(row, record)

    def _graph(self, digest: str) -> AgentStepGraph:
        graph = self._graphs.get(digest)
        if graph is None:
            (content,) = self._connection.execute(
                "SELECT content FROM graphs WHERE digest = ?", (digest,)
            ).fetchone()
            graph = self._graphs[digest] = graph_from_text(content)
        return graph


def _client_id(details: str) -> str | None:
    try:
        client_id = json.loads(details)["client_id"]
    except (ValueError, TypeError, KeyError):
        return None
    return client_id if isinstance(client_id, str) else None
