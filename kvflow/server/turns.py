"""Long work in pieces, between which others get their turn.

Who has more than ``AT_ONCE`` to do awaits ``others_turn()`` after each piece, in ``long_work()``.
Whoever waits for something that takes five turns of the event loop, as a request does, waits for
five pieces.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["AT_ONCE", "long_work", "others_turn"]

AT_ONCE: Final = 250
"""Events, or things that take about as long each: some tenths of a millisecond."""

_SWITCH_S: Final = 1e-4


async def others_turn() -> None:
    """All that is ready runs."""
    await asyncio.sleep(0)


class _LongWork:
    under_way = 0
    usual_s = 0.0


@contextmanager
def long_work() -> Iterator[None]:
    """While it lasts, other threads get the interpreter soon, too. For the event loop's thread.

    A thread that waits for it gets it after ``sys.getswitchinterval()``, 5 ms, and begins to count
    anew whenever the event loop polls: after every piece. So the thread that writes to the database
    would wait for the end of the work, for each of the statements of a commit. Outside of long work
    the usual interval is better: then more events share a commit.
    """
    if _LongWork.under_way == 0:
        _LongWork.usual_s = sys.getswitchinterval()
        sys.setswitchinterval(min(_SWITCH_S, _LongWork.usual_s))
    _LongWork.under_way += 1
    try:
        yield
    finally:
        _LongWork.under_way -= 1
        if _LongWork.under_way == 0:
            sys.setswitchinterval(_LongWork.usual_s)
