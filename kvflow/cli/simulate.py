"""``kvflow simulate``: a scenario on a model of the engine, under several policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console

from kvflow.cli.long_runs import check_writable
from kvflow.errors import InvalidInputError
from kvflow.simulator import POLICIES, CostModel, EngineModel, PolicyName, WritePolicy
from kvflow.simulator import report as simulation_report
from kvflow.simulator import simulate as run_simulation
from kvflow.simulator.cost_files import read_cost_model
from kvflow.simulator.presets import cost_model
from kvflow.workload import Scenario, build_workload, find_scenario, load_scenario

__all__ = ["simulate"]

_WRITE_POLICIES = ("write_through", "write_through_selective", "write_back")


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
    if write_policy not in _WRITE_POLICIES:
        raise InvalidInputError(
            ["--write-policy"], f"{write_policy!r} is unknown; use {', '.join(_WRITE_POLICIES)}"
        )
    engine = EngineModel(
        write_policy=cast(WritePolicy, write_policy),
        order=cast("Literal['steps', 'time']", _one_of("--order", order, "steps", "time")),
        graphs=cast(
            "Literal['declared', 'learned']", _one_of("--graphs", graphs, "declared", "learned")
        ),
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
    if json_file is None:
        return
    text = json.dumps(simulation_report.to_json(given, prices, engine, results), indent=2)
    if json_file == "-":
        typer.echo(text)
        return
    Path(json_file).write_text(text + "\n", encoding="utf-8")
    console.print(f"Figures: {json_file}", markup=False, highlight=False, soft_wrap=True)


def _policies(text: str) -> list[PolicyName]:
    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise InvalidInputError(
                ["--policies"], f"{name!r} is unknown; use all, or some of {', '.join(POLICIES)}"
            )
    return cast("list[PolicyName]", list(dict.fromkeys(names)))


def _one_of(option: str, given: str, *known: str) -> str:
    if given not in known:
        raise InvalidInputError([option], f"{given!r} is unknown; use {' or '.join(known)}")
    return given


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
