"""The simulator's results as Markdown, for ``benchmarks.tables``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.markdown import Result, table

__all__ = ["TABLES"]

_TITLES: Final[Mapping[str, str]] = {
    "lru": "SGLang",
    "hicache-lru": "HiCache",
    "kvflow-eviction": "KVFlow, eviction only",
    "kvflow": "KVFlow",
}


def validation(result: Result) -> str:
    """Simulated and real, scenario by scenario."""
    rows = []
    for row in result["rows"]:
        real, simulated = row["real"], row["simulated"]
        rows.append(
            [
                f"{row['scenario']}, {row['arm']}",
                *(f"{side['hit_rate']:.1%}" for side in (real, simulated)),
                f"{row['hit_rate_error_points']:+.1f}",
                *(f"{side['wall_s']:.1f} s" for side in (real, simulated)),
                f"{row['wall_error']:+.1%}",
                f"{row['drift']['prefill']:+.0%}",
            ]
        )
    head = [
        *("scenario, arm", "hit rate", "simulated", "points"),
        *("wall", "simulated", "error", "machine's drift"),
    ]
    goals, total = result["goals"], len(result["rows"])
    environment = result["environment"]
    hits, walls = (
        sum(row[name] for row in result["rows"]) for name in ("hit_rate_met", "wall_met")
    )
    return (
        table(head, rows)
        + f"\nWithin {goals['points']:g} points: {hits} of {total}. Wall time within "
        f"{goals['wall']:.0%}: {walls} of {total}. Drift: how much longer a prefill took after the "
        f"run than before it. {environment['cpu_model']}, {environment['cpu_cores']} cores, "
        f"{environment['python']}, SGLang {environment['packages']['sglang']}.\n"
    )


def policies(result: Result) -> str:
    """Hit rates of all policies with right hints, and KVFlow's throughput over LRU's."""
    parts = []
    for tiers in ("device", "device+host"):
        found = [row for row in result["rows"] if row["tiers"] == tiers and row["hints"] == "right"]
        names = list(dict.fromkeys(row["policy"] for row in found))
        by_place = {(row["workload"], row["policy"]): row for row in found}
        rows = []
        for workload in dict.fromkeys(row["workload"] for row in found):
            ours = by_place[workload, "kvflow"]
            rows.append(
                [
                    workload,
                    *(f"{by_place[workload, name]['hit_rate']:.1%}" for name in names),
                    _bound(ours),
                    f"{ours['share_of_bound']:.1%}",
                    _share(ours["over_clairvoyant"]),
                    f"{ours['throughput_over_lru']:.2f}",
                ]
            )
        head = [
            *(f"{tiers}: hit rate", *names, "bound"),
            *("KVFlow over bound", "over clairvoyant", "throughput over LRU"),
        ]
        parts.append(table(head, rows))
    settings = result["settings"]
    return "\n".join(parts) + (
        f"\nSimulated, not measured: {settings['gpu'].upper()}, {settings['model']}, right hints. "
        "Bound: Belady's, for KVFlow's order of calls. Clairvoyant: a policy that knows all coming "
        "calls of the workflows under way, but not which begin. Throughput: KVFlow's over LRU's on "
        "the same tiers.\n"
    )


def learned(result: Result) -> str:
    """Hit rates from calls alone beside declared graphs, and by time beside steps."""
    rows = [row for row in result["rows"] if row["tiers"] == "device"]
    ways = list(dict.fromkeys(row["way"] for row in rows))
    by_place = {(row["workload"], row["way"]): row for row in rows}
    made = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        found = [by_place[workload, way] for way in ways]
        lru, declared, from_calls = (row["hit_rate"] for row in found[:3])
        gained = (from_calls - lru) / (declared - lru) if declared > lru else None
        made.append(
            [
                workload,
                *(f"{row['hit_rate']:.1%}" for row in found),
                "" if gained is None else f"{gained:.0%}",
                *(f"{row['throughput_over_lru']:.2f}" for row in found[1:3]),
            ]
        )
    head = [
        *("device: hit rate", *ways, "learned: share of the gain"),
        *("throughput over LRU, declared", "learned"),
    ]
    both = [row for row in result["rows"] if row["tiers"] == "device+host"]
    spread = [
        max(group) - min(group)
        for workload in dict.fromkeys(row["workload"] for row in both)
        for group in [[row["hit_rate"] for row in both if row["workload"] == workload]]
    ]
    settings = result["settings"]
    return table(head, made) + (
        f"\nSimulated, not measured: {settings['gpu'].upper()}, {settings['model']}, KVFlow with "
        "prefetch. Share of the gain: of what declared graphs find beyond LRU. With a host tier of "
        f"{settings['host_times']} times the device's, hit rates of all five differ by "
        f"{max(spread):.1%} at most.\n"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _bound(row: Result) -> str:
    return f"{row['bound_hit_tokens'] / row['prompt_tokens']:.1%}"


def policy_goals(result: Result) -> str:
    """The goals of the policy comparison and where they are missed."""
    rows = [
        [
            goal["goal"],
            f"at least {goal['least']:.0%}",
            f"{goal['met']} of {goal['of']}",
            f"{goal['worst']:.1%}",
            "; ".join(
                f"{miss['workload']}, {miss['tiers']}, {miss['hints']}: {miss['figure']:.1%}"
                for miss in goal["missed"]
            )
            or "nowhere",
        ]
        for goal in result["goals"]
    ]
    return table(["KVFlow with", "goal", "met", "worst", "missed"], rows)


def paper(result: Result) -> str:
    """The paper's figures, each with the simulated ones."""
    links = list(result["settings"]["links"])
    rows = [
        [
            f"{one['gpu'].upper()}, {one['what']}: "
            f"{_TITLES[one['by']]} over {_TITLES[one['over']]}",
            f"{one['published']:.2f}",
            *(_spread(one["simulated"].get(link)) for link in links),
            one["source"],
        ]
        for one in result["compared"]
    ]
    head = ["speed-up", "published", *(f"simulated, link: {link}" for link in links), "source"]
    settings = result["settings"]
    return (
        table(head, rows)
        + f"\nSimulated, not measured: SGLang 0.5.23 as modelled, {settings['agents']} agents, "
        f"{settings['runs']} runs. The published figures are of the authors' system on SGLang "
        "0.4.4. In brackets: least and most of the configurations that a mean stands for.\n"
    )


