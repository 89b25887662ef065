"""Load on a real ``kvflow serve`` on this machine: ``python -m benchmarks.service.load``.

The generator is a process of its own with uvloop and just enough HTTP (``wire``). Locust was not
taken: a request costs its client more than it costs the service, so on two cores the generator
would be the limit, and its latencies count from when a request was sent, not from when it was due.

What is measured, for each store:

* ``single``: one event a request, at a rate (Poisson), and as fast as 32 connections can;
* ``lists``: up to 10,000 events a request, two workflows at once;
* ``mixed``: single events at a rate beside lists without a pause;
* ``streams``: many engines' streams open; single events at a rate; for each event and stream the
  time from when the event was due to when the stream had the workflow at that version or a later
  one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.environment import write_result
from benchmarks.service.arrivals import Ask, Outcome, at_rate, connections, flat_out
from benchmarks.service.effects import Effects
from benchmarks.service.process import cpu_s, service_process
from benchmarks.service.ring import Ring, create_all, delete_all
from benchmarks.service.wire import Connection
from kvflow.demo.service import ServiceProcess

__all__ = ["Plan", "main", "measured"]

RESULT: Final = Path(__file__).parents[1] / "results" / "service_load.json"
_AGENTS: Final = 10
_CONNECTIONS: Final = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done, and for how long."""

    seconds: float
    workflows: int
    rates_per_s: tuple[float, ...]
    list_lengths: tuple[int, ...]
    streams: tuple[tuple[int, float], ...]
    """(engines, events per second)"""
    mixed_per_s: float
    agents: int = _AGENTS


FULL: Final = Plan(
    seconds=8.0,
    workflows=1_000,
    rates_per_s=(500.0, 1_500.0),
    list_lengths=(100, 1_000, 10_000),
    streams=((8, 1_500.0), (1_000, 5.0), (1_000, 50.0), (1_000, 500.0)),
    mixed_per_s=200.0,
)
SHORT: Final = Plan(
    seconds=1.0,
    workflows=50,
    rates_per_s=(200.0,),
    list_lengths=(100, 1_000),
    streams=((20, 50.0),),
    mixed_per_s=50.0,
)


