"""Hints that change for a while how far away an agent looks to the engines."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from kvflow.server.store import StreamKey

__all__ = ["HintEffect", "HintOverlay"]

HintEffect = Literal["keep", "release"]
"""``keep``: at most one step away. ``release``: infinitely far, unless it runs."""

_KEPT_STEPS: Final = 1


@dataclass(frozen=True, slots=True)
class _Hint:
    effect: HintEffect
    until_s: float


class HintOverlay:
    """What lies over the steps-to-execution that follow from a workflow's graph and events.

    The last hint about an agent counts, but a ``keep`` does not shorten one that lasts longer.
    No clock and no I/O: times are arguments, in seconds of one clock. An agent that runs stays at
    0, whatever is said of it.

    Args:
        max_hints: agents with a hint at once.
        max_of_client: those of one client.
    """

    def __init__(self, max_hints: int = 20_000, max_of_client: int = 2_000) -> None:
        self._max_hints = max_hints
        self._max_of_client = max_of_client
        self._hints: dict[StreamKey, dict[str, _Hint]] = {}
        self._of_client: Counter[str] = Counter()
        # One entry or more per hint, the latest of which is its real end.
        self._ends: list[tuple[float, StreamKey, str]] = []

    def __len__(self) -> int:
        return self._of_client.total()

    def __contains__(self, key: StreamKey) -> bool:
        """Whether an agent of this workflow has a hint."""
        return key in self._hints

    def has_room(self, key: StreamKey, count: int) -> bool:
        """Whether so many agents more of this workflow can have a hint. O(clients)."""
        return (
            len(self) + count <= self._max_hints
            and self._of_client[key[0]] + count <= self._max_of_client
        )

    def put(self, key: StreamKey, agent_id: str, effect: HintEffect, until_s: float) -> None:
        """Take a hint about an agent, if ``has_room``. O(log hints)."""
        agents = self._hints.setdefault(key, {})
        known = agents.get(agent_id)
        if known is not None and known.effect == effect == "keep":
            until_s = max(until_s, known.until_s)
        agents[agent_id] = _Hint(effect, until_s)
        self._of_client[key[0]] += known is None
        heapq.heappush(self._ends, (until_s, key, agent_id))
        if len(self._ends) > 2 * self._max_hints + 1024:
            self._ends = [
                (hint.until_s, of, agent)
                for of, hints in self._hints.items()
                for agent, hint in hints.items()
            ]
            heapq.heapify(self._ends)

    def forget(self, key: StreamKey, agent_id: str) -> None:
        """Take the hint about this agent back, if there is one."""
        agents = self._hints.get(key)
        if agents is not None and agents.pop(agent_id, None) is not None:
            self._less(key, 1)
            if not agents:
                del self._hints[key]

    def drop(self, key: StreamKey) -> None:
        """The workflow has ended."""
        self._less(key, len(self._hints.pop(key, ())))

    def expire(self, now_s: float) -> set[StreamKey]:
        """End the hints whose time is over; the workflows that look different for it."""
        changed: set[StreamKey] = set()
        while self._ends and self._ends[0][0] <= now_s:
            _, key, agent_id = heapq.heappop(self._ends)
            hint = self._hints.get(key, {}).get(agent_id)
            if hint is not None and hint.until_s <= now_s:
                self.forget(key, agent_id)
                changed.add(key)
        return changed

    def steps(self, key: StreamKey, steps: Mapping[str, int | None]) -> Mapping[str, int | None]:
        """The steps as engines are to be told them. O(1) without hints, else O(agents)."""
        hints = self._hints.get(key)
        if not hints:
            return steps
        return {agent_id: _hinted(hints.get(agent_id), n) for agent_id, n in steps.items()}

    def _less(self, key: StreamKey, count: int) -> None:
        self._of_client[key[0]] -= count
        if not self._of_client[key[0]]:
            del self._of_client[key[0]]


def _hinted(hint: _Hint | None, steps: int | None) -> int | None:
    if hint is None or steps == 0:
        return steps
    if hint.effect == "release":
        return None
    return _KEPT_STEPS if steps is None else min(steps, _KEPT_STEPS)
