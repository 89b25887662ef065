"""The marking rules, written down plainly: one list of marks, searched from its beginning."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kvflow.graph import AgentStepGraph, Edge


@dataclass
class Mark:
    edge: Edge
    finish: int


class NaiveMarking:
    def __init__(self, built: AgentStepGraph) -> None:
        self.graph = built
        self.joins = {agent.agent_id: agent.join for agent in built.agents}
        self.entry_marks = set(built.entry)
        self.marks: list[Mark] = []
        self.running: Counter[str] = Counter()
        self.early: Counter[str] = Counter()
        self.finishes = 0
        self.mispredictions = 0

    def start(self, agent_id: str) -> bool:
        """Return whether it was a misprediction."""
        mispredicted = not self._take(agent_id)
        if mispredicted:
            self.mispredictions += 1
            self.early[agent_id] += 1
        self._forget_hopeless()
        self.running[agent_id] += 1
        return mispredicted

    def finish(self, agent_id: str) -> None:
        self.running[agent_id] -= 1
        self.finishes += 1
        reached = [edge for edge in self.graph.edges if edge.source == agent_id]
        self.marks += [Mark(edge, self.finishes) for edge in reached]
        for edge in reached:
            while self.early[edge.target] and self._take(edge.target):
                self.early[edge.target] -= 1
        self._forget_hopeless()

    def _take(self, agent_id: str) -> bool:
        if agent_id in self.entry_marks:
            self.entry_marks.remove(agent_id)
            return True
        marks = [mark for mark in self.marks if mark.edge.target == agent_id]
        if self.joins[agent_id] == "any":
            taken = marks[:1]
        else:
            oldest = {mark.edge: mark for mark in reversed(marks)}
            if len(oldest) < len(self._in_edges(agent_id)):
                return False
            taken = list(oldest.values())
        self.marks = [
            mark
            for mark in self.marks
            if mark not in taken and not any(self._are_siblings(mark, other) for other in taken)
        ]
        return bool(taken)

    def _are_siblings(self, mark: Mark, other: Mark) -> bool:
        return mark.finish == other.finish and mark.edge.kind == other.edge.kind == "choice"

    def _in_edges(self, agent_id: str) -> list[Edge]:
        return [edge for edge in self.graph.edges if edge.target == agent_id]

    def _forget_hopeless(self) -> None:
        for agent_id in self.graph.agent_ids:
            supply = [
                sum(mark.edge == edge for mark in self.marks) + self.running[edge.source]
                for edge in self._in_edges(agent_id)
            ]
            servable = sum(supply) if self.joins[agent_id] == "any" else min(supply, default=0)
            self.early[agent_id] = min(self.early[agent_id], servable)
