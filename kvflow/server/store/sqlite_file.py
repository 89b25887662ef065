"""Opening the SQLite database: one service at a time, and clear words when it cannot be."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvflow.errors import EnvironmentProblemError
from kvflow.server.store.sqlite_schema import migrate

__all__ = ["DatabaseFile", "cause"]

_OLDEST_SQLITE: Final = (3, 32, 0)
_BUSY_TIMEOUT_S: Final = 2.0
_CHECKPOINT_PAGES: Final = 4000
_CACHE_KIB: Final = 32 * 1024


class DatabaseFile:
    """The file, held for this process until ``release``.

    Beside it are SQLite's own ``-wal`` and ``-shm``, and a ``.lock`` that says that a service uses
    it; the lock ends with the process, however that ends.

    Raises:
        EnvironmentProblemError: it cannot be used; says why and what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise EnvironmentProblemError(
                f"SQLite {sqlite3.sqlite_version} is too old, it must be 3.32 or newer",
                "use a Python that comes with a newer one, or --database none",
            )
        self._lock = _lock(path)
        with self.opening():
            self._prepare()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Around what must work for the file to be used: if it does not, the file is released.

        Raises:
            EnvironmentProblemError: in place of what SQLite raises.
        """
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self.release()
            raise _problem(self.path, error) from error
        except BaseException:
            self.release()
            raise

    def connect(self, *, read_only: bool = False) -> sqlite3.Connection:
        """A connection in autocommit mode, for one thread at a time."""
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if read_only:
                connection.execute("PRAGMA query_only = 1")
            else:
                connection.execute("PRAGMA journal_mode = WAL")
                # In WAL mode this, and nothing less, makes a commit outlast a loss of power.
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def release(self) -> None:
        """Let another service have it."""
        os.close(self._lock)

    def _prepare(self) -> None:
        # Made here, as SQLite would make it readable for everyone.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = self.connect()
        try:
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            if mode != "wal":
                raise EnvironmentProblemError(
                    f"the database {self.path} cannot be put into WAL mode (it is {mode})",
                    "name a file on a local disk with --database",
                )
            migrate(connection, f"the database {self.path}")
        finally:
            connection.close()


def cause(error: Exception) -> str:
    """What failed, in words for an operator."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        return "the disk is full"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another program holds a lock on it"
    if name.startswith("SQLITE_READONLY"):
        return "it may not be written to"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "the file is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error} ({name})" if name else str(error)


def _lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _problem(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _problem(path, error) from error
        raise EnvironmentProblemError(
            f"the database {path} is in use by another kvflow serve",
            "stop that one, or name another file with --database; several services behind one "
            "address share a Valkey server (--database valkey://...)",
        ) from error
    return lock


def _problem(path: Path, error: Exception) -> EnvironmentProblemError:
    words = cause(error)
    if "damaged" in words:
        remedy = (
            "move it and its -wal file away (a new one is made) or put a backup in its place; "
            "workflows that are under way are then created anew by their clients"
        )
    elif "lock" in words:
        remedy = "end the program that has it open"
    elif "full" in words:
        remedy = "make room, or name a file on another disk with --database"
    else:
        remedy = (
            "name a file in a folder that may be written to with --database (KVFLOW_DATABASE), "
            "or keep workflows in memory with --database none"
        )
    return EnvironmentProblemError(f"the database {path} cannot be opened: {words}", remedy)
