"""One workflow's runs in time: which finishes a start came after.

A run comes directly after another if it started when that one had finished, and no third run lies
wholly between the two. Runs that overlap are side by side, so they come after the same finishes:
that tells a fan-out from a sequence, by nothing but the order of starts and finishes. What it
cannot tell: of two sequences side by side, which finish of several a start belongs to; all of them
are taken for its predecessors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvflow.graph.learning.base import Followed

__all__ = ["CallHistory", "Finished"]


@dataclass(slots=True)
class Finished:
    """A finished run that a coming start would come directly after.

    Attributes:
        at: place of its finish in the order of the workflow's events.
        followers: agents that started since.
    """

    agent_id: str
    at: int
    followers: set[str] = field(default_factory=set)

    def copy(self) -> Finished:
        return Finished(self.agent_id, self.at, set(self.followers))


class CallHistory:
    """The frontier of a workflow: its runs under way, and the finishes that can still be followed.

    Memory: the runs under way, and at most one finish for each run that was side by side with the
    latest ones. A start or finish costs O(frontier).
    """

    __slots__ = ("_at", "_latest_start", "frontier")

    def __init__(self) -> None:
        self._at = 0
        self._latest_start = -1
        self.frontier: list[Finished] = []

    def copy(self) -> CallHistory:
        twin = CallHistory()
        twin._at = self._at
        twin._latest_start = self._latest_start
        twin.frontier = [one.copy() for one in self.frontier]
        return twin

    def start(self, agent_id: str) -> tuple[int, frozenset[str]]:
        """A run starts: its place in the order of events, and the agents it comes after."""
        self._at += 1
        predecessors = frozenset(one.agent_id for one in self.frontier)
        for one in self.frontier:
            one.followers.add(agent_id)
        return self._at, predecessors

    def finish(self, agent_id: str, started_at: int) -> list[Followed]:
        """The run that started at that place finishes.

        Returns:
            The finishes that lie before its start: whatever starts now comes after this run.
        """
        self._at += 1
        self._latest_start = max(self._latest_start, started_at)
        passed = [one for one in self.frontier if one.at < self._latest_start]
        if passed:
            self.frontier = [one for one in self.frontier if one.at > self._latest_start]
        self.frontier.append(Finished(agent_id, self._at))
        return [Followed(one.agent_id, frozenset(one.followers)) for one in passed]

    def end(self) -> list[Followed]:
        """The workflow ends: what followed the last finishes, if anything."""
        ended, self.frontier = self.frontier, []
        return [Followed(one.agent_id, frozenset(one.followers)) for one in ended]
