"""The tables in README.md and docs/, made from the files in ``benchmarks/results/``.

``python -m benchmarks.tables`` writes them in place, between ``<!-- table: NAME -->`` and
``<!-- end -->``; with ``--check`` it only says whether they are up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.markdown import Result, machine, outputs, table
from benchmarks.plugin import tables as plugin
from benchmarks.prefetch import tables as prefetch
from benchmarks.service import durability_tables as durability
from benchmarks.service import front_door_tables as front_door
from benchmarks.service import service_tables
from benchmarks.simulation import tables as simulation

__all__ = ["TABLES", "main", "rendered"]

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
DOCUMENTS: Final = (
    "README.md",
    "docs/durability.md",
    "docs/front-door.md",
    "docs/reliability.md",
    "docs/results.md",
    "docs/measurements.md",
)
_BLOCK: Final = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def demo(result: Result) -> str:
    """What the demo's arms came to."""
    rows = [
        [
            f"**{arm['title']}**" if arm["kvflow"] else arm["title"],
            _cache(result["settings"]["caches"][arm["setting"]]),
            f"{arm['hit_rate']:.1%}",
            _best(arm),
            _from_device(arm, result["settings"]["caches"][arm["setting"]]),
            f"{arm['ttft_p50_s']:.2f} s",
            f"{arm['ttft_p95_s']:.2f} s",
            f"{arm['wall_s']:.0f} s",
        ]
        for arm in result["arms"]
    ]
    head = [
        *("", "cache", "hit rate", "best possible", "from device"),
        *("TTFT p50", "TTFT p95", "wall"),
    ]
    hardware, settings = result["hardware"], result["settings"]
    versions = result["versions"]
    identical = "identical" if result["outputs_identical"] else "NOT identical"
    return (
        table(head, rows)
        + f"\n{settings['agents']} agents in a cycle, {settings['rounds']} rounds, prompts of "
        f"{settings['median_prompt_tokens']:.0f} tokens (median), {settings['model']} in float32 "
        f"on {hardware['cores']} cores ({hardware['cpu']}), SGLang {versions['sglang']}. "
        f"Outputs of all arms: {identical}. From device: calls that hit "
        "and loaded nothing from the host. Wall: all rounds; all else: from round "
        f"{settings['measured_from_round']} on.\n"
    )


def _best(arm: Result) -> str:
    """The bound; with a host tier also the one for a cache in which nothing is kept twice."""
    optimum, mirrored = arm["optimal_hit_rate"], arm.get("mirrored_hit_rate")
    return f"{optimum:.1%}" if mirrored is None else f"{mirrored:.1%} to {optimum:.1%}"


def _from_device(arm: Result, setting: Result) -> str:
    """Calls that hit and loaded nothing; empty without a host tier, or where it was not counted."""
    served = arm.get("served_from_device")
    return f"{served:.0%}" if served is not None and setting["host_tokens"] else ""


def _cache(setting: Result) -> str:
    device = f"{setting['device_tokens']:,} tokens"
    host = setting["host_tokens"]
    return f"{device} + {host:,} host" if host else device


def demo_sentence(result: Result) -> str:
    """The first setting's result in one sentence."""
    comparison = result["comparisons"][0]
    by_name = {arm["name"]: arm for arm in result["arms"]}
    stock, kvflow = (by_name[name] for name in comparison["arms"])
    hardware = result["hardware"]
    return (
        f"Ten agents in a cycle on a {hardware['cores']}-core CPU "
        f"({hardware['cpu']}), device cache too small for all their prompts: stock SGLang "
        f"{result['versions']['sglang']} finds {stock['hit_rate']:.0%} of the prompt tokens in "
        f"cache, KVFlow {kvflow['hit_rate']:.0%} (the best any policy could: "
        f"{kvflow['optimal_hit_rate']:.0%}); median time to first token "
        f"{stock['ttft_p50_s']:.2f} s against {kvflow['ttft_p50_s']:.2f} s.\n"
    )


def bench(result: Result) -> str:
    """``kvflow bench``: all arms of one scenario."""
    over = {ratio["arm"]: ratio["wall_s"] for ratio in result["ratios"] if ratio["to"] == "lru"}
    rows = []
    for arm in result["arms"]:
        summary = arm["summary"]
        bound = summary["bound_hit_rate"]
        rows.append(
            [
                f"**{arm['title']}**" if arm["settings"]["kvflow"] else arm["title"],
                f"{summary['hit_rate']:.1%}",
                "" if bound is None else f"{bound:.1%}",
                *(f"{summary[name]:.2f} s" for name in ("ttft_p50_s", "ttft_p95_s")),
                f"{summary['wall_s']['median']:.1f} s",
                _range(over.get(arm["name"])),
            ]
        )
    head = [
        *("", "hit rate", "best possible", "TTFT p50", "TTFT p95", "wall (median)"),
        "times as fast as LRU",
    ]
    cache, repeats = result["scenario"]["cache"], result["settings"]["repeats"]
    hardware, versions = (result["environment"][name] for name in ("hardware", "versions"))
    host = f", host of {cache['host_tokens']:,}" if cache["host_tokens"] else ""
    return (
        table(head, rows)
        + f"\n{result['scenario']['description']} Device of {cache['device_tokens']:,} tokens"
        f"{host}. "
        f"{repeats} repeat{'s' if repeats > 1 else ''} each. {outputs(result)}\n\n"
        f"{hardware['cpu']}, "
        f"{hardware['cores']} cores, SGLang {versions['sglang']}, {result['settings']['model']}.\n"
    )


def _range(figures: Result | None) -> str:
    if figures is None:
        return ""
    return f"{figures['median']:.2f} ({figures['min']:.2f} to {figures['max']:.2f})"


def graph_steps(result: Result) -> str:
    """Cost of steps-to-execution."""
    rows = [
        [f"recompute, {shape}", f"{figures['edges']:,}", f"{figures['median_us']:.1f} us"]
        for shape, figures in result["recompute"].items()
    ]
    rows += [
        [
            f"updates, {run['shape']}, {run['workflows']:,} workflows, {run['clients']:,} "
            f"client{'s' if run['clients'] > 1 else ''}{', step ids' if run['step_ids'] else ''}",
            "",
            f"{run['median_updates_per_s']:,.0f} /s",
        ]
        for run in result["updates"]
    ]
    return table(["50 agents", "edges", "median"], rows) + machine(result)


TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "demo": ("demo.json", demo),
    "demo_sentence": ("demo.json", demo_sentence),
    "bench_ring_hicache": ("bench_ring_hicache.json", bench),
    "graph_steps": ("graph_steps.json", graph_steps),
    **prefetch.TABLES,
    **simulation.TABLES,
    **plugin.TABLES,
    **durability.TABLES,
    **front_door.TABLES,
    **service_tables.TABLES,
}


def rendered(text: str) -> str:
    """The document with its tables made anew; one without a result file says so.

    Raises:
        KeyError: it asks for a table there is none of.
    """

    def block(match: re.Match[str]) -> str:
        file, render = TABLES[match[2]]
        path = RESULTS / file
        made = render(json.loads(path.read_text())) if path.is_file() else "Not measured yet.\n"
        return match[1] + made + match[3]

    return _BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args().check
    outdated = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        if (new := rendered(text)) != text:
            outdated.append(name)
            if not check:
                path.write_text(new)
    if check and outdated:
        print(f"out of date: {', '.join(outdated)}; run python -m benchmarks.tables")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
