"""Tables of how durable the service is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.markdown import Result, machine, table

__all__ = ["TABLES"]


def kill(result: Result) -> str:
    """kill -9 at random points."""
    return (
        f"{result['kills']} times `kill -9` with {result['clients']} clients at work: "
        f"{result['acknowledged_requests']:,} requests acknowledged, {result['lost']} lost. "
        f"{result['unanswered_requests']:,} were under way when the service was killed; each was "
        "made whole or not at all. The next start was ready after "
        f"{result['median_ready_s']:.2f} s (median; {result['longest_ready_s']:.2f} s at most).\n"
        + machine(result)
    )


def startup(result: Result) -> str:
    """How long a start takes."""
    rows = [
        [
            run["name"],
            f"{run['workflows']:,}",
            f"{run['median_ready_s']:.2f} s",
            f"{run['median_told_s']:.2f} s",
            f"{run['database_bytes'] / 1e6:,.0f} MB",
            f"{run['resident_bytes_when_ready'] / 1e6:,.0f} MB",
        ]
        for run in result["runs"]
    ]
    head = [
        *("", "live workflows", "ready after", "an engine is told of all in"),
        *("database", "memory when ready"),
    ]
    return (
        table(head, rows)
        + "\nAfter a kill -9; Python's own start is in it. "
        + f"Goal: {result['target_ready_s']:.0f} s.\n"
        + machine(result)
    )


TABLES: Final[Mapping[str, tuple[str, Callable[[Result], str]]]] = {
    "service_kill": ("service_kill.json", kill),
    "service_startup": ("service_startup.json", startup),
}
