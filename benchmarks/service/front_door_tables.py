"""The table of ``docs/front-door.md``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.markdown import Result, machine, table

__all__ = ["TABLES"]


def front_door(result: Result) -> str:
    """What the front door adds to the time to the first byte, under each load."""
    rows = []
    for run in result["runs"]:
        added, engine = run["added"]["first_byte"], run["engine"]["first_byte"]
        events = run["added"].get("event_delay")
        rows.append(
            [
                _load(run),
                f"{engine['count']:,}",
                f"{engine['p50_ms']:.2f}",
                f"{engine['p99_ms']:.2f}",
                f"{added['p50_ms']:.2f}",
                f"{added['p99_ms']:.2f}",
                "" if events is None else f"{events['p50_ms']:.2f}",
                "" if events is None else f"{events['p99_ms']:.2f}",
            ]
        )
    head = [
        *("ms", "calls each way", "engine alone p50", "p99"),
        *("**added** p50", "**added** p99", "added per event p50", "p99"),
    ]
    goals = result["goals_ms"]
    slowest_ms = max(run["added"]["first_byte"]["max_ms"] for run in result["runs"])
    return (
        table(head, rows)
        + "\nTo the first byte of an answer, over an engine that answers at once; the goal was at "
        f"most {goals['p50_ms']:g} ms (p50) and {goals['p99_ms']:g} ms (p99). Engine, service and "
        f"caller share the machine. The slowest single call of all took {slowest_ms:.0f} ms more; "
        "why was not looked into.\n" + machine(result)
    )


def _load(run: Result) -> str:
    how = (
        "one after the other"
        if run["load"] == "alone"
        else f"{run['rate_per_s']:g} calls/s, half of them each way"
    )
    kind = "streamed, " if run["stream"] else ""
    return f"{kind}prompt of {run['prompt_chars']:,} characters; {how}"


TABLES: Final[dict[str, tuple[str, Callable[[Result], str]]]] = {
    "front_door": ("front_door.json", front_door)
}