def _spread(figures: Result | None) -> str:
    if figures is None:
        return ""
    mean, least, most = (figures[name] for name in ("mean", "least", "most"))
    if most - least < 0.005:
        return f"{mean:.2f}"
    return f"{mean:.2f} ({least:.2f} to {most:.2f})"


def speed(result: Result) -> str:
    """How fast the simulator itself is, and that its memory does not grow."""
    rows = [
        [
            row["policy"],
            f"{row['calls']:,}",
            f"{row['wall_s']:.0f} s",
            f"{row['calls_per_s']:,.0f} /s",
            *(_megabytes(row[name]) for name in ("peak_rss_bytes_at_a_tenth", "peak_rss_bytes")),
        ]
        for row in result["rows"]
    ]
    environment = result["environment"]
    head = ["policy", "calls", "time", "rate", "peak memory at a tenth", "in the end"]
    return table(head, rows) + f"\nOne core. {environment['cpu_model']}, {environment['python']}.\n"


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB"


TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "simulate_validation": ("simulate_validation.json", validation),
    "simulate_policies": ("simulate_policies.json", policies),
    "simulate_policy_goals": ("simulate_policies.json", policy_goals),
    "simulate_paper": ("simulate_paper.json", paper),
    "simulate_learned": ("simulate_learned.json", learned),
    "simulate_speed": ("simulate_speed.json", speed),
}
