"""The one thread that writes to the SQLite database."""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kvflow.server.store.base import StoreUnavailableError
from kvflow.server.store.sqlite_file import DatabaseFile, cause
from kvflow.server.store.sqlite_writes import (
    MAX_ROWS,
    Created,
    Deleted,
    Learned,
    Noted,
    Ticked,
    Updated,
    Write,
    write_all,
)

__all__ = ["Writer"]

_MAX_CHARS: Final = 8 * 1024 * 1024
_TELL_AGAIN_S: Final = 30.0
_DELETIONS_BEFORE_SWEEPING_GRAPHS: Final = 1000

logger = logging.getLogger("kvflow.server")


@dataclass(frozen=True, slots=True)
class _Waiting:
    write: Write
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class Writer:
    """Writes what is handed to it, all that waits in one transaction.

    While one commit reaches the disk, more requests come; they share the next. So a write takes at
    most about two commits, however many there are.
    """

    def __init__(self, file: DatabaseFile, now_s: Callable[[], float]) -> None:
        self._path = file.path
        self._now_s = now_s
        self._connection = file.connect()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._left: _Waiting | None = None
        self._deletions = 0
        self._told_at_s = -_TELL_AGAIN_S
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="kvflow-store", daemon=True)
        self._thread.start()

    async def write(self, write: Write) -> None:
        """Write durably.

        Raises:
            StoreUnavailableError: it could not be, and nothing has changed.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Waiting(write, done, loop))
        await done

    def stop(self) -> None:
        """Write what waits and end. Blocks until that is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            batch, going = self._next_batch()
            if batch:
                error = self._commit([one.write for one in batch])
                _settle(batch, error)
        with suppress(sqlite3.Error):
            self._connection.close()

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """What waits, as much as makes one transaction; False if it was the last."""
        one = self._left or self._queue.get()
        self._left = None
        batch: list[_Waiting] = []
        subjects: set[Hashable] = set()
        chars = 0
        while one is not None:
            subject = _subject(one.write)
            if subject in subjects or len(batch) == MAX_ROWS or chars > _MAX_CHARS:
                self._left = one
                return batch, True
            subjects.add(subject)
            batch.append(one)
            chars += _chars(one.write)
            try:
                one = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _commit(self, writes: list[Write]) -> Exception | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            write_all(self._connection, [*writes, Ticked(self._now_s())])
            self._sweep_graphs(writes)
            self._connection.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                logger.exception("writing to the database %s failed", self._path)
                return error
            return self._failed(error)
        if self.problem is not None:
            self.problem = None
            logger.warning("the database %s can be written to again", self._path)
        return None

    def _failed(self, error: sqlite3.Error) -> StoreUnavailableError:
        words = f"the service's database cannot be written to: {cause(error)}"
        if self.problem is None or time.monotonic() > self._told_at_s + _TELL_AGAIN_S:
            self._told_at_s = time.monotonic()
            logger.error(
                "the database %s cannot be written to: %s; requests that change workflows are "
                "answered 503",
                self._path,
                cause(error),
            )
        self.problem = words
        return StoreUnavailableError(f"{words}; nothing was changed, try again later")

    def _sweep_graphs(self, writes: list[Write]) -> None:
        """Now and then, forget the graphs that no workflow runs any more."""
        self._deletions += sum(isinstance(write, Deleted) for write in writes)
        if self._deletions >= _DELETIONS_BEFORE_SWEEPING_GRAPHS:
            self._deletions = 0
            self._connection.execute(
                "DELETE FROM graphs WHERE id NOT IN (SELECT graph FROM workflows)"
            )


def _settle(batch: list[_Waiting], error: Exception | None) -> None:
    def settle() -> None:
        for one in batch:
            if one.done.done():
                continue
            if error is None:
                one.done.set_result(None)
            elif isinstance(error, StoreUnavailableError):
                one.done.set_exception(StoreUnavailableError(*error.args))  # each its own
            else:
                one.done.set_exception(error)

    # The loop is gone when a service ends without having closed its store.
    with suppress(RuntimeError):
        batch[0].loop.call_soon_threadsafe(settle)


def _subject(write: Write) -> Hashable:
    match write:
        case Noted():
            return (write.kind, write.name)
        case Learned():
            return "learned"
        case Ticked():
            return "clock"
    return write.row


def _chars(write: Write) -> int:
    match write:
        case Created():
            return len(write.graph) + len(write.steps)
        case Updated():
            return len(write.steps) + len(write.events or "") + len(write.state or "")
        case Learned():
            return sum(len(content or "") for _, content in write.texts)
    return 100
