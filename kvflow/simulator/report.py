"""Results of simulations, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from kvflow.simulator.base import EngineModel, SimulationResult
from kvflow.simulator.cost_files import written_cost_model
from kvflow.simulator.costs import CostModel
from kvflow.workload import Scenario

__all__ = ["render", "to_json"]

_TABLE_WIDTH = 110


def to_json(
    scenario: Scenario,
    costs: CostModel,
    engine: EngineModel,
    results: Sequence[SimulationResult],
) -> dict[str, Any]:
    """All figures, and all that they depend on, as plain JSON values."""
    return {
        "scenario": scenario.model_dump(mode="json"),
        "costs": written_cost_model(costs),
        "engine": asdict(engine),
        "results": [_figures(result) for result in results],
    }


def _figures(result: SimulationResult) -> dict[str, Any]:
    figures = asdict(result)
    for name in ("ttft_s", "total_s", "workflow_s"):
        figures[name] = {
            f"p{share * 100:g}": None if math.isnan(seconds) else seconds
            for share, seconds in figures[name].items()
        }
    return {
        **figures,
        "hit_rate": result.hit_rate,
        "share_of_bound": result.share_of_bound,
        "calls_per_s": result.calls_per_s,
        "output_tokens_per_s": result.output_tokens_per_s,
    }


def render(
    scenario: Scenario, costs: CostModel, results: Sequence[SimulationResult], console: Console
) -> None:
    """Print a table with a row for each policy."""
    calls = results[0].calls if results else 0
    cache = scenario.cache
    console.print(
        f"{scenario.name}: {calls} calls after the warm-up, simulated on {costs.name}. "
        f"Device {cache.device_tokens} tokens, host {cache.host_tokens}"
        f"{', storage' if cache.storage else ''}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    with_bound = any(result.bound_hit_tokens is not None for result in results)
    table = Table(Column("policy", no_wrap=True), box=None, pad_edge=False)
    headings = ["hits", "device", "host"]
    if cache.storage:
        headings.append("storage")
    if with_bound:
        headings.append("of bound")
    headings += ["TTFT p50", "p99", "calls/s", "prefetched", "used", "wasted"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.policy, *_cells(result, storage=cache.storage, bound=with_bound))
    # A terminal that is narrower breaks lines; that can be read, cut columns cannot.
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table, crop=False)


def _cells(result: SimulationResult, *, storage: bool, bound: bool) -> list[str]:
    hits, prompt = result.hits, max(1, result.prompt_tokens)
    cells = [f"{result.hit_rate:.1%}", f"{hits.device / prompt:.1%}", f"{hits.host / prompt:.1%}"]
    if storage:
        cells.append(f"{hits.storage / prompt:.1%}")
    if bound:
        share = result.share_of_bound
        cells.append("" if share is None else f"{share:.1%}")
    cells += [
        f"{result.ttft_s[0.5] * 1000:.1f} ms",
        f"{result.ttft_s[0.99] * 1000:.1f} ms",
        f"{result.calls_per_s:.4g}",
    ]
    cells += (
        [str(result.prefetched_tokens), str(result.used_tokens), str(result.wasted_tokens)]
        if result.prefetched_tokens
        else ["", "", ""]
    )
    return cells
