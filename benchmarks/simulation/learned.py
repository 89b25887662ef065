"""What is not declared: learned order against declared graphs, and an order by time against steps.

``python -m benchmarks.simulation.learned`` runs KVFlow on the workloads of the policy comparison
(an H100 with Llama-3.1-8B), with a device tier alone and with a host tier, in four ways: with
declared graphs or with calls alone, and ordered by steps-to-execution or by expected time; beside
them LRU on the same tiers. In those workloads all pauses have one mean, so time says little that
steps do not; two more have tools of different length before the agents: ``uneven-tools``, and
``uneven-fan-out``, where of agents side by side some come much later than others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.simulation.runs import Case, arguments, ratio, run_all, write
from benchmarks.simulation.scenarios import GPU, HOST_TIMES, MODEL, changed, policy_scenarios
from kvflow.simulator import EngineModel, PolicyName
from kvflow.simulator.costs import CostModel
from kvflow.simulator.presets import cost_model, device_tokens
from kvflow.workload import Scenario, parse_scenario

__all__ = ["UNEVEN", "WAYS", "with_ratios"]

_PROMPTS: Final = {"fixed_tokens": 4096, "dynamic_tokens": 128, "output_tokens": 64}
_LOAD: Final = {"workflows": 96, "concurrency": 32, "teams": 20}

UNEVEN: Final[Mapping[str, Mapping[str, Any]]] = {
    "uneven-tools": {
        "description": "as tools, but each agent's tool takes 0.2 to 20 s (mean)",
        "agents": {"agents": 10, "rounds": 4, "pause_s": (0.2, 20.0)},
        "load": _LOAD,
    },
    "uneven-fan-out": {
        "description": "a planner, 8 workers side by side, a joiner; tools of 0.2 to 20 s (mean)",
        "agents": {
            **{"pattern": "fan_out", "agents": 10, "branches": 8},
            **{"rounds": 4, "pause_s": (0.2, 20.0)},
        },
        "load": _LOAD,
    },
}

TIERS: Final = ("device", "device+host")

WAYS: Final[Mapping[str, EngineModel]] = {
    "declared": EngineModel(),
    "learned": EngineModel(graphs="learned"),
    "declared, by time": EngineModel(order="time"),
    "learned, by time": EngineModel(graphs="learned", order="time"),
}


def uneven_scenarios(seed: int, *, quick: bool) -> dict[str, Scenario]:
    """The two workloads that the policy comparison does not have."""
    device = device_tokens(GPU, MODEL)
    made = {}
    for name, given in UNEVEN.items():
        load = dict(given["load"])
        if quick:
            load["workflows"] //= 5
        made[name] = parse_scenario(
            {
                **{"name": name, "description": given["description"], "seed": seed},
                **{"prompts": _PROMPTS, "agents": dict(given["agents"]), "load": load},
                "cache": {"device_tokens": device, "host_tokens": HOST_TIMES * device},
                "warm_up_rounds": 1,
            }
        )
    return made


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
    scenarios |= uneven_scenarios(options.seed, quick=options.quick)
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
