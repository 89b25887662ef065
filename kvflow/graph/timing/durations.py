"""How long the agents of one family of workflows run, and what lies between them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from statistics import median
from typing import Final, Generic, TypeVar

__all__ = ["FamilyDurations", "MEASURED_FROM", "RECENT"]

RECENT: Final = 15
"""Measurements that count: the median of the latest ones is moved neither by a few that went wrong
nor by what was long ago."""

MEASURED_FROM: Final = 3
"""Measurements from which on they count more than what was declared."""

MAX_KEYS: Final = 4_096
"""Of agents, and of pairs of them, per family; the one measured least recently is forgotten."""

K = TypeVar("K", bound=Hashable)


class _Medians(Generic[K]):
    """The median of the latest measurements by key, and the mean of these medians."""

    __slots__ = ("_sum_s", "_values", "_windows")

    def __init__(self) -> None:
        self._windows: OrderedDict[K, deque[float]] = OrderedDict()
        self._values: dict[K, float] = {}
        self._sum_s = 0.0

    def add(self, key: K, seconds: float) -> None:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = deque(maxlen=RECENT)
            if len(self._windows) > MAX_KEYS:
                oldest, _ = self._windows.popitem(last=False)
                self._sum_s -= self._values.pop(oldest)
        self._windows.move_to_end(key)
        window.append(seconds)
        value = median(window)
        self._sum_s += value - self._values.get(key, 0.0)
        self._values[key] = value

    def value(self, key: K, declared_s: float | None) -> float | None:
        """Measured, declared, or the mean of all that is measured."""
        window = self._windows.get(key)
        if window is not None and (declared_s is None or len(window) >= MEASURED_FROM):
            return self._values[key]
        return self.mean() if declared_s is None else declared_s

    def measured(self, key: K) -> float | None:
        return self._values.get(key)

    def windows(self) -> Iterable[tuple[K, deque[float]]]:
        """The measurements by key, the one measured least recently first."""
        return self._windows.items()

    def mean(self) -> float | None:
        # The sum's rounding may go below 0.
        return max(0.0, self._sum_s / len(self._values)) if self._values else None


class FamilyDurations:
    """Learned durations, in seconds. Times come from the caller; there is no clock here.

    An agent that was never measured, nor declared, counts with the mean of those that were; a pair
    of agents likewise, or with nothing where no pair was.

    Attributes:
        revision: grows with every measurement.
    """

    __slots__ = ("_gaps", "_runs", "revision")

    def __init__(self) -> None:
        self.revision = 0
        self._runs: _Medians[str] = _Medians()
        self._gaps: _Medians[tuple[str, str]] = _Medians()

    @property
    def known(self) -> bool:
        """Whether any run was measured."""
        return self._runs.mean() is not None

    def learn_run(self, agent_id: str, seconds: float) -> None:
        """A run of the agent took so long. O(RECENT)."""
        self.revision += 1
        self._runs.add(agent_id, max(0.0, seconds))

    def learn_gap(self, source: str, target: str, seconds: float) -> None:
        """A run of ``target`` started so long after the finish of ``source`` that led to it."""
        self.revision += 1
        self._gaps.add((source, target), max(0.0, seconds))

    def run_s(self, agent_id: str, declared_s: float | None = None) -> float | None:
        """How long a run of the agent takes; None if nothing is known of any."""
        return self._runs.value(agent_id, declared_s)

    def gap_s(self, source: str, target: str, declared_s: float | None = None) -> float:
        """From the source's finish to the target's start: a tool, or a person."""
        return self._gaps.value((source, target), declared_s) or 0.0

    def measured_run_s(self, agent_id: str) -> float | None:
        """The agent's median alone; None if it was not measured."""
        return self._runs.measured(agent_id)

    def measured_gap_s(self, source: str, target: str) -> float | None:
        """The pair's median alone; None if it was not measured."""
        return self._gaps.measured((source, target))
