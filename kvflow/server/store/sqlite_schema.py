"""The tables of the SQLite database, and how older ones are brought up to date."""

from __future__ import annotations

import sqlite3
from typing import Final

from kvflow.errors import EnvironmentProblemError

__all__ = ["APPLICATION_ID", "migrate"]

APPLICATION_ID: Final = 0x4B56466C
"""Says that a database is KVFlow's ("KVFl"), where it is not that of another program."""

# Each step is applied once, in a transaction of its own, and never changed afterwards: what a
# released version wrote is brought up to date by a further one. ``user_version`` is how many.
_STEPS: Final = (
    (
        # Graphs are stored once, however many workflows run them.
        """CREATE TABLE graphs (
            id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, content TEXT NOT NULL
        )""",
        """CREATE TABLE workflows (
            id INTEGER PRIMARY KEY,
            namespace TEXT NOT NULL,
            workflow_id TEXT NOT NULL,
            details TEXT NOT NULL,
            graph INTEGER NOT NULL REFERENCES graphs (id),
            UNIQUE (namespace, workflow_id)
        )""",
        # Written with every event, and so apart from what is large or stays: where a workflow is,
        # and what engines are told of it.
        """CREATE TABLE positions (
            id INTEGER PRIMARY KEY,
            version INTEGER NOT NULL,
            expires_at_s REAL NOT NULL,
            steps TEXT NOT NULL
        )""",
        # The whole state at some version, and the events since. No row: as it was created.
        """CREATE TABLE states (
            id INTEGER PRIMARY KEY, version INTEGER NOT NULL, content TEXT NOT NULL
        )""",
        """CREATE TABLE journal (
            id INTEGER NOT NULL, version INTEGER NOT NULL, events TEXT NOT NULL,
            PRIMARY KEY (id, version)
        ) WITHOUT ROWID""",
        """CREATE TABLE notes (
            kind TEXT NOT NULL, name TEXT NOT NULL, content TEXT NOT NULL,
            PRIMARY KEY (kind, name)
        ) WITHOUT ROWID""",
        "CREATE TABLE clock (only INTEGER PRIMARY KEY CHECK (only = 1), now_s REAL NOT NULL)",
        "INSERT INTO clock VALUES (1, 0)",
    ),
    (
        # What was learned of families of workflows. A row that is written again gets a new id, so
        # they are in the order in which they were last written.
        """CREATE TABLE learned (
            id INTEGER PRIMARY KEY,
            kind TEXT NOT NULL,
            namespace TEXT NOT NULL,
            client_id TEXT NOT NULL,
            family TEXT NOT NULL,
            content TEXT NOT NULL,
            UNIQUE (kind, namespace, client_id, family)
        )""",
    ),
)


def migrate(connection: sqlite3.Connection, where: str) -> None:
    """Bring the database to the newest form; a new one gets its tables.

    Raises:
        EnvironmentProblemError: it is another program's, or of a newer KVFlow.
        sqlite3.Error: it cannot be read or written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise EnvironmentProblemError(
            f"{where} is the database of another program",
            "name another file with --database; it is made if it is not there",
        )
    if version > len(_STEPS):
        raise EnvironmentProblemError(
            f"{where} was written by a newer KVFlow (form {version}, this one knows {len(_STEPS)})",
            "run that version, or name another file with --database",
        )
    for number, step in enumerate(_STEPS[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in step:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
