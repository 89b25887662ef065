"""The marking rules, written down plainly: one list of marks, searched from its beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
        self.ready: list[str] = []
        self.finishes = 0
        self.taken: Counter[Edge] = Counter()
        self.mispredictions = 0

    def start(self, agent_id: str) -> bool:
        """Return whether it was a misprediction."""
        mispredicted = not self._take(agent_id)
        if mispredicted:
            self.mispredictions += 1
            if self.early[agent_id] < self._servable(agent_id):
                self.early[agent_id] += 1
            else:
                self.take_wrong_turn(agent_id)
        self._note_ready(self.graph.agent_ids)
        self._forget_hopeless()
        self.running[agent_id] += 1
        return mispredicted

    def would_be_a_wrong_turn(self, agent_id: str) -> bool:
        """Tell whether a start would be a misprediction, and no early one."""
        predicted = agent_id in self.entry_marks or self._needed(agent_id)
        return not predicted and self.early[agent_id] >= self._servable(agent_id)

    def take_wrong_turn(self, agent_id: str) -> None:
        if self._in_edges(agent_id):
            self._take_what_there_is(agent_id)
            self._take_back()

    def _take_what_there_is(self, agent_id: str) -> None:
        if not self.early[agent_id]:
            marks = [mark for mark in self.marks if mark.edge.target == agent_id]
            oldest = list({mark.edge: mark for mark in reversed(marks)}.values())
            self._remove(oldest)
            self._count(oldest)

    def _take_back(self) -> None:
        """Of the agent that could have started for the longest time."""
        self._note_ready(self.graph.agent_ids)
        entry = [agent_id for agent_id in self.graph.agent_ids if agent_id in self.entry_marks]
        if entry:
            self.entry_marks.remove(entry[0])
        elif self.ready:
            self._remove(self._needed(self.ready[0]))

    def _note_ready(self, in_order: Sequence[str]) -> None:
        """Bring the agents that the marks of edges let start up to date, newcomers at the end."""
        newcomers = [agent_id for agent_id in in_order if agent_id not in self.ready]
        self.ready = [agent_id for agent_id in [*self.ready, *newcomers] if self._needed(agent_id)]

    def finish(self, agent_id: str) -> None:
        self.running[agent_id] -= 1
        self.finishes += 1
        reached = [
            edge
            for edge in self.graph.edges
            if edge.source == agent_id and edge not in self.used_up()
        ]
        self.marks += [Mark(edge, self.finishes) for edge in reached]
        for edge in reached:
            while self.early[edge.target] and self._take(edge.target):
                self.early[edge.target] -= 1
        self._note_ready([edge.target for edge in reached])
        self._forget_hopeless()

    def _take(self, agent_id: str) -> bool:
        if agent_id in self.entry_marks:
            self.entry_marks.remove(agent_id)
            return True
        taken = self._needed(agent_id)
        self._remove(taken)
        self._count(taken)
        return bool(taken)

    def used_up(self) -> set[Edge]:
        limited = [edge for edge in self.graph.edges if edge.max_iterations is not None]
        return {edge for edge in limited if self.taken[edge] >= (edge.max_iterations or 0)}

    def _count(self, taken: Sequence[Mark]) -> None:
        self.taken.update(mark.edge for mark in taken)
        self.marks = [mark for mark in self.marks if mark.edge not in self.used_up()]

    def _needed(self, agent_id: str) -> list[Mark]:
        """Return the marks that a start of the agent takes; none if they are not all there."""
        marks = [mark for mark in self.marks if mark.edge.target == agent_id]
        if self.joins[agent_id] == "any":
            return marks[:1]
        oldest = {mark.edge: mark for mark in reversed(marks)}
        return list(oldest.values()) if len(oldest) == len(self._in_edges(agent_id)) else []

    def _remove(self, taken: list[Mark]) -> None:
        self.marks = [
            mark
            for mark in self.marks
            if mark not in taken and not any(self._are_siblings(mark, other) for other in taken)
        ]

    def _are_siblings(self, mark: Mark, other: Mark) -> bool:
        return mark.finish == other.finish and mark.edge.kind == other.edge.kind == "choice"

    def _in_edges(self, agent_id: str) -> list[Edge]:
        return [edge for edge in self.graph.edges if edge.target == agent_id]

    def _forget_hopeless(self) -> None:
        for agent_id in self.graph.agent_ids:
            self.early[agent_id] = min(self.early[agent_id], self._servable(agent_id))

    def _servable(self, agent_id: str) -> int:
        supply = [
            0
            if edge in self.used_up()
            else sum(mark.edge == edge for mark in self.marks) + self.running[edge.source]
            for edge in self._in_edges(agent_id)
        ]
        return sum(supply) if self.joins[agent_id] == "any" else min(supply, default=0)
