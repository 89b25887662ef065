"""Result files: one per task, whole or not there, and what they amount to together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["FORMAT", "PLACES", "ResultFolder", "merged"]

FORMAT: Final = 1
_STOCK: Final = ("limit", "lru", "priority", "hicache-write-through", "hicache-write-back")
PLACES: Final = frozenset({"cold", "device", "host", "prefetched", "late", "stale"})
"""What piece (a) has to have shown to be complete."""

_COMPARED: Final = ("wall_s", "ttft_p50_s", "ttft_p99_s")


class ResultFolder:
    """``parts/`` holds a file for each task, ``result.json`` what they amount to.

    Every file is written whole and then put in its place, so that what is cut off leaves the files
    of all that was finished. A later run adds to the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)

    def done(self) -> set[str]:
        """Ids of the tasks that have a result."""
        return {part["task"] for part in self.parts()}

    def parts(self) -> list[dict[str, Any]]:
        """All that was finished, by the names of the files."""
        return [json.loads(path.read_text()) for path in sorted(self._parts.glob("*.json"))]

    def write_part(self, task: str, document: Mapping[str, Any]) -> None:
        _write(self._parts / f"{task.replace('/', '__')}.json", {"task": task, **document})

    def write_result(self, document: Mapping[str, Any]) -> Path:
        path = self._folder / "result.json"
        _write(path, document)
        return path

    def kept(self, name: str) -> dict[str, Any] | None:
        """Something a former run left for the next; None if it did not."""
        path = self._folder / f"{name}.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def keep(self, name: str, document: Mapping[str, Any]) -> None:
        _write(self._folder / f"{name}.json", document)


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything in one document, without the single calls: those stay in the parts.

    A scenario's arms may have run in several groups of engines. Ratios between arms of one group
    are over repeats that ran next to each other; those across groups are of medians taken at
    different times, and say so (``interleaved``).
    """
    pieces: dict[str, Any] = {}
    scenarios: dict[tuple[str, str, str], dict[str, Any]] = {}
    for part in parts:
        if part["piece"] == "a":
            pieces.setdefault("a", {"engines": []})["engines"].append(dict(part))
            continue
        key = (part["piece"], part["bench"], part["scenario"]["name"])
        if key not in scenarios:
            scenarios[key] = {
                **{"bench": part["bench"], "model": part["model"], "note": part["note"]},
                "scenario": part["scenario"],
                "arithmetic_floor": part["arithmetic_floor"],
                "arms": {},
                "ratios": [],
            }
            pieces.setdefault(part["piece"], []).append(scenarios[key])
        for arm in part["arms"]:
            scenarios[key]["arms"][arm["name"]] = _without_calls(arm)
        scenarios[key]["ratios"] += [
            {**ratio, "interleaved": True} for ratio in part["ratios"] if ratio["to"] in _STOCK
        ]
    for scenario in scenarios.values():
        scenario["ratios"] += _across_groups(scenario["arms"], scenario["ratios"])
    if "a" in pieces:
        engines = pieces["a"]["engines"]
        places = {place for engine in engines for place in engine["verdict"]["places"]}
        pieces["a"] |= {
            "complete": places == PLACES,
            "holds": all(engine["verdict"]["holds"] for engine in engines),
        }
    return {"pieces": dict(sorted(pieces.items()))}


def _across_groups(
    arms: Mapping[str, Mapping[str, Any]], known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    there = {(ratio["arm"], ratio["to"]) for ratio in known}
    return [
        {
            **{"arm": name, "to": other, "interleaved": False},
            **{
                figure: _middle(arms[other]["summary"][figure]) / _middle(arm["summary"][figure])
                for figure in _COMPARED
            },
        }
        for name, arm in arms.items()
        for other in _STOCK
        if other in arms and other != name and (name, other) not in there
    ]


def _middle(figure: Any) -> float:
    return float(figure["median"] if isinstance(figure, Mapping) else figure)


def _without_calls(arm: Mapping[str, Any]) -> dict[str, Any]:
    repeats = [
        {key: value for key, value in repeat.items() if key != "calls"} for repeat in arm["repeats"]
    ]
    return {**arm, "repeats": repeats}


def _write(path: Path, document: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
