"""How fast the simulator is, and how much memory it takes: ``simulate_speed.json``.

    python -m benchmarks.simulation.speed [--calls 1000000]

Each policy runs in a process of its own, one after the other, on one core. Peak memory is taken at
a tenth of the calls and at the end: it must not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import write_result
from kvflow.simulator import EngineModel, PolicyName, SimulationResult, simulate
from kvflow.simulator.presets import cost_model
from kvflow.workload import Scenario, Workload, WorkloadWorkflow, build_workload, parse_scenario

RESULT: Final = Path(__file__).parents[1] / "results" / "simulate_speed.json"
POLICIES: Final[tuple[PolicyName, ...]] = ("lru", "kvflow-eviction", "kvflow")
AGENTS: Final = 10
ROUNDS: Final = 10


def scenario(calls: int) -> Scenario:
    """Eight workflows at a time, of sixteen teams of ten agents; the device holds a third."""
    return parse_scenario(
        {
            "name": "speed",
            "prompts": {"fixed_tokens": 600, "dynamic_tokens": 64, "output_tokens": 32},
            "agents": {"agents": AGENTS, "rounds": ROUNDS},
            "load": {
                "workflows": max(1, calls // (AGENTS * ROUNDS)),
                "concurrency": 8,
                "teams": 16,
                "zipf": 1.0,
            },
            "cache": {"device_tokens": 32_000, "host_tokens": 64_000},
        }
    )


def measure(policy: PolicyName, calls: int) -> dict[str, Any]:
    """Run one policy in this process."""
    given = scenario(calls)
    marks: list[int] = []
    workload = build_workload(given)
    early = max(1, given.load.workflows // 10)

    def workflows() -> Iterator[WorkloadWorkflow]:
        for number, workflow in enumerate(workload.workflows()):
            if number == early:
                marks.append(_peak_rss_bytes())
            yield workflow

    watched = Workload(workload.name, workload.concurrency, workflows, workload.warm_up_calls)
    costs = cost_model("h100", "llama-3.1-8b")
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    result: SimulationResult = simulate(watched, given.cache, costs, policy, engine=EngineModel())
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    return {
        "policy": policy,
        "calls": result.calls_in_all,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "calls_per_s": result.calls_in_all / wall_s,
        "peak_rss_bytes_at_a_tenth": marks[0] if marks else None,
        "peak_rss_bytes": _peak_rss_bytes(),
        "hit_rate": result.hit_rate,
        "simulated_s": result.wall_s,
    }


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--policy", choices=POLICIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.policy is not None:
        print(json.dumps(measure(options.policy, options.calls)))
        return
    rows = []
    for policy in POLICIES:
        command = [sys.executable, "-m", "benchmarks.simulation.speed"]
        command += ["--policy", policy, "--calls", str(options.calls)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print(f"{policy}: {rows[-1]['calls_per_s']:.0f} calls/s, {rows[-1]['wall_s']:.1f} s")
    payload = {"scenario": scenario(options.calls).model_dump(mode="json"), "rows": rows}
    write_result(options.output, payload)


if __name__ == "__main__":
    main()