def measured(plan: Plan, stores: Sequence[str]) -> dict[str, Any]:
    """All of the plan, for each store."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    arms = []
    with tempfile.TemporaryDirectory(prefix="kvflow-load-") as folder:
        for store in stores:
            database = "none" if store == "memory" else str(Path(folder) / "load.sqlite")
            log = Path(folder) / f"{store}.log"
            with service_process(log, "--database", database) as service:
                runs = uvloop.run(_arm(plan, service))
            arms.append({"store": store, "runs": runs})
            print(flush=True)
    return {"settings": asdict(plan), "arms": arms}


async def _arm(plan: Plan, service: ServiceProcess) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []

    async def run(name: str, what: Callable[[], Any], **settings: Any) -> None:
        await asyncio.sleep(0.2)
        before = time.perf_counter(), cpu_s(service.pid), time.process_time()
        figures = await what()
        wall_s = time.perf_counter() - before[0]
        used = {
            "service_cpu": round((cpu_s(service.pid) - before[1]) / wall_s, 3),
            "generator_cpu": round((time.process_time() - before[2]) / wall_s, 3),
        }
        runs.append({"name": name, **settings, **figures, **used})
        _say(runs[-1])

    async with connections(service.port, _CONNECTIONS) as opened:
        rings = [Ring(f"w-{number}", plan.agents) for number in range(plan.workflows)]
        await create_all(opened[0], rings)
        turns = cycle(rings)

        def single(_: float) -> bytes:
            return next(turns).next_event()

        await at_rate(opened, single, per_s=plan.rates_per_s[0], duration_s=1.0)
        for rate in plan.rates_per_s:
            await run(
                "single",
                partial(_single, opened, single, rate, plan.seconds),
                per_s=rate,
            )
        await run("single", partial(_flat_out, opened, single, plan.seconds), per_s=None)
        long_rings = [Ring(f"long-{number}", plan.agents) for number in range(2)]
        await create_all(opened[0], long_rings)
        for length in plan.list_lengths:
            await run(
                "lists",
                partial(_lists, opened[:2], long_rings, length, plan.seconds),
                length=length,
            )
        await run(
            "mixed",
            partial(_mixed, opened, single, long_rings[0], plan),
            per_s=plan.mixed_per_s,
            length=plan.list_lengths[-1],
        )
        for engines, rate in plan.streams:
            await run(
                "streams",
                partial(
                    _streams,
                    opened,
                    turns,
                    service.port,
                    engines=engines,
                    per_s=rate,
                    seconds=plan.seconds,
                ),
                engines=engines,
                per_s=rate,
            )
        await delete_all(opened[0], rings)
    return runs


async def _single(
    opened: list[Connection], ask: Ask, per_s: float, seconds: float
) -> dict[str, Any]:
    return _figures(await at_rate(opened, ask, per_s=per_s, duration_s=seconds), events=1)


async def _flat_out(opened: list[Connection], ask: Ask, seconds: float) -> dict[str, Any]:
    return _figures(await flat_out(opened, [ask] * len(opened), seconds), events=1)


async def _lists(
    opened: list[Connection], rings: list[Ring], length: int, seconds: float
) -> dict[str, Any]:
    def asking(ring: Ring) -> Ask:
        return lambda _: ring.next_list(length)

    asks = [asking(ring) for ring in rings]
    return _figures(await flat_out(opened, asks, seconds), events=length)


async def _mixed(opened: list[Connection], single: Ask, ring: Ring, plan: Plan) -> dict[str, Any]:
    length = plan.list_lengths[-1]
    lists, singles = await asyncio.gather(
        flat_out(opened[:1], [lambda _: ring.next_list(length)], plan.seconds),
        at_rate(opened[1:], single, per_s=plan.mixed_per_s, duration_s=plan.seconds),
    )
    return {**_figures(singles, events=1), "lists": _figures(lists, events=length)}


async def _streams(
    opened: list[Connection],
    turns: Iterator[Ring],
    port: int,
    *,
    engines: int,
    per_s: float,
    seconds: float,
) -> dict[str, Any]:
    async with Effects.watching(port, engines) as effects:

        def ask(due_s: float) -> bytes:
            ring = next(turns)
            payload = ring.next_event()
            effects.due(ring.key, ring.version, due_s)
            return payload

        outcome = await at_rate(opened, ask, per_s=per_s, duration_s=seconds)
        complete = await effects.settled()
    return {
        **_figures(outcome, events=1),
        "effect": effects.latencies.summary(),
        "messages": effects.messages,
        "all_seen": complete,
    }


def _figures(outcome: Outcome, events: int) -> dict[str, Any]:
    accepted = outcome.statuses.get(200, 0)
    return {
        "events_per_s": round(accepted * events / outcome.wall_s, 1),
        "statuses": {str(status): count for status, count in sorted(outcome.statuses.items())},
        "latency": outcome.latencies.summary(),
    }


def _say(run: dict[str, Any]) -> None:
    settings = {name: run[name] for name in ("per_s", "length", "engines") if name in run}
    latency, effect = run["latency"], run.get("effect")
    print(
        f"{run['name']:8} {settings}: {run['events_per_s']:,.0f} events/s, "
        f"p50 {latency['p50_ms']:.1f} p99 {latency['p99_ms']:.1f} ms"
        + (f", effect p50 {effect['p50_ms']:.1f} p99 {effect['p99_ms']:.1f} ms" if effect else "")
        + (f", lists {run['lists']['events_per_s']:,.0f}/s" if "lists" in run else "")
        + f"; cpu {run['service_cpu']:.2f} + {run['generator_cpu']:.2f}; {run['statuses']}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stores", nargs="+", choices=("memory", "sqlite"), default=["sqlite"])
    parser.add_argument("--short", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--seconds", type=float, help="of each run")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    # A pause of the generator would be taken for one of the service.
    gc.disable()
    plan = SHORT if arguments.short else FULL
    if arguments.seconds:
        plan = Plan(**{**asdict(plan), "seconds": arguments.seconds})
    write_result(arguments.output, measured(plan, arguments.stores))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
