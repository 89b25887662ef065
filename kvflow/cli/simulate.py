"""``kvflow simulate``: a scenario on a model of the engine, under several policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, cast, get_args

import typer
from rich.console import Console

from kvflow.cli.choices import one_of
from kvflow.cli.output import check_writable, write
from kvflow.errors import InvalidInputError
from kvflow.simulator import (
    POLICIES,
    CostModel,
    EngineModel,
    Graphs,
    Order,
    PolicyName,
    WritePolicy,
)
from kvflow.simulator import report as simulation_report
from kvflow.simulator import simulate as run_simulation
from kvflow.simulator.cost_files import read_cost_model
from kvflow.simulator.presets import cost_model
from kvflow.workload import Scenario, build_workload, find_scenario, load_scenario

__all__ = ["simulate"]

_WRITE_POLICIES: Final[tuple[WritePolicy, ...]] = get_args(WritePolicy)
_ORDERS: Final[tuple[Order, ...]] = get_args(Order)
_GRAPHS: Final[tuple[Graphs, ...]] = get_args(Graphs)


def simulate(
    scenario: Annotated[
        str, typer.Argument(help="A scenario that ships (`kvflow bench --list`), or a file.")
    ],
    *,
    policies: Annotated[
        str, typer.Option(help=f"Separated by commas: {', '.join(POLICIES)}; or all.")
    ] = "lru,hicache-lru,kvflow-eviction,kvflow",
    gpu: Annotated[str, typer.Option(help="A preset: a10g, l4, a100, h100, h200.")] = "h100",
    model: Annotated[
        str, typer.Option(help="A preset: llama-3.1-8b, qwen2.5-32b, smollm2-135m.")
    ] = "llama-3.1-8b",
    costs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A cost model as JSON, in place of --gpu and --model."),
    ] = None,
    device_tokens: Annotated[
        int | None, typer.Option(help="Size of the device tier, in place of the scenario's.")
    ] = None,
    host_tokens: Annotated[
        int | None, typer.Option(help="Size of the host tier, likewise; 0 for none.")
    ] = None,
    write_policy: Annotated[
        str, typer.Option(help=f"Of the host tier: {', '.join(_WRITE_POLICIES)}.")
    ] = "write_through",
    order: Annotated[
        str, typer.Option(help="KVFlow evicts by steps or by expected time (KVFLOW_ORDER).")
    ] = "steps",
    graphs: Annotated[
        str, typer.Option(help="KVFlow is told declared graphs, or has learned them from calls.")
    ] = "declared",
    host_for_all: Annotated[
        bool,
        typer.Option("--host-for-all", help="Let every policy use the host tier, not only some."),
    ] = False,
    bound: Annotated[
        bool,
        typer.Option("--bound", help="Work out what no policy could have exceeded (more memory)."),
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write all figures there; - for stdout."),
    ] = None,
) -> None:
    """Simulate what KVFlow and its alternatives make of a scenario; needs no engine and no GPU.

    Runs KVFlow's own graph, eviction and prefetch code over a model of the engine's costs.
    docs/simulator.md says what is modelled and what is not.
    """
    check_writable("--json", json_file)
    chosen = _policies(policies)
    path = find_scenario(scenario)
    given = _with_sizes(load_scenario(path), device_tokens, host_tokens)
    engine = EngineModel(
        write_policy=one_of("--write-policy", write_policy, _WRITE_POLICIES),
        order=one_of("--order", order, _ORDERS),
        graphs=one_of("--graphs", graphs, _GRAPHS),
        host_for_all=host_for_all,
    )
    prices = _costs(costs, gpu, model)
    workload = build_workload(given, path.parent)
    # With the figures on stdout, what people read goes to stderr.
    console = Console(stderr=json_file == "-")
    results = []
    for policy in chosen:
        with console.status(f"{policy} ..."):
            results.append(
                run_simulation(
                    workload,
                    given.cache,
                    prices,
                    policy,
                    engine=engine,
                    bound=bound,
                )
            )
    simulation_report.render(given, prices, results, console)
    if json_file is not None:
        figures = simulation_report.to_json(given, prices, engine, results)
        write(json.dumps(figures, indent=2), json_file, "Figures", console)


def _policies(text: str) -> list[PolicyName]:
    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InvalidInputError(
                ["--policies"], f"{name!r} is unknown; use all, or some of {', '.join(POLICIES)}"
            )
    return cast("list[PolicyName]", list(dict.fromkeys(names)))


def _costs(file: str | None, gpu: str, model: str) -> CostModel:
    return cost_model(gpu.lower(), model) if file is None else read_cost_model(Path(file))


def _with_sizes(scenario: Scenario, device_tokens: int | None, host_tokens: int | None) -> Scenario:
    sizes: dict[str, int] = {}
    for option, name, least, tokens in (
        ("--device-tokens", "device_tokens", 1, device_tokens),
        ("--host-tokens", "host_tokens", 0, host_tokens),
    ):
        if tokens is None:
            continue
        if tokens < least:
            raise InvalidInputError([option], f"{tokens} is too small; give at least {least}")
        sizes[name] = tokens
    return scenario.model_copy(update={"cache": scenario.cache.model_copy(update=sizes)})
