"""When requests are made: at times drawn before, whatever the service does, or one after the other.

At drawn times a request's latency counts from when it was due. A generator that waits for one
answer before it asks again asks least when the service is slowest, and so misses the worst.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from benchmarks.service.samples import Samples
from benchmarks.service.wire import Answer, Connection

__all__ = ["Ask", "Outcome", "at_rate", "connections", "flat_out"]

Ask = Callable[[float], bytes]
"""Makes the request that is due at this time."""


class Outcome:
    """Latencies of the requests, and their statuses."""

    def __init__(self) -> None:
        self.latencies = Samples()
        self.statuses: Counter[int] = Counter()
        self.wall_s = 0.0

    def add(self, answer: Answer, latency_s: float) -> None:
        self.statuses[answer.status] += 1
        self.latencies.add(latency_s)


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    opened = [await Connection.open(port) for _ in range(count)]
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


async def at_rate(
    opened: Sequence[Connection],
    ask: Ask,
    *,
    per_s: float,
    duration_s: float,
    seed: int = 1,
) -> Outcome:
    """Requests at Poisson times; one for which no connection is free waits, and that counts."""
    outcome = Outcome()
    draw = random.Random(seed)
    due: deque[tuple[float, bytes]] = deque()
    wake = asyncio.Semaphore(0)

    async def answer(connection: Connection) -> None:
        while True:
            await wake.acquire()
            due_s, payload = due.popleft()
            if not payload:
                return
            answered = await connection.ask(payload)
            outcome.add(answered, time.perf_counter() - due_s)

    async with asyncio.TaskGroup() as tasks:
        for one in opened:
            tasks.create_task(answer(one))
        started_s = time.perf_counter()
        next_s = started_s + draw.expovariate(per_s)
        while next_s < started_s + duration_s:
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            while next_s <= time.perf_counter():
                due.append((next_s, ask(next_s)))
                wake.release()
                next_s += draw.expovariate(per_s)
        for _ in opened:
            due.append((0.0, b""))
            wake.release()
    outcome.wall_s = time.perf_counter() - started_s
    return outcome


async def flat_out(opened: Sequence[Connection], asks: Sequence[Ask], duration_s: float) -> Outcome:
    """Each connection asks again as soon as it has its answer."""
    outcome = Outcome()
    started_s = time.perf_counter()

    async def answer(connection: Connection, ask: Ask) -> None:
        while (now_s := time.perf_counter()) < started_s + duration_s:
            payload = ask(now_s)
            asked_s = time.perf_counter()  # a long list takes time to make
            outcome.add(await connection.ask(payload), time.perf_counter() - asked_s)

    async with asyncio.TaskGroup() as tasks:
        for connection, ask in zip(opened, asks, strict=True):
            tasks.create_task(answer(connection, ask))
    outcome.wall_s = time.perf_counter() - started_s
    return outcome
