"""What follows what in one family of workflows, counted; old counts fade."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from kvflow.graph.learning.base import (
    MAX_AGENTS,
    MAX_SUCCESSORS,
    MIN_PROBABILITY,
    Began,
    Followed,
    Lesson,
)
from kvflow.graph.learning.score import HeldOutScore

__all__ = ["TransitionModel"]

KEPT: Final = 0.98
"""Share that is left of an agent's counts after each further one: some 50 count."""

BOTH_FROM: Final = 1.1
"""Two agents whose shares add up to more than this cannot be alternatives of each other."""

UNSEEN: Final = 1.0
"""Weight of what has not been seen: after n times of n, an agent follows with n / (n + 1)."""


class _Counts:
    """One agent. All counts fade together, so that their ratios are shares."""

    __slots__ = ("finishes", "followers", "predecessors", "starts")

    def __init__(self) -> None:
        self.finishes = 0.0
        self.followers: OrderedDict[str, float] = OrderedDict()
        self.starts = 0.0
        self.predecessors: OrderedDict[str, float] = OrderedDict()


class TransitionModel:
    """Transition counts with exponential decay, and how well they predict.

    Several agents may follow one finish: each has a share of its own, and those of a fan-out are
    all near 1, while those of a choice add up to 1.

    Bounded by MAX_AGENTS and MAX_SUCCESSORS; what was seen least recently is forgotten first.
    Deterministic: no clock, and the same lessons give the same model.

    Attributes:
        score: how well it has predicted.
        revision: grows with every lesson.
    """

    __slots__ = ("_agents", "_began", "_begun", "revision", "score")

    def __init__(self) -> None:
        self._agents: OrderedDict[str, _Counts] = OrderedDict()
        self._began: OrderedDict[str, float] = OrderedDict()
        self._begun = 0.0
        self.score = HeldOutScore()
        self.revision = 0

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """In the order of their names, which does not change as they are seen again."""
        return tuple(sorted(self._agents))

    def __contains__(self, agent_id: str) -> bool:
        return agent_id in self._agents

    def learn(self, lessons: Iterable[Lesson]) -> None:
        """Take lessons in their order. O(successors of their agents)."""
        for lesson in lessons:
            self.revision += 1
            counts = self._seen(lesson.agent_id)
            if isinstance(lesson, Followed):
                counts.finishes = KEPT * counts.finishes + 1
                _count(counts.followers, lesson.followers)
            elif isinstance(lesson, Began):
                if lesson.first:
                    self._begun = KEPT * self._begun + 1
                    _fade(self._began)
                _add(self._began, (lesson.agent_id,))
            else:
                self.score.add(lesson.probability)
                counts.starts = KEPT * counts.starts + 1
                _count(counts.predecessors, lesson.predecessors)

    def share(self, source: str, target: str) -> float:
        """Of the source's finishes, how many the target followed; 0 if none is known."""
        counts = self._agents.get(source)
        if counts is None or not counts.finishes:
            return 0.0
        return min(1.0, counts.followers.get(target, 0.0) / counts.finishes)

    def probability(self, source: str, target: str) -> float:
        """How likely the target follows a finish of the source: its share, less while few are
        known."""
        counts = self._agents.get(source)
        if counts is None:
            return 0.0
        return counts.followers.get(target, 0.0) / (counts.finishes + UNSEEN)

    def successors(self, source: str) -> list[str]:
        """The agents that are predicted to follow a finish of the source, the likeliest first."""
        counts = self._agents.get(source)
        if counts is None:
            return []
        least = MIN_PROBABILITY * (counts.finishes + UNSEEN)
        likely = [(-count, agent_id) for agent_id, count in counts.followers.items()]
        return [agent_id for count, agent_id in sorted(likely) if -count >= least]

    def both_follow(self, source: str, one: str, other: str) -> bool:
        """Whether one finish of the source may lead to both."""
        return self.share(source, one) + self.share(source, other) > BOTH_FROM

    def came_after(self, target: str, source: str) -> float:
        """Of the target's starts that came after something, how many came after the source."""
        counts = self._agents.get(target)
        if counts is None or not counts.starts:
            return 0.0
        return min(1.0, counts.predecessors.get(source, 0.0) / counts.starts)

    def entries(self) -> list[str]:
        """The agents that workflows are predicted to begin with, the likeliest first."""
        likely = [(-count, agent_id) for agent_id, count in self._began.items()]
        return [
            agent_id
            for count, agent_id in sorted(likely)
            if -count >= MIN_PROBABILITY * (self._begun + UNSEEN)
        ]

    def _seen(self, agent_id: str) -> _Counts:
        counts = self._agents.get(agent_id)
        if counts is None:
            counts = self._agents[agent_id] = _Counts()
            if len(self._agents) > MAX_AGENTS:
                self._agents.popitem(last=False)
        self._agents.move_to_end(agent_id)
        return counts


def _count(table: OrderedDict[str, float], agent_ids: Iterable[str]) -> None:
    _fade(table)
    _add(table, agent_ids)


def _fade(table: OrderedDict[str, float]) -> None:
    for agent_id in table:
        table[agent_id] *= KEPT


def _add(table: OrderedDict[str, float], agent_ids: Iterable[str]) -> None:
    for agent_id in sorted(agent_ids):
        table[agent_id] = table.get(agent_id, 0.0) + 1
        table.move_to_end(agent_id)
        if len(table) > MAX_SUCCESSORS:
            table.popitem(last=False)
