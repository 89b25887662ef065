"""A family's durations as plain values, to be stored and brought back."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from kvflow.graph.timing.durations import FamilyDurations

__all__ = ["MOST_KEPT", "duration_values", "restore_durations"]

MOST_KEPT: Final = 512
"""Of agents, and of pairs of them: those measured last."""

_DIGITS: Final = 6


def duration_values(durations: FamilyDurations) -> dict[str, Any]:
    """The measurements as JSON has values, to the microsecond, at most ``MOST_KEPT`` agents and
    pairs. Agents are places in ``names``."""
    places: dict[str, int] = {}

    def place(name: str) -> int:
        return places.setdefault(name, len(places))

    runs = list(durations._runs.windows())[-MOST_KEPT:]
    gaps = list(durations._gaps.windows())[-MOST_KEPT:]
    values = {
        "revision": durations.revision,
        "runs": [[place(agent), *_rounded(window)] for agent, window in runs],
        "gaps": [
            [place(source), place(target), *_rounded(window)] for (source, target), window in gaps
        ],
    }
    return {"names": list(places), **values}


def restore_durations(values: Mapping[str, Any]) -> FamilyDurations:
    """The durations that ``duration_values`` was called with.

    Raises:
        KeyError, TypeError, ValueError, IndexError: these are no such values.
    """
    names = values["names"]
    durations = FamilyDurations()
    if max(len(values["runs"]), len(values["gaps"])) > MOST_KEPT:
        raise ValueError(f"there are more than {MOST_KEPT} agents or pairs")
    for agent, *window in values["runs"]:
        for seconds in window:
            durations.learn_run(names[agent], _seconds(seconds))
    for source, target, *window in values["gaps"]:
        for seconds in window:
            durations.learn_gap(names[source], names[target], _seconds(seconds))
    durations.revision = int(values["revision"])
    return durations


def _rounded(window: deque[float]) -> list[float]:
    return [round(seconds, _DIGITS) for seconds in window]


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no duration")
    return float(value)
