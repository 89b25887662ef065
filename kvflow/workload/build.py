"""Makes the workload that a scenario describes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Final

from kvflow.graph import AgentStepGraph
from kvflow.workload.base import Piece, Workload, WorkloadCall, WorkloadWorkflow
from kvflow.workload.declared import declare
from kvflow.workload.flow import Flow, graph_of
from kvflow.workload.patterns import flow_of
from kvflow.workload.prompts import PromptWriter, fixed_lengths, fixed_prefixes
from kvflow.workload.replay import replayed
from kvflow.workload.scenario import Scenario
from kvflow.workload.walk import Deviations, walk

__all__ = ["build_workload"]

_CACHED_TEAMS: Final = 4096


def build_workload(scenario: Scenario, base: Path | None = None) -> Workload:
    """Return the workload of a scenario. The same scenario gives the same workload.

    What is drawn comes from one stream of random numbers per concern, so that a change of, say, the
    pauses leaves alone which agents run.

    Args:
        scenario: what is wanted.
        base: the folder that ``scenario.trace`` is relative to; the working directory if None.

    Raises:
        InvalidInputError: ``scenario.trace`` cannot be read, or has a wrong header. Its other lines
            are read, and may raise the same, while the workflows are taken.
    """
    if scenario.trace is not None:
        return replayed(scenario, (base or Path()) / scenario.trace)
    teams = _Teams(scenario)
    first = next(_workflows(scenario, teams))
    return Workload(
        name=scenario.name,
        concurrency=scenario.load.concurrency,
        workflows=lambda: (made.workflow for made in _workflows(scenario, teams)),
        warm_up_calls=sum(1 for number in first.rounds if number < scenario.warm_up_rounds),
    )


@dataclass(frozen=True, slots=True)
class _Team:
    """A set of agents that work together; the same for all clients."""

    agent_ids: tuple[str, ...]
    fixed_lengths: tuple[int, ...]
    pauses_s: tuple[float, ...]
    flow: Flow
    graph: AgentStepGraph
    declared: AgentStepGraph | None


class _Teams:
    """Makes teams and their prompts when they are first wanted, and keeps the latest."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.team = lru_cache(_CACHED_TEAMS)(self._team)
        self.prefixes = lru_cache(_CACHED_TEAMS)(self._prefixes)

    def _team(self, number: int) -> _Team:
        given = self._scenario
        agent_ids = tuple(f"t{number}-a{agent}" for agent in range(given.agents.agents))
        lengths = fixed_lengths(
            given.prompts, given.agents.agents, _stream(given, f"team/{number}/lengths")
        )
        flow = flow_of(given.agents, _stream(given, f"team/{number}/flow"))
        graph = graph_of(flow, agent_ids, lengths)
        declared = declare(graph, given.hints.graph, _stream(given, f"team/{number}/declared"))
        pause_s, count = given.agents.pause_s, len(agent_ids)
        if isinstance(pause_s, tuple):
            rng = _stream(given, f"team/{number}/pauses")
            pauses_s = tuple(rng.uniform(*pause_s) for _ in range(count))
        else:
            pauses_s = (pause_s,) * count
        return _Team(agent_ids, tuple(lengths), pauses_s, flow, graph, declared)

    def _prefixes(self, client_id: str, number: int) -> list[tuple[Piece, ...]]:
        team = self.team(number)
        return fixed_prefixes(self._scenario.prompts, client_id, team.agent_ids, team.fixed_lengths)


@dataclass(frozen=True, slots=True)
class _Made:
    workflow: WorkloadWorkflow
    rounds: tuple[int, ...]
    """The round that each call belongs to."""


def _workflows(scenario: Scenario, teams: _Teams) -> Iterator[_Made]:
    load, agents = scenario.load, scenario.agents
    clients = _stream(scenario, "clients")
    popular = _stream(scenario, "teams")
    flows = _stream(scenario, "flows")
    pauses = _stream(scenario, "pauses")
    arrivals = _stream(scenario, "arrivals")
    wrong = scenario.hints.wrong
    deviations = Deviations(wrong, _stream(scenario, "deviations")) if wrong else None
    popularity = list(accumulate(rank**-load.zipf for rank in range(1, load.teams + 1)))
    ranks = range(load.teams)
    arrival_s = 0.0
    for number in range(load.workflows):
        client_id = f"client{clients.randrange(load.clients)}"
        team_number = popular.choices(ranks, cum_weights=popularity)[0]
        team = teams.team(team_number)
        workflow_id = f"w{number}"
        writer = PromptWriter(
            scenario.prompts,
            workflow_id,
            team.agent_ids,
            teams.prefixes(client_id, team_number),
        )
        calls: list[WorkloadCall] = []
        rounds: list[int] = []
        after: tuple[int, ...] = ()
        for round_number, stage in walk(team.flow, team.graph, agents.rounds, flows, deviations):
            first = len(calls)
            for agent in stage:
                pause_s, mean_s = 0.0, team.pauses_s[agent]
                if after and mean_s:
                    pause_s = pauses.expovariate(1.0 / mean_s)
                calls.append(writer.call(agent, len(calls), after, pause_s))
                rounds.append(round_number)
            after = tuple(range(first, len(calls)))
        if load.rate_per_s is not None:
            arrival_s += arrivals.expovariate(load.rate_per_s)
        workflow = WorkloadWorkflow(
            client_id,
            workflow_id,
            None if load.rate_per_s is None else arrival_s,
            team.declared,
            tuple(calls),
        )
        yield _Made(workflow, tuple(rounds))


def _stream(scenario: Scenario, concern: str) -> random.Random:
    return random.Random(f"{scenario.seed}/{concern}")
