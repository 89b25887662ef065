"""What the service should do, in plain Python: for a state machine to compare it with."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvflow.graph import Agent, AgentStepGraph, Edge
from tests.graph.naive_marking import NaiveMarking
from tests.graph.oracle import solve

__all__ = ["ModelWorkflow", "Refused", "ServiceModel"]


class Refused(Exception):  # noqa: N818 - not an error of the model
    """The service should answer this status."""

    def __init__(self, status: int) -> None:
        self.status = status


@dataclass
class ModelWorkflow:
    """One workflow: its marks, its runs, and the deadline."""

    body: dict[str, Any]
    marking: NaiveMarking
    expires_at_s: float
    version: int = 0
    started: int = 0
    runs: dict[str, list[str | None]] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, body: dict[str, Any], now_s: float) -> ModelWorkflow:
        agents = [Agent(agent["agent_id"], join=agent["join"]) for agent in body["agents"]]
        edges = [
            Edge(
                edge["source"],
                edge["target"],
                kind=edge["kind"],
                max_iterations=edge.get("max_iterations"),
            )
            for edge in body["edges"]
        ]
        graph = AgentStepGraph(agents, edges, body["entry"])
        return cls(body, NaiveMarking(graph), now_s + body["ttl_s"])

    def steps(self) -> dict[str, int | None]:
        marking = self.marking
        solved = solve(
            marking.graph.agents,
            marking.graph.edges,
            [agent_id for agent_id, runs in self.runs.items() if runs],
            marking.entry_marks,
            {(mark.edge.source, mark.edge.target) for mark in marking.marks},
            {(edge.source, edge.target) for edge in marking.used_up()},
        )
        return {name: None if value == math.inf else int(value) for name, value in solved.items()}

    def apply(self, event: dict[str, Any]) -> str:
        """``applied``, ``misprediction`` or ``duplicate``; raises Refused."""
        agent_id, step_id = event["agent_id"], event["step_id"]
        if agent_id not in self.marking.graph.agent_ids:
            raise Refused(404)
        start = event["type"] == "step_started"
        return self._start(agent_id, step_id) if start else self._finish(agent_id, step_id)

    def _start(self, agent_id: str, step_id: str | None) -> str:
        if step_id is not None and (owner := self._owner(step_id)) is not None:
            if owner != agent_id:
                raise Refused(409)
            return "duplicate"
        mispredicted = self.marking.start(agent_id)
        self.runs.setdefault(agent_id, []).append(step_id)
        self.version += 1
        self.started += 1
        return "misprediction" if mispredicted else "applied"

    def _finish(self, agent_id: str, step_id: str | None) -> str:
        runs = self.runs.get(agent_id, [])
        if step_id is not None and step_id not in runs:
            if self._owner(step_id) == agent_id:
                return "duplicate"
            raise Refused(409)
        if not runs:
            raise Refused(409)
        ended = runs.pop(0 if step_id is None else runs.index(step_id))
        if ended is not None:
            self.finished[ended] = agent_id
        self.marking.finish(agent_id)
        self.version += 1
        return "applied"

    def _owner(self, step_id: str) -> str | None:
        for agent_id, runs in self.runs.items():
            if step_id in runs:
                return agent_id
        return self.finished.get(step_id)


class ServiceModel:
    """The live workflows by id. A workflow whose time is over is gone at once."""

    def __init__(self) -> None:
        self.workflows: dict[str, ModelWorkflow] = {}

    def expire(self, now_s: float) -> None:
        self.workflows = {
            key: one for key, one in self.workflows.items() if one.expires_at_s > now_s
        }

    def create(self, body: dict[str, Any], now_s: float) -> int:
        """The status it should answer."""
        existing = self.workflows.get(body["workflow_id"])
        if existing is None:
            self.workflows[body["workflow_id"]] = ModelWorkflow.of(body, now_s)
            return 201
        if _content(existing.body) != _content(body):
            return 409
        existing.expires_at_s = now_s + body["ttl_s"]
        return 200

    def events(
        self, workflow_id: str, events: Sequence[dict[str, Any]], now_s: float
    ) -> tuple[ModelWorkflow, list[str]]:
        """Apply all or none; raises Refused."""
        if workflow_id not in self.workflows:
            raise Refused(404)
        changed = copy.deepcopy(self.workflows[workflow_id])
        outcomes = [changed.apply(event) for event in events]
        changed.expires_at_s = now_s + changed.body["ttl_s"]
        self.workflows[workflow_id] = changed
        return changed, outcomes

    def delete(self, workflow_id: str) -> int:
        return 404 if self.workflows.pop(workflow_id, None) is None else 204


def _content(body: dict[str, Any]) -> Any:
    def unordered(rows: list[dict[str, Any]]) -> frozenset[Any]:
        return frozenset(frozenset(row.items()) for row in rows)

    return (
        unordered(body["agents"]),
        unordered(body["edges"]),
        frozenset(body["entry"]),
        body["ttl_s"],
    )
