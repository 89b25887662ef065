"""Which store a service uses: what ``--database`` says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from kvflow.server.store.base import WorkflowStore
from kvflow.server.store.memory import MemoryStore

__all__ = ["IN_MEMORY", "check_database", "default_database", "masked", "open_store"]

IN_MEMORY: Final = "none"
_MEMORY_NAMES: Final = frozenset({IN_MEMORY, ":memory:", "memory"})
_VALKEY_SCHEMES: Final = frozenset({"valkey", "valkeys", "redis", "rediss"})


def check_database(database: str) -> str:
    """The value, if it can be one.

    Raises:
        ValueError: says what would be right.
    """
    scheme, separator, rest = database.partition("://")
    if separator and (scheme not in _VALKEY_SCHEMES or not rest):
        raise ValueError(
            "must be the path of a file, 'none', or the address of a Valkey or Redis server such "
            "as valkey://127.0.0.1:6379/0 (valkeys:// with TLS)"
        )
    if not database.strip():
        raise ValueError("must not be empty; 'none' keeps workflows in memory")
    return database


def default_database(port: int, environ: Mapping[str, str] | None = None) -> str:
    """The database of a service that was told nothing: one for each port.

    ``$XDG_STATE_HOME/kvflow/service-<port>.db``, else the same in ``~/.local/state``. A service on
    any free port (0) has no name to be known by again, and keeps what it has in memory.
    """
    if port == 0:
        return IN_MEMORY
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return str(Path(base).expanduser() / "kvflow" / f"service-{port}.db")


def masked(database: str) -> str:
    """The value without the password that it may hold."""
    if "://" not in database:
        return database
    parts = urlsplit(database)
    _, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{host}" if at else host, query=""))


def open_store(database: str, max_workflows: int) -> WorkflowStore:
    """The store, ready for use.

    Raises:
        EnvironmentProblemError: it cannot be used; says why and what to do.
    """
    if database in _MEMORY_NAMES:
        return MemoryStore(max_workflows)
    if "://" in database:
        from kvflow.server.store.valkey import ValkeyStore

        return ValkeyStore(database, max_workflows)
    from kvflow.server.store.sqlite import SQLiteStore

    return SQLiteStore(Path(database).expanduser(), max_workflows)
