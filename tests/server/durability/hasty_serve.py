"""``kvflow serve`` with a defect: it acknowledges what is not yet durable.

The control of the kill test, which must find it out.
"""

from __future__ import annotations

import asyncio
import sys

from kvflow.cli.main import main
from kvflow.server.store.sqlite_writer import Writer
from kvflow.server.store.sqlite_writes import Write

_durably = Writer.write
_late: set[asyncio.Task[None]] = set()
_DELAY_S = 0.2


async def _hastily(self: Writer, write: Write) -> None:
    async def late() -> None:
        await asyncio.sleep(_DELAY_S)
        await _durably(self, write)

    task = asyncio.ensure_future(late())
    _late.add(task)
    task.add_done_callback(_late.discard)


if __name__ == "__main__":
    Writer.write = _hastily  # type: ignore[method-assign]
    sys.exit(main(["serve", *sys.argv[1:]]))
