"""Which workflows may run while the KV cache cannot hold the context of all.

When the live context of all workflows exceeds the cache and each runs a step in turn, each step
evicts what another one needs next, and all of it is computed again and again. Holding back whole
workflows instead lets those that run keep their context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WorkflowAdmission", "WorkflowDemand"]

_Key = tuple[str, str]
"""``(client_id, workflow_id)``"""


@dataclass(frozen=True, slots=True)
class WorkflowDemand:
    """What one live workflow needs.

    Attributes:
        key: ``(client_id, workflow_id)``.
        context_tokens: KV that only this workflow reads: its histories, and what its waiting
            and running requests bring. Prefixes that workflows share are not part of it.
        waiting_since_s: when the oldest of its waiting requests came; None if none waits.
        running: whether a request of it is in the running batch.
    """

    key: _Key
    context_tokens: int
    waiting_since_s: float | None
    running: bool


class WorkflowAdmission:
    """Gives places to workflows under KV pressure, longest waiting first.

    Off while the demand is at most ``overcommit`` times the capacity. When on:

    1. A workflow that has a place keeps it while it runs, waits, or has paused for less than
       ``pause_s``. A workflow that runs has a place in any case.
    2. The next place goes to the workflow that waits longest, while all that have one fit
       together into the plain capacity. A smaller one does not overtake, or large ones starve.
    3. A workflow that has waited for more than ``max_hold_s`` gets a place whatever its size; so
       this bounds for how long any request is held.
    4. If nobody who has a place runs or waits, the longest waiting gets one. So while any
       workflow waits or runs, one that may run does.

    Equal waiting times go by the order of the demands. Deterministic: time comes as an argument.
    Not thread-safe.

    Args:
        overcommit: demand over capacity from which on workflows are held back.
        pause_s: for how long a workflow keeps its place between two calls.
        max_hold_s: longest time for which a workflow is held back.
    """

    def __init__(self, overcommit: float, pause_s: float = 5.0, max_hold_s: float = 30.0) -> None:
        self._overcommit = overcommit
        self._pause_s = pause_s
        self._max_hold_s = max_hold_s
        # When each workflow that has a place last ran or waited.
        self._placed: dict[_Key, float] = {}

    def admitted(
        self,
        demands: Sequence[WorkflowDemand],
        capacity_tokens: int,
        shared_tokens: int,
        now_s: float,
    ) -> frozenset[_Key] | None:
        """Decide whose requests may start now. O(n log n) for n demands.

        Args:
            demands: all live workflows, each once, those that pause as well; one that is missing
                has ended and loses its place.
            capacity_tokens: what the device's KV cache holds.
            shared_tokens: KV that counts besides the demands' own: shared prefixes.
            now_s: on the clock of ``waiting_since_s``.

        Returns:
            The workflows that have a place, or None if there is no limit now. Requests that
            belong to no workflow are not concerned.
        """
        placed = self._keep_places(demands, now_s)
        self._placed = placed
        demand_tokens = shared_tokens + sum(demand.context_tokens for demand in demands)
        if demand_tokens <= self._overcommit * capacity_tokens:
            return None
        for demand in demands:
            if demand.running:
                placed[demand.key] = now_s
        placed_tokens = shared_tokens
        someone_active = False
        waiting: list[tuple[float, WorkflowDemand]] = []
        for demand in demands:
            since_s = demand.waiting_since_s
            if demand.key in placed:
                placed_tokens += demand.context_tokens
                someone_active = someone_active or demand.running or since_s is not None
            elif since_s is not None:
                waiting.append((since_s, demand))
        waiting.sort(key=_since_s)
        for since_s, demand in waiting:
            fits = placed_tokens + demand.context_tokens <= capacity_tokens
            overdue = now_s - since_s > self._max_hold_s
            if someone_active and not fits and not overdue:
                break
            placed[demand.key] = now_s
            placed_tokens += demand.context_tokens
            someone_active = True
        return frozenset(placed)

    def _keep_places(self, demands: Sequence[WorkflowDemand], now_s: float) -> dict[_Key, float]:
        kept: dict[_Key, float] = {}
        for demand in demands:
            active_s = self._placed.get(demand.key)
            if active_s is None:
                continue
            if demand.running or demand.waiting_since_s is not None:
                active_s = now_s
            elif now_s - active_s >= self._pause_s:
                continue
            kept[demand.key] = active_s
        return kept


def _since_s(entry: tuple[float, WorkflowDemand]) -> float:
    return entry[0]
