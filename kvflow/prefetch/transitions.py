"""Which agent follows which: branch probabilities, counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["TransitionCounts"]

MAX_SOURCES: Final = 65_536
MAX_SUCCESSORS: Final = 64
"""Remembered per agent: ids made up per workflow must not pile up."""
DECLARED_WEIGHT: Final = 10
"""A declared probability counts like so many observed transitions: it decides while little was
observed, and is outweighed after some tens."""

_NONE: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType({})
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

    def probability(
        self,
        client_id: str,
        sources: Iterable[str],
        agent_id: str,
        declared: Mapping[str, Mapping[str, float]] = _NONE,
    ) -> float:
        """Estimate how likely ``agent_id`` is the next to start after ``sources``.

        The maximum over them of the share of their followers that it was: with the declared
        probability counted as DECLARED_WEIGHT observations where the source has one, else with
        add-one smoothing over the followers known and itself.

        Args:
            client_id: whose agents.
            sources: agents that run, or whose choice is to be made.
            agent_id: the agent in question.
            declared: by source, how likely each agent follows it; those absent do not.

        Returns:
            In [0, 1]. 1.0 where nothing is known: if there are no sources, or if nothing was
            declared of one and nothing has followed it yet. O(sources * MAX_SUCCESSORS).
        """
        return max(
            (self._share((client_id, one), agent_id, declared.get(one)) for one in sources),
            default=1.0,
        )

    def forget(self, key: _Key) -> None:
        """The workflow ended. What it taught stays."""
        self._last_started.pop(key, None)

    def _share(
        self, source: tuple[str, str], agent_id: str, declared: Mapping[str, float] | None
    ) -> float:
        counts = self._successors.get(source)
        if declared is not None:
            known = {} if counts is None else counts
            observed, expected = known.get(agent_id, 0), declared.get(agent_id, 0.0)
            share = observed + DECLARED_WEIGHT * expected
            return share / (sum(known.values()) + DECLARED_WEIGHT)
        if counts is None:
            return 1.0
        alternatives = len(counts) + (agent_id not in counts)
        return (counts.get(agent_id, 0) + 1) / (sum(counts.values()) + alternatives)
