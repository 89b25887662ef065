"""Work that must not stop half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finished"]

T = TypeVar("T")


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end even if the caller is cancelled meanwhile.

    What is stored must also be told to the engines, and a lock held till then: a client that hangs
    up cannot undo either. The caller is cancelled at once all the same.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            _unwatched.add(task)
            task.add_done_callback(_forget)
        raise


_unwatched: set[asyncio.Future[Any]] = set()


def _forget(task: asyncio.Future[Any]) -> None:
    _unwatched.discard(task)
    if not task.cancelled():
        # Nobody is left to be told of an error.
        task.exception()
