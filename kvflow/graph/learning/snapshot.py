"""A family's model as plain values, to be stored and brought back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any, Final

from kvflow.graph.learning.base import MAX_AGENTS, MAX_SUCCESSORS
from kvflow.graph.learning.model import TransitionModel, _Counts

__all__ = ["model_values", "restore_model"]

_DIGITS: Final = 6


def model_values(model: TransitionModel) -> dict[str, Any]:
    """The model as JSON has values: dicts, lists, strings and numbers. O(size of the model).

    Agents are places in ``names``. Counts are rounded to a millionth.
    """
    places: dict[str, int] = {}

    def place(name: str) -> int:
        return places.setdefault(name, len(places))

    def table(counts: Mapping[str, float]) -> list[list[float]]:
        return [[place(name), round(count, _DIGITS)] for name, count in counts.items()]

    score = model.score
    values: dict[str, Any] = {
        "revision": model.revision,
        "score": [score.value, score.scored, score.used],
        "begun": round(model._begun, _DIGITS),
        "began": table(model._began),
        "agents": [
            [
                place(name),
                round(counts.finishes, _DIGITS),
                table(counts.followers),
                round(counts.starts, _DIGITS),
                table(counts.predecessors),
            ]
            for name, counts in model._agents.items()
        ],
    }
    return {"names": list(places), **values}


def restore_model(values: Mapping[str, Any]) -> TransitionModel:
    """The model that ``model_values`` was called with.

    Raises:
        KeyError, TypeError, ValueError, IndexError: these are no such values, or no model may be
            as large.
    """
    names: Sequence[str] = values["names"]
    model = TransitionModel()
    model.revision = _whole(values["revision"])
    value, scored, used = values["score"]
    model.score.value, model.score.scored = _number(value, 1.0), _whole(scored)
    model.score.used = used is True
    model._begun = _number(values["begun"])
    model._began = _table(values["began"], names)
    if len(values["agents"]) > MAX_AGENTS:
        raise ValueError(f"there are {len(values['agents'])} agents, more than {MAX_AGENTS}")
    for place, finishes, followers, starts, predecessors in values["agents"]:
        counts = model._agents[names[_whole(place)]] = _Counts()
        counts.finishes, counts.starts = _number(finishes), _number(starts)
        counts.followers = _table(followers, names)
        counts.predecessors = _table(predecessors, names)
    return model


def _table(rows: Iterable[Sequence[Any]], names: Sequence[str]) -> OrderedDict[str, float]:
    table = OrderedDict((names[_whole(place)], _number(count)) for place, count in rows)
    if len(table) > MAX_SUCCESSORS:
        raise ValueError(f"a table has {len(table)} agents, more than {MAX_SUCCESSORS}")
    return table


def _number(value: Any, most: float = inf) -> float:
    # Written so that what is no number at all, NaN, does not pass.
    if isinstance(value, bool) or not 0 <= value <= most or value == inf:
        raise ValueError(f"{value!r} is no count")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value
