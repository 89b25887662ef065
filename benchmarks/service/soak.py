"""Mixed load for a long time, and the service's memory: ``python -m benchmarks.service.soak``.

Workflows are created, run, deleted or left to expire; lists come in between, and requests that are
to be refused; engines and readers of ``/v1/events`` come and go, and some read nothing at all.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.environment import write_result
from benchmarks.service.process import resident_bytes, service_process
from benchmarks.service.ring import Ring
from benchmarks.service.wire import Connection, StreamReader, request
from kvflow.demo.service import ServiceProcess

__all__ = ["main"]

RESULT: Final = Path(__file__).parents[1] / "results" / "service_soak.json"
_LIVE: Final = 300
_LIFE_EVENTS: Final = 200
_EXPECTED: Final = {"event": {200}, "create": {201}, "delete": {204}, "wrong": {404, 422}}


class Load:
    """Requests at a steady rate, each against what it should be answered."""

    def __init__(self, port: int, seed: int) -> None:
        self.requests = 0
        self.unexpected: Counter[str] = Counter()
        self._port = port
        self._random = random.Random(seed)
        self._created = 0

    async def run(self, per_s: float, until_s: float) -> None:
        connection = await Connection.open(self._port)
        rings = [await self._create(connection) for _ in range(_LIVE)]
        next_s = time.perf_counter()
        while (now_s := time.perf_counter()) < until_s:
            next_s = max(next_s + 1 / per_s, now_s - 1.0)
            await asyncio.sleep(max(0.0, next_s - now_s))
            place = self._random.randrange(len(rings))
            rings[place] = await self._step(connection, rings[place])
        connection.close()

    async def _step(self, connection: Connection, ring: Ring) -> Ring:
        if ring.version >= _LIFE_EVENTS:
            # Every other one is left to expire.
            if self._random.random() < 0.5:
                await self._ask(connection, "delete", ring.deletion())
            return await self._create(connection)
        draw = self._random.random()
        if draw < 0.02:
            path = f"/v1/workflows/{ring.workflow_id}/events"
            body = self._random.choice(
                [b'[{"type": "step_started", "agent_id": "nobody"}]', b'{"type": "x"}']
            )
            await self._ask(connection, "wrong", request("POST", path, body))
        elif draw < 0.05:
            await self._ask(connection, "event", ring.next_list(50))
        else:
            await self._ask(connection, "event", ring.next_event())
        return ring

    async def _create(self, connection: Connection) -> Ring:
        self._created += 1
        ring = Ring(f"soak-{self._created}", agents=10)
        ring.ttl_s = 60
        await self._ask(connection, "create", ring.creation())
        return ring

    async def _ask(self, connection: Connection, kind: str, payload: bytes) -> None:
        answer = await connection.ask(payload)
        self.requests += 1
        if answer.status not in _EXPECTED[kind]:
            self.unexpected[f"{kind}: {answer.status}"] += 1


async def _come_and_go(port: int, path: str, until_s: float, seed: int) -> None:
    """A reader that stays for a while and connects anew."""
    draw = random.Random(seed)
    loop = asyncio.get_running_loop()
    while time.perf_counter() < until_s:
        make_reader = partial(StreamReader, f"engine-{seed}", lambda *_: None, path=path)
        reader: StreamReader | None = None
        with suppress(OSError):
            _, reader = await loop.create_connection(make_reader, "127.0.0.1", port)
        await asyncio.sleep(min(draw.uniform(1, 20), max(0.0, until_s - time.perf_counter())))
        if reader is not None:
            reader.close()


async def _read_nothing(port: int, path: str, until_s: float) -> None:
    """A connection that asks for a stream and never reads it; opened anew each minute."""
    while time.perf_counter() < until_s:
        stuck = socket.create_connection(("127.0.0.1", port))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(request("GET", path))
        await asyncio.sleep(min(60.0, max(0.0, until_s - time.perf_counter())))
        stuck.close()


async def _watch(service: ServiceProcess, until_s: float, every_s: float) -> list[list[float]]:
    started_s, taken = time.perf_counter(), []
    while time.perf_counter() < until_s:
        await asyncio.sleep(every_s)
        at_s = time.perf_counter() - started_s
        taken.append([round(at_s, 1), round(resident_bytes(service.pid) / 1e6, 3)])
    return taken


async def _soak(service: ServiceProcess, arguments: argparse.Namespace) -> dict[str, Any]:
    until_s = time.perf_counter() + 60 * arguments.minutes
    load = Load(service.port, seed=1)
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(_watch(service, until_s, every_s=min(5.0, arguments.minutes * 2)))
        tasks.create_task(load.run(arguments.per_s, until_s))
        for number in range(arguments.engines):
            path = f"/v1/engines/stream?engine_id=engine-{number}"
            tasks.create_task(_come_and_go(service.port, path, until_s, number))
        for number in range(arguments.readers):
            tasks.create_task(_come_and_go(service.port, "/v1/events", until_s, 1_000 + number))
        for path in ("/v1/engines/stream", "/v1/events"):
            tasks.create_task(_read_nothing(service.port, path, until_s))
    memory = watch.result()
    return {
        "summary": {
            "requests": load.requests,
            "unexpected": sum(load.unexpected.values()),
            **_trend(memory),
        },
        "unexpected": dict(load.unexpected),
        "memory_s_mb": memory,
    }


def _trend(memory: Sequence[Sequence[float]]) -> dict[str, float]:
    """Without the first fifth, in which caches fill and workflows come to their number."""
    fifth = max(1, len(memory) // 5)
    settled = memory[fifth:]
    slope, _ = statistics.linear_regression([at for at, _ in settled], [mb for _, mb in settled])
    return {
        "first_mb": round(statistics.median(mb for _, mb in settled[:fifth]), 2),
        "last_mb": round(statistics.median(mb for _, mb in settled[-fifth:]), 2),
        "slope_mb_per_h": round(3600 * slope, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--per-s", type=float, default=200.0)
    parser.add_argument("--engines", type=int, default=20)
    parser.add_argument("--readers", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvflow-soak-") as folder:
        database = str(Path(folder) / "soak.sqlite")
        log = Path(folder) / "service.log"
        with service_process(log, "--database", database) as service:
            measured = uvloop.run(_soak(service, arguments))
    settings = {
        name: getattr(arguments, name) for name in ("minutes", "per_s", "engines", "readers")
    }
    write_result(arguments.output, {"settings": settings, **measured})
    print(measured["summary"], measured["unexpected"])
    return 1 if measured["unexpected"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
