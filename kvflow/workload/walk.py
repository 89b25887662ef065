"""A workflow's way through its flow, and where it leaves the graph that describes the flow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from kvflow.graph import AgentStepGraph, WorkflowState
from kvflow.workload.flow import Flow, Stage

__all__ = ["MOST_CALLS_PER_AGENT", "Deviations", "walk"]

MOST_CALLS_PER_AGENT: Final = 10
"""A workflow that loops ends after this many calls per agent and round, on average."""


class Deviations:
    """Sends workflows to agents that their graphs do not lead to.

    Of all transitions, ``wrong`` are such ones on average. Where one entails another (a join that
    lacks the mark of a worker that another agent ran for), that counts, and one less is made later.
    Agents that an earlier wrong turn leaves expected are no wrong turn: what is wrong is what
    KVFlow did not predict. Where every agent is expected there is nowhere to go astray.

    Args:
        wrong: share of the transitions.
        rng: one stream for all workflows.
    """

    def __init__(self, wrong: float, rng: random.Random) -> None:
        self._wrong = wrong
        self._rng = rng
        self._wanted = 0

    def begin(self, graph: AgentStepGraph, stage: Stage) -> None:
        """Begin a workflow with this stage.

        Args:
            graph: describes the flow rightly; its agents in the order of their positions.
        """
        self._ids = graph.agent_ids
        self._successors = graph.adjacency.successors
        self._state = WorkflowState(graph)
        # What one workflow had no place for does not make the next one all wrong.
        self._wanted = min(self._wanted, 0)
        self._run(stage)

    def replace(self, stage: Stage) -> Stage:
        """Return the stage that runs instead of this one, or this one."""
        actual = list(stage)
        for place in range(len(actual)):
            self._wanted += self._rng.random() < self._wrong
            if self._wanted > 0:
                unexpected = self._unexpected(actual)
                if unexpected:
                    actual[place] = self._rng.choice(unexpected)
        self._run(tuple(actual))
        return tuple(actual)

    def _run(self, stage: Stage) -> None:
        for agent in stage:
            self._wanted -= self._state.start(self._ids[agent]).misprediction
        for agent in stage:
            self._state.finish(self._ids[agent])

    def _unexpected(self, stage: list[int]) -> list[int]:
        """Return the agents that nothing leads to now: no finish so far, nor one of the stage."""
        expected = {target for _, target in self._state.marks()} | self._state.entry_marks()
        near = {successor for agent in stage for successor in self._successors[agent]}
        near.update(stage)
        return [
            agent
            for agent, agent_id in enumerate(self._ids)
            if agent not in near and agent_id not in expected
        ]


def walk(
    flow: Flow,
    graph: AgentStepGraph,
    rounds: int,
    rng: random.Random,
    deviations: Deviations | None,
) -> Iterator[tuple[int, Stage]]:
    """Yield round and stage until the rounds are over or nothing follows.

    Args:
        graph: describes the flow rightly.
    """
    per_round = flow.calls_per_round
    limit = rounds * (per_round or MOST_CALLS_PER_AGENT * flow.agents)
    last = (flow.agents - 1,)
    stage: Stage = (0,)
    calls = finished_rounds = 0
    if deviations is not None:
        deviations.begin(graph, stage)
    ran = stage
    while True:
        yield finished_rounds, ran
        calls += len(ran)
        # What follows agents side by side does so whoever ran in the place of one of them.
        before = ran if len(ran) == 1 else stage
        stage = flow.following(before, rng)
        if per_round is not None:
            finished_rounds = calls // per_round
        elif before == last and stage in {(0,), ()}:
            finished_rounds += 1
        if not stage or finished_rounds >= rounds or calls >= limit:
            return
        ran = stage if deviations is None else deviations.replace(stage)
