"""Markdown tables of ``plugin_micro.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.markdown import Result, machine, table

__all__ = ["TABLES"]


CORES: Final = ("python", "rust", "kvflow")
ARMS: Final = ("rust", "python", "kvflow-idle", "kvflow")
_CORE_HEAD: Final = ("SGLang, Python core", "SGLang, Rust core", "KVFlow")
_ARM_HEAD: Final = (
    "SGLang, Rust core",
    "SGLang, Python core",
    "KVFlow, no hints",
    "KVFlow, hints",
)


def eviction(result: Result) -> str:
    """Cost of evicting one leaf."""
    measured = {(m["tier"], m["leaves"], m["core"]): m for m in result["eviction"]}
    leaves = sorted({m["leaves"] for m in result["eviction"]})
    rows = [
        [
            f"{tier}, {count:,} leaves",
            *(
                f"{measured[tier, count, core]['evict_ms_median']:.3f} ms "
                f"({measured[tier, count, core]['evict_ms_p99']:.3f})"
                for core in CORES
            ),
        ]
        for tier in ("device", "host")
        for count in leaves
    ]
    return table(["evict one leaf: median (p99)", *_CORE_HEAD], rows) + machine(result)


def trees(result: Result) -> str:
    """Insert, match, split, and what learning from the request takes."""
    rows = [
        [
            f"{row['operation']}, prefix of {row['prefix_tokens']:,}, {row['nodes']:,} nodes, "
            f"pages of {row['page_size']}",
            *(_time(row["us"].get(core)) for core in CORES),
            f"{row['over_rust']['kvflow']['median']:.2f}" if row["over_rust"] else "",
        ]
        for row in result["trees"]
    ]
    head = ["median (p99)", *_CORE_HEAD, "KVFlow over Rust"]
    return table(head, rows) + machine(result)


def hints(result: Result) -> str:
    """Learning and messages."""
    rows = [
        [f"learn from a call, prompt of {row['prompt_tokens']:,} tokens", _time(row["us"])]
        for row in result["learning"]
    ]
    for row in result["updates"]:
        of = f"{row['workflows']:,} live workflows of {row['agents']} agents"
        rows.append([f"message with new steps of one, {of}", _time(row["one_us"])])
        if row["workflows"] > 1:
            rows.append([f"message with new steps of all, {of}", _time(row["all_us"])])
    return table(["", "median (p99)"], rows) + machine(result)


def hooks(result: Result) -> str:
    """What the hooks of a step take that have nothing to do."""
    rows = [
        [f"{row['tiers']}, {row['live_workflows']} live workflows", _time(row["us"])]
        for row in result["hooks"]
    ]
    return table(["all hooks of one scheduler step", "median (p99)"], rows) + machine(result)


def requests(result: Result) -> str:
    """A request's way through the cache, and what that is of a GPU's time."""
    rows = []
    for row in result["requests"]:
        computed = row["computed"]
        rows.append(
            [
                row["scenario"]["name"],
                *(_time(row["us"][arm]["total"]) for arm in ARMS),
                *(f"{row['total_over_rust'][arm]['median']:.2f}" for arm in ARMS[2:]),
                f"{computed['gpu_us_per_request']:,.0f} us",
                *(f"{computed['share'][arm]:.1%}" for arm in ARMS[2:]),
            ]
        )
    head = [
        *("match, lock, insert, learn per request: median (p99)", *_ARM_HEAD),
        *("no hints over Rust", "hints over Rust", "computed: GPU per request"),
        *("computed: share, no hints", "computed: share, hints"),
    ]
    one = result["requests"][0]["computed"]
    return (
        table(head, rows)
        + f"\nComputed, not measured: time of {one['model']} on one {one['gpu'].upper()} for such "
        f"a request in a batch of {one['batch']}, and KVFlow's time beyond the Rust core's as a "
        "share of it. SGLang overlaps the scheduler with the GPU; the share is lost where it "
        "cannot.\n" + machine(result)
    )


def engine(result: Result) -> str:
    """Real engines whose model is as good as none."""
    if not result["engine"]:
        return "Not measured yet.\n"
    rows = []
    for row in result["engine"]:
        arms = row["arms"]
        rows.append(
            [
                row["scenario"]["name"],
                *(_time(arms[arm]["scheduler_us_per_request"]) for arm in ARMS),
                *(f"{arms[arm]['scheduler_over_rust']['median']:.3f}" for arm in ARMS[1:]),
                *(f"{arms[arm]['throughput_over_rust']['median']:.3f}" for arm in ARMS[1:]),
            ]
        )
    names = ("Python core", "KVFlow, no hints", "KVFlow, hints")
    head = [
        *("scheduler's CPU time per request without forwards: median (p99)", *_ARM_HEAD),
        *(f"time over Rust: {name}" for name in names),
        *(f"throughput over Rust: {name}" for name in names),
    ]
    identical = all(row["outputs_identical"] for row in result["engine"])
    return (
        table(head, rows)
        + f"\n{result['engine'][0]['turns']} bursts each, in turn, on a one-layer model of width "
        f"64. Outputs of all arms: {'' if identical else 'NOT '}identical.\n" + machine(result)
    )


def _time(figures: Result | None) -> str:
    if figures is None:
        return ""
    return f"{_scaled(figures['median'])} ({_scaled(figures['p99'])})"


def _scaled(us: float) -> str:
    return f"{us:.1f} us" if us < 100 else f"{us:,.0f} us" if us < 10_000 else f"{us / 1e3:,.1f} ms"


TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    f"plugin_micro_{name}": ("plugin_micro.json", render)
    for name, render in (
        ("eviction", eviction),
        ("trees", trees),
        ("hints", hints),
        ("hooks", hooks),
        ("requests", requests),
        ("engine", engine),
    )
}
"""To be joined to ``benchmarks.tables.TABLES``."""
