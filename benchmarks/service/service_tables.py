"""Tables of the service under load, and over a long time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from benchmarks.markdown import Result, machine, table

__all__ = ["TABLES"]

_SINGLE_PER_S: Final = 1_500
_LISTED_PER_S: Final = 30_000
_SINGLE_P99_MS: Final = 20.0
_EFFECT_P99_MS: Final = 30.0


def load(result: Result) -> str:
    """Every run: what was asked, and what came of it."""
    rows = [_run_row(arm["store"], run) for arm in result["arms"] for run in arm["runs"]]
    head = [
        *("store, load", "events/s", "answer p50", "p99", "p99.9", "at the engine p50", "p99"),
        *("CPU service", "CPU generator"),
    ]
    settings = result["settings"]
    return (
        table(head, rows)
        + f"\n{settings['workflows']:,} workflows of {settings['agents']} agents in a cycle, "
        f"{settings['seconds']:g} s each. Latencies count from when a request was due (at a rate) "
        "or sent; at the engine: until an open stream had the state, over all events and streams. "
        "CPU: of one core. Service and generator share the machine.\n" + machine(result)
    )


def _run_row(store: str, run: Mapping[str, Any]) -> list[str]:
    latency, effect = run["latency"], run.get("effect")
    refused = sum(count for status, count in run["statuses"].items() if status != "200")
    rate = f"{run['events_per_s']:,.0f}" + (f" ({refused} refused)" if refused else "")
    if "lists" in run:
        rate += f" + {run['lists']['events_per_s']:,.0f} in lists"
    return [
        f"{store}, {_load_name(run)}",
        rate,
        *(f"{latency[name]:.1f} ms" for name in ("p50_ms", "p99_ms", "p999_ms")),
        *(f"{effect[name]:.1f} ms" if effect else "" for name in ("p50_ms", "p99_ms")),
        *(f"{run[name]:.0%}" for name in ("service_cpu", "generator_cpu")),
    ]


def _load_name(run: Mapping[str, Any]) -> str:
    rate = f"{run['per_s']:,.0f}/s" if run.get("per_s") else "flat out"
    names = {
        "single": f"single events, {rate}",
        "lists": f"lists of {run.get('length', 0):,}, flat out",
        "mixed": f"single events, {rate}, beside lists of {run.get('length', 0):,}",
        "streams": f"single events, {rate}, {run.get('engines', 0):,} engines",
    }
    return names[run["name"]]


def goals(result: Result) -> str:
    """The issue's numbers, and whether they were met."""
    rows = [
        [f"{arm['store']}: {goal}", wanted, found, "met" if met else "**missed**"]
        for arm in result["arms"]
        for goal, wanted, found, met in _goals(arm["runs"])
    ]
    return table(["store: goal", "wanted", "measured", ""], rows) + machine(result)


def _goals(runs: list[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, bool]]:
    single = [run for run in runs if run["name"] == "single"]
    most = max(run["events_per_s"] for run in single)
    yield ("single events", f"{_SINGLE_PER_S:,}/s", f"{most:,.0f}/s", most >= _SINGLE_PER_S)
    for run in single:
        if (run["per_s"] or 0) >= _SINGLE_PER_S:
            p99 = run["latency"]["p99_ms"]
            name = f"p99 of single events at {run['per_s']:,.0f}/s"
            yield (name, f"{_SINGLE_P99_MS:g} ms", f"{p99:.1f} ms", p99 <= _SINGLE_P99_MS)
    longest = max((run for run in runs if run["name"] == "lists"), key=lambda run: run["length"])
    listed = longest["events_per_s"]
    name = f"events in lists of {longest['length']:,}"
    yield (name, f"{_LISTED_PER_S:,}/s", f"{listed:,.0f}/s", listed >= _LISTED_PER_S)
    for run in runs:
        if run["name"] == "streams":
            p99 = run["effect"]["p99_ms"]
            name = f"p99 at the engine, {run['engines']:,} streams, {run['per_s']:,.0f} events/s"
            yield (name, f"{_EFFECT_P99_MS:g} ms", f"{p99:.1f} ms", p99 <= _EFFECT_P99_MS)


def soak(result: Result) -> str:
    """Memory over time."""
    settings, summary = result["settings"], result["summary"]
    return (
        f"{settings['minutes']:g} minutes at {settings['per_s']:g} events/s, with "
        f"{settings['engines']} engines' streams and {settings['readers']} readers of "
        "`/v1/events` that come and go, two connections that read nothing, and workflows that are "
        f"created, deleted and left to expire: {summary['requests']:,} requests, "
        f"{summary['unexpected']:,} answers that were not as expected. Memory of the service: "
        f"{summary['first_mb']:.1f} MB after the first "
        f"fifth, {summary['last_mb']:.1f} MB at the end (median of a fifth each), "
        f"{summary['slope_mb_per_h']:+.1f} MB per hour by a line through the last four fifths.\n"
        + machine(result)
    )


TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "service_load": ("service_load.json", load),
    "service_goals": ("service_load.json", goals),
    "service_soak": ("service_soak.json", soak),
}
