"""The simulator against the real engine: the same scenarios on both, side by side.

``python -m benchmarks.simulation.validate`` runs scenarios that ship with KVFlow, some of them
shortened, through ``kvflow.bench`` on this machine, and through the simulator with costs that were
fitted to this machine in the same minutes: right before and right after each run the engine's rates
are timed on another engine of the same kind, which sleeps meanwhile. The mean of the two is used,
and how far they are apart is written down, as a shared machine's speed may change by half within
minutes. Nothing of the run itself goes into its simulation but the workload.

Goals: the hit rate within 2 points, the wall time within 15 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import describe_environment, write_result
from benchmarks.simulation.calibrate import Calibration, calibrate, calibration_engine
from benchmarks.simulation.runs import RESULTS
from benchmarks.simulation.scenarios import changed
from kvflow.bench.arms import BenchArm, choose_arms
from kvflow.bench.rows import CallRow, Run
from kvflow.bench.runner import BenchOptions, run_bench
from kvflow.simulator import EngineModel, PolicyName, simulate
from kvflow.simulator.cost_files import written_cost_model
from kvflow.simulator.costs import CostModel
from kvflow.simulator.fitting import mean_of
from kvflow.workload import Scenario, build_workload, find_scenario, load_scenario

__all__ = ["GOAL_POINTS", "GOAL_WALL", "PLANS", "Plan", "compared", "drift"]

GOAL_POINTS: Final = 2.0
GOAL_WALL: Final = 0.15

POLICY_OF: Final[Mapping[str, PolicyName]] = {
    "lru": "lru",
    "hicache-write-through": "hicache-lru",
    "kvflow-eviction": "kvflow-eviction",
    "kvflow": "kvflow",
}

ENGINE: Final = EngineModel(
    max_running_requests=8,
    chunked_prefill_tokens=4096,
    max_prefill_tokens=16_384,
    receive_s=0.002,
)
"""``kvflow engine`` on a CPU: its flags, and SGLang's defaults where the memory is not a GPU's.

How long receiving a request takes is a guess of its order: what matters is that it takes any time,
as the scheduler then begins with the first of several requests alone.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """A shipped scenario, with what is changed of it, and the arms that are run."""

    scenario: str
    arms: tuple[str, ...]
    changes: Mapping[str, Mapping[str, Any]]
    quick: bool = False
    """Whether it is part of a quick run."""

    def made(self) -> Scenario:
        return changed(load_scenario(find_scenario(self.scenario)), **self.changes)


_DEVICE: Final = ("lru", "kvflow")

PLANS: Final = (
    Plan("ring", _DEVICE, {"agents": {"rounds": 3}}, quick=True),
    Plan("ring-hicache", ("hicache-write-through", "kvflow"), {"agents": {"rounds": 3}}),
    Plan("branch", _DEVICE, {"agents": {"rounds": 5}}),
    Plan("fan-out", _DEVICE, {"agents": {"rounds": 3}}),
    Plan("chat", _DEVICE, {"agents": {"rounds": 5}}),
    Plan("peer", _DEVICE, {"load": {"workflows": 3}}),
    Plan("zipf", _DEVICE, {"load": {"workflows": 7}}),
    Plan("mispredicted", ("kvflow",), {"load": {"workflows": 2}}),
)


def drift(before: CostModel, after: CostModel) -> dict[str, float]:
    """How much longer things took after than before: 0.1 is a tenth longer."""
    return {
        "prefill": after.prefill_s([(600, 0)]) / before.prefill_s([(600, 0)]) - 1,
        "prefill_after_hit": after.prefill_s([(48, 576)]) / before.prefill_s([(48, 576)]) - 1,
        "decode": after.decode_s(1, 640) / before.decode_s(1, 640) - 1,
    }


class Calibrating:
    """Progress of a benchmark that times the engine's rates between its runs."""

    def __init__(self, base_url: str, write: Callable[[str], None]) -> None:
        self._base_url = base_url
        self._write = write
        self._last: Calibration | None = None
        self.before: dict[str, Calibration] = {}
        self.after: dict[str, Calibration] = {}

    def note(self, text: str) -> None:
        self._write(f"  {text}")

    def run_begins(self, arm: BenchArm, repeat: int, repeats: int, calls: int) -> None:
        # What was timed right after the arm before is right before this one.
        self.before[arm.name] = self._last or self._calibrate()
        self._write(f"  {arm.name}: {calls} calls")

    def call_done(self, row: CallRow) -> None:
        """Too many to be shown."""

    def run_ends(self, arm: BenchArm, run: Run) -> None:
        self._last = self.after[arm.name] = self._calibrate()

    def _calibrate(self) -> Calibration:
        found = calibrate(self._base_url)
        self._write(f"  timed the engine's rates in {found.took_s:.0f} s")
        return found


