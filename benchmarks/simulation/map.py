"""Where KVFlow helps and where it does not: fixed length, number of agents, bandwidth of the link.

``python -m benchmarks.simulation.map`` simulates one workflow that goes round its agents on an H100
with Qwen2.5-32B, for each length of the fixed prompts, number of agents and speed of the link
between host and device, and draws ``docs/figures/map.svg``: the end-to-end speed-up over HiCache
(LRU over both tiers, with a host pool that holds everything) and over SGLang without a host tier.
``--draw`` draws the file of an earlier run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.simulation.runs import Case, arguments, ratio, run_all, with_link, write
from kvflow.simulator import PolicyName
from kvflow.simulator.presets import cost_model, device_tokens
from kvflow.workload import Scenario, parse_scenario

__all__ = ["FIGURE", "draw", "points"]

GPU: Final = "h100"
MODEL: Final = "qwen2.5-32b"
MEM_FRACTION: Final = 0.88
FIGURE: Final = Path(__file__).parents[2] / "docs" / "figures" / "map.svg"

LENGTHS: Final[tuple[int, ...]] = (512, 1024, 2048, 4096, 8192, 16_384)
AGENTS: Final[tuple[int, ...]] = (2, 4, 8, 16, 32, 64)
BANDWIDTHS: Final[Mapping[str, float]] = {
    "3 GB/s": 3e9,
    "6 GB/s": 6e9,
    "12 GB/s (PCIe 3)": 12.4e9,
    "25 GB/s (PCIe 4)": 24.8e9,
    "56 GB/s (PCIe 5)": 55.6e9,
}
POLICIES: Final[tuple[PolicyName, ...]] = ("lru", "hicache-lru", "kvflow")
BASELINES: Final[Mapping[PolicyName, str]] = {
    "hicache-lru": "over HiCache",
    "lru": "over SGLang without a host tier",
}
ROUNDS: Final = 5
DYNAMIC_TOKENS: Final = 32
OUTPUT_TOKENS: Final = 32


def scenario(length: int, agents: int, seed: int) -> Scenario:
    device = device_tokens(GPU, MODEL, mem_fraction=MEM_FRACTION)
    everything = 2 * agents * (length + ROUNDS * (DYNAMIC_TOKENS + OUTPUT_TOKENS))
    return parse_scenario(
        {
            "name": f"ring-{agents}x{length}",
            "seed": seed,
            "prompts": {
                **{"fixed_tokens": length, "dynamic_tokens": DYNAMIC_TOKENS},
                "output_tokens": OUTPUT_TOKENS,
            },
            "agents": {"agents": agents, "rounds": ROUNDS},
            "load": {"workflows": 1},
            "cache": {"device_tokens": device, "host_tokens": max(everything, 2 * device)},
            "warm_up_rounds": 1,
        }
    )


def cases(
    lengths: Sequence[int], agents: Sequence[int], bandwidths: Mapping[str, float], seed: int
) -> Iterator[Case]:
    costs = cost_model(GPU, MODEL)
    for name, bytes_per_s in bandwidths.items():
        for length in lengths:
            for count in agents:
                for policy in POLICIES:
                    yield Case(
                        {"bandwidth": name, "fixed_tokens": length, "agents": count},
                        scenario(length, count, seed),
                        with_link(costs, bytes_per_s),
                        policy,
                    )


def points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One point of the map for each bandwidth, length and number of agents."""
    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["bandwidth"], row["fixed_tokens"], row["agents"])
        groups.setdefault(key, []).append(row)
    return [
        {
            **{"bandwidth": bandwidth, "fixed_tokens": length, "agents": agents},
            "speedup": {policy: ratio(group, "kvflow", policy) for policy in BASELINES},
        }
        for (bandwidth, length, agents), group in groups.items()
    ]


def draw(result: Mapping[str, Any], path: Path = FIGURE) -> None:
    """Draw the map; the same result gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot
    from matplotlib.colors import TwoSlopeNorm

    settings = result["settings"]
    lengths, agents = settings["lengths"], settings["agents"]
    bandwidths = list(settings["bandwidths"])
    found = {(p["bandwidth"], p["fixed_tokens"], p["agents"]): p for p in result["points"]}
    with pyplot.rc_context(
        {"svg.hashsalt": "kvflow", "svg.fonttype": "path", "font.size": 10, "axes.titlesize": 11}
    ):
        figure, grid = pyplot.subplots(
            len(BASELINES),
            len(bandwidths),
            figsize=(2.2 * len(bandwidths) + 1.2, 6.0),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
            facecolor="white",
        )
        for axes_row, (policy, title) in zip(grid, BASELINES.items(), strict=True):
            values = np.array(
                [
                    [
                        [found[name, length, count]["speedup"][policy] for length in lengths]
                        for count in agents
                    ]
                    for name in bandwidths
                ]
            )
            norm = TwoSlopeNorm(1.0, vmin=min(0.8, values.min()), vmax=max(1.2, values.max()))
            for axes, name, one in zip(axes_row, bandwidths, values, strict=True):
                image = axes.imshow(one, origin="lower", aspect="auto", cmap="RdYlBu", norm=norm)
                axes.set_title(name)
                axes.set_xticks(range(len(lengths)), [_short(n) for n in lengths])
                axes.set_yticks(range(len(agents)), [str(n) for n in agents])
                for (y, x), value in np.ndenumerate(one):
                    text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
                    shade = sum(image.cmap(norm(value))[:3])
                    colour = "white" if shade < 1.4 else "black"
                    axes.text(x, y, text, ha="center", va="center", fontsize=9, color=colour)
            axes_row[0].set_ylabel(f"agents in the cycle\n({title})")
            figure.colorbar(image, ax=list(axes_row), label="speed-up", pad=0.01)
        for axes in grid[-1]:
            axes.set_xlabel("fixed prompt, tokens")
        figure.suptitle(
            f"KVFlow's end-to-end speed-up, simulated: one workflow on an {GPU.upper()} with "
            f"Qwen2.5-32B, device pool of {settings['device_tokens']:,} tokens"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
        pyplot.close(figure)


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "map")
    parser.add_argument("--draw", action="store_true", help="only draw what --output holds")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args(argv)
    if not options.draw:
        lengths, agents = LENGTHS, AGENTS
        bandwidths = dict(BANDWIDTHS)
        if options.quick:
            lengths, agents = LENGTHS[1::2], AGENTS[1::2]
            bandwidths = {name: bandwidths[name] for name in list(bandwidths)[::2]}
        rows = run_all(cases(lengths, agents, bandwidths, options.seed), options.jobs)
        write(
            options.output,
            settings={
                **{"gpu": GPU, "model": MODEL, "mem_fraction": MEM_FRACTION},
                "device_tokens": device_tokens(GPU, MODEL, mem_fraction=MEM_FRACTION),
                **{"lengths": lengths, "agents": agents, "bandwidths": bandwidths},
                **{"rounds": ROUNDS, "dynamic_tokens": DYNAMIC_TOKENS},
                **{"output_tokens": OUTPUT_TOKENS, "seed": options.seed},
            },
            scenarios={},
            costs=[cost_model(GPU, MODEL)],
            points=points(rows),
            rows=rows,
        )
    draw(json.loads(options.output.read_text(encoding="utf-8")), options.figure)
    print(options.figure)


if __name__ == "__main__":
    main()
