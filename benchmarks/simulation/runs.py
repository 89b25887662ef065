"""Many simulations, several at once, each as a row of plain values."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import write_result
from kvflow.prefetch import Link
from kvflow.simulator import EngineModel, PolicyName, simulate
from kvflow.simulator.cost_files import written_cost_model
from kvflow.simulator.costs import CostModel
from kvflow.workload import Scenario, build_workload

__all__ = ["RESULTS", "Case", "arguments", "ratio", "run_all", "with_link", "write"]

RESULTS: Final = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation.

    Attributes:
        labels: what tells its row from others, besides the policy.
        bound: whether to work out the most that any policy could have found.
    """

    labels: Mapping[str, Any]
    scenario: Scenario
    costs: CostModel
    policy: PolicyName
    engine: EngineModel = field(default_factory=EngineModel)
    bound: bool = False


def _run(case: Case) -> dict[str, Any]:
    result = simulate(
        build_workload(case.scenario),
        case.scenario.cache,
        case.costs,
        case.policy,
        engine=case.engine,
        bound=case.bound,
    )
    figures = asdict(result)
    for name in ("ttft_s", "total_s", "workflow_s"):
        figures[name] = {f"p{100 * share:g}": value for share, value in figures[name].items()}
    return {
        **case.labels,
        **figures,
        "hit_rate": result.hit_rate,
        "share_of_bound": result.share_of_bound,
        "calls_per_s": result.calls_per_s,
    }


def run_all(cases: Iterable[Case], jobs: int) -> list[dict[str, Any]]:
    """The cases' rows, in their order. Deterministic whatever ``jobs`` is."""
    todo = list(cases)
    rows: list[dict[str, Any]] = []
    begun_s = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        for row in pool.map(_run, todo):
            rows.append(row)
            if sys.stderr.isatty() or len(rows) % 25 == 0 or len(rows) == len(todo):
                took_s = time.monotonic() - begun_s
                print(f"{len(rows)} of {len(todo)} simulations, {took_s:.0f} s", file=sys.stderr)
    return rows


def write(
    output: Path,
    *,
    settings: Mapping[str, Any],
    scenarios: Mapping[str, Scenario],
    costs: Iterable[CostModel],
    **more: Any,
) -> None:
    """Write a result with all that it was made from; marked as simulated."""
    write_result(
        output,
        {
            "simulated": True,
            "settings": settings,
            "scenarios": {
                name: one.model_dump(exclude_defaults=True, mode="json")
                for name, one in scenarios.items()
            },
            "costs": {model.name: written_cost_model(model) for model in costs},
            **more,
        },
    )
    print(output)


def arguments(description: str | None, result: str) -> argparse.ArgumentParser:
    """A parser with what all of these take."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of it, to try it out")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the workloads (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULTS / f"simulate_{result}.json")
    return parser


def with_link(costs: CostModel, bytes_per_s: float) -> CostModel:
    """The costs with another speed of the link between host and device."""
    link = Link(bytes_per_s / costs.kv_bytes_per_token, costs.load.latency_s)
    return replace(costs, load=link, write=link)


def ratio(
    rows: Sequence[Mapping[str, Any]], policy: str, other: str, figure: str = "calls_per_s"
) -> float | None:
    """A policy's figure over another's, among rows of one workload; None if that makes no sense."""
    by_policy = {row["policy"]: row[figure] for row in rows}
    if policy not in by_policy or not by_policy.get(other):
        return None
    return float(by_policy[policy] / by_policy[other])
