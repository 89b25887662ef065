"""Which agent follows which: branch probabilities, counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

__all__ = ["TransitionCounts"]

MAX_SOURCES: Final = 65_536
MAX_SUCCESSORS: Final = 64
"""Remembered per agent: ids made up per workflow must not pile up."""

_Key = tuple[str, str]
"""``(client_id, workflow_id)``"""


class TransitionCounts:
    """Counts, per client, how often one agent started after another.

    An agent's predecessor is the agent of its workflow that started last before it. Where agents
    run side by side that depends on which of them happened to start first, and a fan-out looks
    like a branch; so this is good for putting alternatives in order, not for ruling one out.

    Bounded: the agent that was followed least recently is forgotten first, and of its successors
    the one that followed it least recently. Deterministic, not thread-safe.
    """

    def __init__(self) -> None:
        self._successors: OrderedDict[tuple[str, str], OrderedDict[str, int]] = OrderedDict()
        self._last_started: dict[_Key, str] = {}

    def ran(self, key: _Key, agent_id: str) -> None:
        """An agent of the workflow started. O(1)."""
        previous = self._last_started.get(key)
        self._last_started[key] = agent_id
        if previous is None:
            return
        source = (key[0], previous)
        counts = self._successors.setdefault(source, OrderedDict())
        counts[agent_id] = counts.get(agent_id, 0) + 1
        counts.move_to_end(agent_id)
        if len(counts) > MAX_SUCCESSORS:
            counts.popitem(last=False)
        self._successors.move_to_end(source)
        if len(self._successors) > MAX_SOURCES:
            self._successors.popitem(last=False)

    def probability(self, client_id: str, running: Iterable[str], agent_id: str) -> float:
        """Estimate how likely ``agent_id`` is the next to start while ``running`` run.

        The maximum over the running agents of the share of their followers that it was, with
        add-one smoothing over the followers known and itself.

        Returns:
            In (0, 1]. 1.0 where nothing is known: if nothing runs, or if nothing has yet followed
            some agent that does. O(running * MAX_SUCCESSORS).
        """
        return max((self._share((client_id, source), agent_id) for source in running), default=1.0)

    def forget(self, key: _Key) -> None:
        """The workflow ended. What it taught stays."""
        self._last_started.pop(key, None)

    def _share(self, source: tuple[str, str], agent_id: str) -> float:
        counts = self._successors.get(source)
        if counts is None:
            return 1.0
        alternatives = len(counts) + (agent_id not in counts)
        return (counts.get(agent_id, 0) + 1) / (sum(counts.values()) + alternatives)
