"""How much long work does in one go.

Who has more than that to do awaits ``asyncio.sleep(0)`` after each piece: all else that is ready
runs then. Whoever waits for something that takes five turns of the event loop, as a request does,
waits for five pieces.
"""

from __future__ import annotations

from typing import Final

__all__ = ["AT_ONCE"]

AT_ONCE: Final = 250
"""Events, or things that take about as long each: some tenths of a millisecond."""
