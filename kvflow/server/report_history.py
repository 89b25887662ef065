"""What engines counted, over time: totals that only grow, cut into slots of equal length."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["COUNTED", "Growth", "History", "Slot", "quantile_s"]

COUNTED: Final = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "device_hit_tokens",
    "host_hit_tokens",
    "storage_hit_tokens",
    "evicted_device_tokens",
    "evicted_host_tokens",
    "prefetch_used_tokens",
    "prefetch_wasted_tokens",
)
"""The totals that are followed over time."""


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much an engine's totals have grown from one report to the next."""

    counts: Mapping[str, int]
    bounds_s: tuple[float, ...] = ()
    first_token_counts: tuple[int, ...] = ()


@dataclass(slots=True)
class Slot:
    """What was counted in one stretch of time, by all engines together."""

    number: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    bounds_s: tuple[float, ...] = ()
    first_token_counts: list[int] = field(default_factory=list)

    def add(self, growth: Growth) -> None:
        """Count it in. Times of other bounds than those here already are left out."""
        for name, count in growth.counts.items():
            self.counts[name] += count
        if not sum(growth.first_token_counts):
            return
        if not self.bounds_s:
            self.bounds_s = growth.bounds_s
            self.first_token_counts = [0] * len(growth.first_token_counts)
        if self.bounds_s == growth.bounds_s:
            for index, count in enumerate(growth.first_token_counts):
                self.first_token_counts[index] += count

    @property
    def growth(self) -> Growth:
        """The same, to be added to another slot."""
        return Growth(self.counts, self.bounds_s, tuple(self.first_token_counts))


class History:
    """The last ``length`` slots of ``slot_s`` seconds each. O(1) per report, bounded memory."""

    def __init__(self, slot_s: float, length: int) -> None:
        self.slot_s = slot_s
        self._slots: deque[Slot] = deque(maxlen=length)
        self._length = length

    def add(self, growth: Growth, now_s: float) -> None:
        """Count what a report brought, at the time it came."""
        number = int(now_s // self.slot_s)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(Slot(number))
        self._slots[-1].add(growth)

    def slots(self, now_s: float) -> list[Slot]:
        """Those that are not over yet for longer than the history goes, oldest first."""
        oldest = int(now_s // self.slot_s) - self._length + 1
        return [slot for slot in self._slots if slot.number >= oldest]

    def merged(self, now_s: float, at_most: int) -> tuple[float, list[Slot]]:
        """The slots, put together until there are ``at_most``: their new length and themselves."""
        slots = self.slots(now_s)
        if not slots:
            return self.slot_s, []
        span = int(now_s // self.slot_s) - slots[0].number + 1
        factor = next((f for f in (1, 3, 6) if span <= f * at_most), -(-span // at_most))
        found: dict[int, Slot] = {}
        for slot in slots:
            number = slot.number // factor
            found.setdefault(number, Slot(number)).add(slot.growth)
        return self.slot_s * factor, list(found.values())

    def sum(self, now_s: float, last: int | None = None) -> Slot:
        """All of the last ``last`` slots in one."""
        total = Slot(0)
        oldest = int(now_s // self.slot_s) - (last or self._length) + 1
        for slot in self._slots:
            if slot.number >= oldest:
                total.add(slot.growth)
        return total


def quantile_s(bounds_s: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The ``q`` quantile of a histogram, evenly spread within its bucket; None if it is empty.

    What is above the last bound is taken to be at it.
    """
    total = sum(counts)
    if not total or not bounds_s:
        return None
    wanted = q * total
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            if index == len(bounds_s):
                return bounds_s[-1]
            lower = bounds_s[index - 1] if index else 0.0
            return lower + (bounds_s[index] - lower) * (wanted - below) / count
        below += count
    return bounds_s[-1]
