"""What the front door adds to a call: ``python -m benchmarks.service.front_door``.

Engine, service and caller are processes of their own on one machine. The engine answers at once
(``fast_engine``), so that all that is measured is the way. Every call is made twice, to the engine
and through the front door, in turns and over connections that stay open; the service has the
workflow declared, reports two step events for each call, and has an engine on its stream.

* ``alone``: one caller, one call after the other;
* ``together``: calls at a rate (Poisson) over up to 64 connections, a half each way, in one run.

Of each call the time to the first byte of the answer and to its last is taken. What is *added* is
the difference of two quantiles, that of the front door and that of the engine alone. Of streams
the engine stamps every event, so the delay of each is known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import uvloop

from benchmarks.environment import write_result
from benchmarks.service.process import cpu_s, service_process
from benchmarks.service.samples import Samples
from benchmarks.service.wire import request
from kvflow.demo.service import ServiceProcess
from kvflow.engine import free_port

__all__ = ["main"]

RESULT: Final = Path(__file__).parents[1] / "results" / "front_door.json"
GOALS_MS: Final = {"p50_ms": 3.0, "p99_ms": 10.0}
_AGENTS: Final = 10
_SENT: Final = re.compile(rb'"sent_s": ([0-9.]+)')

Way = Literal["engine", "front_door"]


@dataclass(slots=True)
class Taken:
    """Times of the calls that went one way."""

    first_byte: Samples = field(default_factory=Samples)
    last_byte: Samples = field(default_factory=Samples)
    event_delay: Samples = field(default_factory=Samples)

    def summary(self) -> dict[str, Any]:
        found = {
            "first_byte": self.first_byte.summary(),
            "last_byte": self.last_byte.summary(),
        }
        if len(self.event_delay):
            found["event_delay"] = self.event_delay.summary()
        for one in found.values():
            del one["histogram_us"]
        return found


class Caller:
    """One connection that stays open, and calls over it one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.used_s = time.perf_counter()
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def close(self) -> None:
        self._writer.close()

    async def call(self, payload: bytes, taken: Taken | None) -> None:
        started_s = time.perf_counter()
        self._writer.write(payload)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a call failed: {head[:200]!r}")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        first_s = None
        delays: list[float] = []
        if length is not None:
            await self._reader.readexactly(int(length[1]))
            first_s = time.perf_counter()
        else:
            while size := int(await self._reader.readline(), 16):
                data = await self._reader.readexactly(size + 2)
                now_s = time.perf_counter()
                first_s = first_s or now_s
                delays.extend(now_s - float(sent) for sent in _SENT.findall(data))
            await self._reader.readline()
        self.used_s = last_s = time.perf_counter()
        if taken is not None:
            taken.first_byte.add((first_s or last_s) - started_s)
            taken.last_byte.add(last_s - started_s)
            for delay_s in delays:
                taken.event_delay.add(delay_s)


def payload(number: int, prompt_chars: int, stream: bool) -> bytes:
    """A chat completion as an agent without the SDK sends it."""
    hints = {"workflow_id": f"w{number % 8}", "agent_id": f"a{number % _AGENTS}"}
    words = ("word " * (prompt_chars // 5 + 1))[:prompt_chars]
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "system", "content": words}],
            "agent_hints": hints,
            "stream": stream,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def alone(ports: Mapping[Way, int], calls: int, chars: int, stream: bool) -> dict[Way, Taken]:
    """One call after the other, each in both ways."""
    taken: dict[Way, Taken] = {way: Taken() for way in ports}
    callers = {way: await Caller.open(port) for way, port in ports.items()}
    warm_up = min(20, calls)
    for number in range(-warm_up, calls):
        ways = list(callers) if number % 2 else list(reversed(callers))
        for way in ways:
            into = taken[way] if number >= 0 else None
            await callers[way].call(payload(number, chars, stream), into)
    for caller in callers.values():
        caller.close()
    return taken


