"""What a workflow's steps will be once the service has told of a start that a request announces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final

__all__ = ["StartMemory"]

MAX_CELLS: Final = 200_000
"""Steps remembered in all, some 20 MB."""


class StartMemory:
    """The steps-to-execution that came with the last start of each agent.

    A client that calls its next agent at once is faster than its events, which go through the
    service: the request is scheduled while the engine still holds the steps from before. They are
    off by one step, and after a branch they still count the turn that was not taken. What came
    with the agent's last start is likely to come with this one, whoever the client is.

    Remembered per family of workflows (see ``kvflow.prefetch.trust``). Bounded: what was learnt
    longest ago goes first. Deterministic. ``learn`` costs O(agents), ``recall`` O(1).
    """

    def __init__(self, max_cells: int = MAX_CELLS) -> None:
        self._max_cells = max_cells
        self._cells = 0
        self._after_start: OrderedDict[tuple[Hashable, str], Mapping[str, float]] = OrderedDict()

    def learn(
        self, family: Hashable, before: Mapping[str, float] | None, after: Mapping[str, float]
    ) -> None:
        """A workflow's steps have changed.

        Nothing is learnt if no agent has started, or more than one: then the steps belong to the
        last of them, and which that is nobody can tell.

        Args:
            after: kept, so it must not change afterwards.
        """
        if before is None or len(after) > self._max_cells:
            return
        started = [agent for agent, steps in after.items() if steps == 0 != before.get(agent, 0)]
        if len(started) != 1:
            return
        key = (family, started[0])
        self._cells += len(after) - len(self._after_start.pop(key, ()))
        self._after_start[key] = after
        while self._cells > self._max_cells:
            self._cells -= len(self._after_start.popitem(last=False)[1])

    def recall(self, family: Hashable, agent_id: str) -> Mapping[str, float] | None:
        """The steps that came with the agent's last start in such a workflow, if any."""
        return self._after_start.get((family, agent_id))
