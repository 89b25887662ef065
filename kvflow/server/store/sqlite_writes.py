"""What is written to the SQLite database, many workflows at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvflow.server.store.base import LearnedKey

__all__ = ["Created", "Deleted", "Learned", "Noted", "Ticked", "Updated", "Write", "write_all"]

# For so many rows a statement is compiled; a batch takes the smallest that fits. Running one
# statement takes Python's global lock once, not once a row, so a busy event loop does not keep the
# writer from its work for long.
_SIZES: Final = (1, 8, 64, 512)
MAX_ROWS: Final = _SIZES[-1]


@dataclass(frozen=True, slots=True)
class Created:
    """A workflow is new."""

    row: int
    namespace: str
    workflow_id: str
    details: str
    graph: str
    graph_digest: str
    expires_at_s: float
    steps: str


@dataclass(frozen=True, slots=True)
class Updated:
    """A workflow went on: by ``events``, and if ``state`` is there, it holds all up to them."""

    row: int
    version: int
    expires_at_s: float
    steps: str
    events: str | None
    state: str | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """A workflow ended."""

    row: int


@dataclass(frozen=True, slots=True)
class Noted:
    """A note was made or, without content, taken back."""

    kind: str
    name: str
    content: str | None


@dataclass(frozen=True, slots=True)
class Learned:
    """Something was learned or, without content, forgotten: ``(key, content)`` each."""

    texts: tuple[tuple[LearnedKey, str | None], ...]


@dataclass(frozen=True, slots=True)
class Ticked:
    """The service's clock went on."""

    now_s: float


Write = Created | Updated | Deleted | Noted | Learned | Ticked


def write_all(connection: sqlite3.Connection, writes: Sequence[Write]) -> None:
    """Write at most ``MAX_ROWS``, no two of which are about the same workflow or note."""
    created = [write for write in writes if isinstance(write, Created)]
    updated = [write for write in writes if isinstance(write, Updated)]
    deleted = [(write.row,) for write in writes if isinstance(write, Deleted)]
    states = [write for write in updated if write.state is not None]
    notes = [write for write in writes if isinstance(write, Noted)]
    ticks = [write.now_s for write in writes if isinstance(write, Ticked)]
    run = _Runner(connection).run
    run(
        "INSERT OR IGNORE INTO graphs (digest, content) {rows}",
        {one.graph_digest: (one.graph_digest, one.graph) for one in created}.values(),
    )
    run(
        "INSERT INTO workflows (id, namespace, workflow_id, details, graph) "
        "SELECT column1, column2, column3, column4, graphs.id "
        "FROM ({rows}) JOIN graphs ON graphs.digest = column5",
        [
            (one.row, one.namespace, one.workflow_id, one.details, one.graph_digest)
            for one in created
        ],
    )
    run(
        "REPLACE INTO positions (id, version, expires_at_s, steps) {rows}",
        [
            *((one.row, 0, one.expires_at_s, one.steps) for one in created),
            *((one.row, one.version, one.expires_at_s, one.steps) for one in updated),
        ],
    )
    run(
        "INSERT INTO journal (id, version, events) {rows}",
        [
            (one.row, one.version, one.events)
            for one in updated
            if one.events is not None and one.state is None
        ],
    )
    run(
        "REPLACE INTO states (id, version, content) {rows}",
        [(one.row, one.version, one.state) for one in states],
    )
    run("DELETE FROM journal WHERE id IN ({rows})", [(one.row,) for one in states] + deleted)
    for table in ("workflows", "positions", "states"):
        run(f"DELETE FROM {table} WHERE id IN ({{rows}})", deleted)  # noqa: S608
    run(
        "REPLACE INTO notes (kind, name, content) {rows}",
        [(one.kind, one.name, one.content) for one in notes if one.content is not None],
    )
    for note in notes:
        if note.content is None:
            connection.execute(
                "DELETE FROM notes WHERE kind = ? AND name = ?", (note.kind, note.name)
            )
    learned = [text for write in writes if isinstance(write, Learned) for text in write.texts]
    run(
        "REPLACE INTO learned (kind, namespace, client_id, family, content) {rows}",
        [(*key, content) for key, content in learned if content is not None],
    )
    run(
        "DELETE FROM learned WHERE (kind, namespace, client_id, family) IN ({rows})",
        [tuple(key) for key, content in learned if content is None],
    )
    if ticks:
        connection.execute("UPDATE clock SET now_s = max(now_s, ?)", (max(ticks),))


class _Runner:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run a statement over rows, none of which begins with ``None``."""
        for some in _chunks(list(rows)):
            size = next(size for size in _SIZES if size >= len(some))
            width = len(some[0])
            row = f"({', '.join('?' * width)})"
            values = ", ".join([row] * size)
            columns = ", ".join(f"column{number + 1}" for number in range(width))
            # Rows that were added to fill the statement up are all NULL.
            source = f"SELECT {columns} FROM (VALUES {values}) WHERE column1 IS NOT NULL"  # noqa: S608
            parameters = [value for one in some for value in one]
            parameters += [None] * (width * (size - len(some)))
            self._connection.execute(statement.format(rows=source), parameters)


def _chunks(rows: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    for start in range(0, len(rows), MAX_ROWS):
        yield rows[start : start + MAX_ROWS]