async def together(
    ports: Mapping[Way, int], rate_per_s: float, seconds: float, chars: int, stream: bool
) -> dict[Way, Taken]:
    """Calls at a rate, in turns one way and the other."""
    taken: dict[Way, Taken] = {way: Taken() for way in ports}
    idle: dict[Way, list[Caller]] = {way: [] for way in ports}
    ways = list(ports)
    rng = random.Random(7)
    start_s = time.perf_counter()
    due_s, number = start_s, 0

    async def one(number: int, way: Way) -> None:
        # A server closes a connection that nothing came over for 5 s.
        fresh_s = time.perf_counter() - 3.0
        idle[way] = [caller for caller in idle[way] if caller.used_s > fresh_s]
        caller = idle[way].pop() if idle[way] else await Caller.open(ports[way])
        warm = time.perf_counter() - start_s > 1.0
        await caller.call(payload(number, chars, stream), taken[way] if warm else None)
        idle[way].append(caller)

    async with asyncio.TaskGroup() as tasks:
        while due_s < start_s + seconds:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            tasks.create_task(one(number, ways[number % len(ways)]))
            number += 1
            due_s += rng.expovariate(rate_per_s)
    for callers in idle.values():
        for caller in callers:
            caller.close()
    return taken


@contextmanager
def fast_engine() -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.service.fast_engine", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield port
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def engine_on_the_stream(port: int) -> AsyncIterator[None]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("GET", "/v1/engines/stream?engine_id=bench"))
    reading = asyncio.create_task(_read_all(reader))
    try:
        yield
    finally:
        reading.cancel()
        writer.close()


async def _read_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


def declare(port: int) -> None:
    names = [f"a{number}" for number in range(_AGENTS)]
    for number in range(8):
        body = {
            "workflow_id": f"w{number}",
            "agents": [{"agent_id": name, "join": "any"} for name in names],
            "edges": [
                {"source": name, "target": names[(i + 1) % _AGENTS]} for i, name in enumerate(names)
            ],
            "entry": [names[0]],
        }
        creation = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/workflows",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(creation, timeout=10).close()


def compared(taken: Mapping[Way, Taken]) -> dict[str, Any]:
    """Both ways, and what the front door adds to each quantile."""
    ways: dict[str, dict[str, Any]] = {way: one.summary() for way, one in taken.items()}
    added = {
        measure: {
            name: round(ways["front_door"][measure][name] - value, 4)
            for name, value in engine.items()
            if name != "count"
        }
        for measure, engine in ways["engine"].items()
    }
    return {**ways, "added": added}


async def measured(
    ports: Mapping[Way, int], service: ServiceProcess, quick: bool
) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    calls, seconds = (40, 3.0) if quick else (1000, 10.0)
    plans: list[tuple[dict[str, Any], Any]] = []
    for chars, stream in ((4_000, False), (64_000, False), (4_000, True)):
        count = calls if not stream else max(10, calls // 20)
        plans.append(
            (
                {"load": "alone", "prompt_chars": chars, "stream": stream},
                alone(ports, count, chars, stream),
            )
        )
    for rate, chars, stream in ((100.0, 4_000, False), (100.0, 64_000, False), (30.0, 4_000, True)):
        plans.append(
            (
                {"load": "together", "rate_per_s": rate, "prompt_chars": chars, "stream": stream},
                together(ports, rate, seconds * (1 + stream), chars, stream),
            )
        )
    async with engine_on_the_stream(service.port):
        for described, plan in plans:
            before_s, started_s = cpu_s(service.pid), time.perf_counter()
            taken = await plan
            used = (cpu_s(service.pid) - before_s) / (time.perf_counter() - started_s)
            runs.append({**described, **compared(taken), "service_cpu_share": round(used, 3)})
            print(json.dumps({**described, "added": runs[-1]["added"]}), flush=True)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a look")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, fast_engine() as engine_port:
        log = Path(folder) / "service.log"
        engine_url = f"http://127.0.0.1:{engine_port}"
        with service_process(log, "--engine-url", engine_url) as service:
            declare(service.port)
            ports: dict[Way, int] = {"engine": engine_port, "front_door": service.port}
            runs = uvloop.run(measured(ports, service, arguments.quick))
    worst = {name: max(run["added"]["first_byte"][name] for run in runs) for name in GOALS_MS}
    write_result(
        arguments.output,
        {
            "what": "what the front door adds to a call, over an engine that answers at once",
            "processes": "engine, service and caller, one each",
            "cores": len(os.sched_getaffinity(0)),
            "goals_ms": GOALS_MS,
            "worst_added_to_first_byte": worst,
            "runs": runs,
        },
    )
    print(json.dumps({"worst": worst, "goals": GOALS_MS}))
    return 0 if all(worst[name] <= goal for name, goal in GOALS_MS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
