"""Tables of what copying ahead brings, for ``benchmarks.tables``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.markdown import Result, machine, outputs, table

__all__ = ["TABLES"]


def link(result: Result) -> str:
    """Loads ahead of need, by speed of the link."""
    rows = [
        [
            f"{arm['speed']}, {'all on the device' if arm['kind'] == 'limit' else arm['kind']}",
            *_times(arm["summary"]),
            *(f"{arm['ratios'][f'ttft_p50_over_{name}']:.2f}" for name in ("stock", "limit")),
            *_counts(arm["prefetch"], "loaded", "used", "wasted", "late"),
        ]
        for arm in result["arms"]
    ]
    head = [
        *("link, cache", "hit rate", "from device", "TTFT p50", "TTFT p95"),
        *("p50 over stock", "p50 over limit", "loaded ahead", "used", "wasted", "late"),
    ]
    settings = result["settings"]
    return (
        table(head, rows)
        + f"\n{settings['agents']} agents in a cycle, prefixes of {settings['prefix_tokens']} "
        f"tokens, device pool of {settings['device_tokens']:,}, host pool "
        f"{settings['hicache_ratio']:g} times that. {outputs(result)}\n" + machine(result)
    )


def storage(result: Result) -> str:
    """Fetches ahead of need from a storage tier."""
    rows = []
    for arm in result["arms"]:
        summary = arm["summary"]
        tiers = (summary[f"{tier}_tokens"] for tier in ("device", "host", "storage"))
        rows.append(
            [
                arm["kind"],
                *_times(summary),
                *(f"{tokens / summary['prompt_tokens']:.0%}" for tokens in tiers),
                *_counts(arm["prefetch"], "fetched", "loaded", "wasted"),
            ]
        )
    head = [
        *("cache", "hit rate", "from device", "TTFT p50", "TTFT p95", "device", "host", "storage"),
        *("fetched ahead", "loaded ahead", "wasted"),
    ]
    settings = result["settings"]
    return (
        table(head, rows)
        + f"\n{settings['agents']} agents in a cycle, prefixes of {settings['prefix_words']} "
        f"tokens, device pool of {settings['device_tokens']:,}. {outputs(result)}\n"
        + machine(result)
    )


def wrong_graph(result: Result) -> str:
    """Throughput with hints that are wrong, over stock SGLang's."""
    rows = []
    for run in result["comparisons"]:
        ratio, figures = run["ratio"], run["prefetch"] or {}
        right, wrong = (figures.get(f"predictions_{name}", 0) for name in ("hit", "miss"))
        rows.append(
            [
                f"{run['setting']}, {run['case']}",
                *(
                    f"{run['summaries'][name]['calls'] / _wall_s(run, name):.2f} /s"
                    for name in ("stock", "kvflow")
                ),
                f"{ratio['median']:.3f}",
                f"{ratio['least']:.3f} to {ratio['most']:.3f}",
                f"{right:.0f} of {right + wrong:.0f}",
                *_counts(run["prefetch"], "loaded"),
            ]
        )
    head = [
        *("tiers, claims", "stock", "KVFlow", "ratio (median)", "range"),
        *("predictions right", "loaded ahead"),
    ]
    return (
        table(head, rows)
        + f"\n{result['settings']['pairs']} pairs of rounds each. {outputs(result)}\n"
        + machine(result)
    )


def admission(result: Result) -> str:
    """Many workflows at once, some of them held back."""
    rows = []
    for arm in result["arms"]:
        done = arm["completion"]
        times = ("total", "workflow_p50", "workflow_p95", "longest_wait")
        rows.append(
            [
                f"{arm['setting']}, {arm['kind']}",
                f"{arm['summary']['hit_rate']:.1%}",
                f"{done['calls_per_s']:.2f} /s",
                *(f"{done[f'{name}_s']:.1f} s" for name in times),
            ]
        )
    head = [
        *("tiers, cache", "hit rate", "calls", "total", "workflow p50", "workflow p95"),
        "longest wait",
    ]
    settings = result["settings"]
    return (
        table(head, rows)
        + f"\n{settings['workflows']} workflows at once, {settings['steps']} calls each, device "
        f"pool of {settings['device_tokens']:,} tokens. {outputs(result)}\n" + machine(result)
    )


def _times(summary: Result) -> list[str]:
    return [
        *(f"{summary[share]:.1%}" for share in ("hit_rate", "served_from_device")),
        *(f"{summary[f'ttft_{percent}_s']:.3f} s" for percent in ("p50", "p95")),
    ]


def _counts(figures: Result | None, *names: str) -> list[str]:
    """Tokens that the plugin counted; empty where there is none."""
    return ["" if figures is None else f"{figures[f'{name}_tokens']:,.0f}" for name in names]


def _wall_s(run: Result, name: str) -> float:
    return float(sum(block["wall_s"] for block in run["blocks"][name]))


TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "prefetch_link": ("prefetch_link.json", link),
    "prefetch_link_unslowed": ("prefetch_link_unslowed.json", link),
    "prefetch_storage": ("prefetch_storage.json", storage),
    "prefetch_wrong_graph": ("prefetch_wrong_graph.json", wrong_graph),
    "prefetch_admission": ("prefetch_admission.json", admission),
}
