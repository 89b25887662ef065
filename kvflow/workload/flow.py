"""How the agents of a workflow follow each other, as positions: what really happens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from kvflow.graph import Agent, AgentStepGraph, Edge

__all__ = ["Flow", "Options", "Stage", "graph_of"]

Stage = tuple[int, ...]
"""Agents that run side by side; empty at a workflow's end."""


@dataclass(frozen=True, slots=True)
class Options:
    """The stages that can follow one, and how likely each is."""

    stages: tuple[Stage, ...]
    weights: tuple[float, ...]

    @classmethod
    def alike(cls, stages: Sequence[Stage]) -> Options:
        return cls(tuple(stages), (1.0,) * len(stages))


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """The agents 0 to ``agents - 1``, the first of which begins.

    Attributes:
        options: what can follow each stage; nothing follows one that is not there.
        astray: the same for single agents that no stage consists of, and that run alone only where
            a workflow leaves its graph.
        calls_per_round: None where a round is over when the last agent is followed by the first,
            or by none.
    """

    agents: int
    options: Mapping[Stage, Options]
    calls_per_round: int | None
    astray: Mapping[Stage, Options]
    _cumulative: Mapping[Stage, tuple[tuple[Stage, ...], list[float]]]

    @classmethod
    def of(
        cls,
        agents: int,
        options: Mapping[Stage, Options],
        calls_per_round: int | None,
        astray: Mapping[Stage, Options] | None = None,
    ) -> Flow:
        astray = astray or {}
        cumulative = {
            stage: (following.stages, list(accumulate(following.weights)))
            for stage, following in {**astray, **options}.items()
        }
        return cls(agents, options, calls_per_round, astray, cumulative)

    def following(self, stage: Stage, rng: random.Random) -> Stage:
        """Return the stage after this one. Draws only where there is a choice."""
        found = self._cumulative.get(stage)
        if found is None:
            return ()
        stages, cumulative = found
        if len(stages) == 1:
            return stages[0]
        return rng.choices(stages, cum_weights=cumulative)[0]


def graph_of(flow: Flow, agent_ids: Sequence[str], fixed_tokens: Sequence[int]) -> AgentStepGraph:
    """Return the graph that describes a flow rightly.

    An agent to which several stages lead waits for any of them, one to which a stage of several
    agents leads for all of these.
    """
    kinds: dict[tuple[int, int], bool] = {}
    origins: dict[int, set[Stage]] = {}
    for stage, following in flow.options.items():
        for option in following.stages:
            for target in option:
                origins.setdefault(target, set()).add(stage)
                for source in stage:
                    kinds[source, target] = len(following.stages) > 1
    agents = [
        Agent(
            agent_id,
            join="any" if len(origins.get(position, ())) > 1 else "all",
            fixed_prefix_tokens=tokens,
        )
        for position, (agent_id, tokens) in enumerate(zip(agent_ids, fixed_tokens, strict=True))
    ]
    edges = [
        Edge(agent_ids[source], agent_ids[target], "choice" if is_choice else "always")
        for (source, target), is_choice in kinds.items()
    ]
    return AgentStepGraph(agents, edges, entry=[agent_ids[0]])