def compared(
    plan: Plan, arm: str, run: Run, before: Calibration, after: Calibration
) -> dict[str, Any]:
    """A real run next to the simulation of it."""
    costs = mean_of(before.costs, after.costs)
    scenario = plan.made()
    result = simulate(
        build_workload(scenario),
        scenario.cache,
        costs,
        POLICY_OF[arm],
        engine=ENGINE,
    )
    counted = run.counted
    prompt_tokens = sum(row.prompt_tokens for row in counted)
    real = {
        "calls": len(counted),
        "prompt_tokens": prompt_tokens,
        "device_tokens": sum(row.device_tokens for row in counted),
        "host_tokens": sum(row.host_tokens for row in counted),
        "hit_rate": sum(row.cached_tokens for row in counted) / prompt_tokens,
        "wall_s": run.wall_s,
        "ttft_mean_s": sum(row.ttft_s for row in counted) / len(counted),
    }
    simulated = {
        "calls": result.calls,
        "prompt_tokens": result.prompt_tokens,
        "device_tokens": result.hits.device,
        "host_tokens": result.hits.host,
        "hit_rate": result.hit_rate,
        "wall_s": result.wall_s,
    }
    points = 100 * (simulated["hit_rate"] - real["hit_rate"])
    wall = simulated["wall_s"] / real["wall_s"] - 1
    return {
        "scenario": plan.scenario,
        "arm": arm,
        "real": real,
        "simulated": simulated,
        "hit_rate_error_points": points,
        "wall_error": wall,
        "hit_rate_met": abs(points) <= GOAL_POINTS,
        "wall_met": abs(wall) <= GOAL_WALL,
        "drift": drift(before.costs, after.costs),
        "costs": written_cost_model(costs),
        "calibrations": [before.written(), after.written()],
        "calls": [row.to_json() for row in run.calls],
    }


def _say(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenarios", help="names with commas between (default: all)")
    parser.add_argument("--quick", action="store_true", help="the ring alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "simulate_validation.json")
    options = parser.parse_args(argv)
    chosen = [plan for plan in PLANS if plan.quick or not options.quick]
    if options.scenarios:
        names = options.scenarios.split(",")
        unknown = set(names) - {plan.scenario for plan in PLANS}
        if unknown:
            parser.error(f"no such scenario here: {', '.join(sorted(unknown))}")
        chosen = [plan for plan in PLANS if plan.scenario in names]
    environment = describe_environment()
    begun_s = time.monotonic()
    rows: list[dict[str, Any]] = []
    with calibration_engine(host=True) as engine:
        for plan in chosen:
            _say(f"{plan.scenario}: {', '.join(plan.arms)}")
            scenario = plan.made()
            progress = Calibrating(engine.base_url, _say)
            result = run_bench(
                BenchOptions(scenario, choose_arms(plan.arms, scenario), repeats=1, device="cpu"),
                progress,
            )
            for arm, runs in result.runs.items():
                row = compared(plan, arm, runs[0], progress.before[arm], progress.after[arm])
                rows.append(row)
                _say(
                    f"  {arm}: hit rate {row['real']['hit_rate']:.1%}, simulated "
                    f"{row['simulated']['hit_rate']:.1%}; wall {row['real']['wall_s']:.1f} s, "
                    f"simulated {row['simulated']['wall_s']:.1f} s ({row['wall_error']:+.1%}); "
                    f"drift {row['drift']['prefill']:+.0%}"
                )
            write_result(
                options.output,
                {
                    "environment": environment,
                    "goals": {"points": GOAL_POINTS, "wall": GOAL_WALL},
                    "engine": asdict(ENGINE),
                    "scenarios": {
                        done.scenario: done.made().model_dump(exclude_defaults=True, mode="json")
                        for done in chosen[: chosen.index(plan) + 1]
                    },
                    "rows": rows,
                    "took_s": time.monotonic() - begun_s,
                },
            )
    _say(f"{options.output}, {time.monotonic() - begun_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
