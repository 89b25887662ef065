"""Messages of one workflow one after the other, those of different ones side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

__all__ = ["Lanes"]

Item = TypeVar("Item")
LANES: Final = 16


class Lanes(Generic[Item]):
    """Some workers; which one an item goes to depends on its key alone.

    Unbounded, as the broker gives out no more than its window before it is acknowledged.
    """

    def __init__(self, work: Callable[[Item], Awaitable[None]]) -> None:
        self._work = work
        self._queues: list[asyncio.Queue[Item]] = [asyncio.Queue() for _ in range(LANES)]

    def put(self, key: str, item: Item) -> None:
        self._queues[hash(key) % LANES].put_nowait(item)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        for number, waiting in enumerate(self._queues):
            tasks.create_task(self._run(waiting), name=f"kvflow-mqtt-lane-{number}")

    async def _run(self, waiting: asyncio.Queue[Item]) -> None:
        while True:
            await self._work(await waiting.get())
