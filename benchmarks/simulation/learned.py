"""What is not declared: learned order against declared graphs, and an order by time against steps.

``python -m benchmarks.simulation.learned`` runs KVFlow on the workloads of the policy comparison
(an H100 with Llama-3.1-8B), with a device tier alone and with a host tier, in four ways: with
declared graphs or with calls alone, and ordered by steps-to-execution or by expected time; beside
them LRU on the same tiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.simulation.runs import Case, arguments, ratio, run_all, write
from benchmarks.simulation.scenarios import GPU, HOST_TIMES, MODEL, changed, policy_scenarios
from kvflow.simulator import EngineModel, PolicyName
from kvflow.simulator.costs import CostModel
from kvflow.simulator.presets import cost_model
from kvflow.workload import Scenario

__all__ = ["WAYS", "with_ratios"]

TIERS: Final = ("device", "device+host")

WAYS: Final[Mapping[str, EngineModel]] = {
    "declared": EngineModel(),
    "learned": EngineModel(graphs="learned"),
    "declared, by time": EngineModel(order="time"),
    "learned, by time": EngineModel(graphs="learned", order="time"),
}


def cases(scenarios: Mapping[str, Scenario], costs: CostModel) -> Iterator[Case]:
    for name, scenario in scenarios.items():
        for tiers in TIERS:
            host = scenario.cache.host_tokens if tiers != "device" else 0
            made = changed(scenario, cache={"host_tokens": host})
            labels = {"workload": name, "tiers": tiers}
            lru: PolicyName = "lru" if tiers == "device" else "hicache-lru"
            yield Case({**labels, "way": "LRU"}, made, costs, lru, EngineModel(), bound=True)
            for way, model in WAYS.items():
                yield Case({**labels, "way": way}, made, costs, "kvflow", model, bound=True)


def with_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their throughput over LRU's on the same workload and tiers."""
    found = []
    for row in rows:
        group = [
            {**one, "policy": one["way"]}
            for one in rows
            if (one["workload"], one["tiers"]) == (row["workload"], row["tiers"])
        ]
        found.append({**row, "throughput_over_lru": ratio(group, row["way"], "LRU")})
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "learned")
    parser.add_argument("--workloads", help="names with commas between (default: all)")
    options = parser.parse_args(argv)
    scenarios = policy_scenarios(options.seed, quick=options.quick)
    if options.workloads:
        scenarios = {name: scenarios[name] for name in options.workloads.split(",")}
    costs = cost_model(GPU, MODEL)
    rows = with_ratios(run_all(cases(scenarios, costs), options.jobs))
    write(
        options.output,
        settings={
            **{"gpu": GPU, "model": MODEL, "host_times": HOST_TIMES, "seed": options.seed},
            **{"quick": options.quick, "ways": list(WAYS)},
        },
        scenarios=scenarios,
        costs=[costs],
        rows=rows,
    )


if __name__ == "__main__":
    main()
