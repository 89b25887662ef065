"""kill -9 of ``kvflow serve`` under load at random points, again and again.

``python -m benchmarks.service.kill`` writes ``benchmarks/results/service_kill.json``; it stops at
the first thing that was acknowledged and is lost (``benchmarks.service.killing``).
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.environment import write_result
from benchmarks.service.killing import Client, kill_once
from benchmarks.service.process import service_process

__all__ = ["main"]

_RESULT: Final = Path(__file__).parents[1] / "results" / "service_kill.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--longest-s", type=float, default=0.4, help="of load before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=_RESULT)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    clients = [Client(f"w{i}", random.Random(rng.random())) for i in range(options.clients)]
    restarts_s: list[float] = []
    in_flight = 0
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "workflows.db"
        with service_process(Path(folder) / "log", "--database", str(database)) as service:
            for kill in range(1, options.kills + 1):
                outcome = kill_once(service, clients, rng.uniform(0.01, options.longest_s))
                restarts_s.append(outcome.ready_s)
                in_flight += outcome.unanswered
                if kill % 20 == 0:
                    print(f"{kill} kills, nothing lost", flush=True)
            size = sum(one.stat().st_size for one in Path(folder).glob("workflows.db*"))
    write_result(
        options.output,
        {
            "kills": len(restarts_s),
            "clients": options.clients,
            "acknowledged_requests": sum(one.acknowledged for one in clients),
            "unanswered_requests": in_flight,
            "lost": 0,
            "median_ready_s": statistics.median(restarts_s),
            "longest_ready_s": max(restarts_s),
            "database_bytes": size,
            "wall_s": time.perf_counter() - began_s,
        },
    )


if __name__ == "__main__":
    main()
