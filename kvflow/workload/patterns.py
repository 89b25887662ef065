"""The patterns a scenario can name, each made into a flow."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

from kvflow.workload.flow import Flow, Options, Stage
from kvflow.workload.scenario import Agents, Pattern

__all__ = ["flow_of"]


def flow_of(agents: Agents, rng: random.Random) -> Flow:
    """Return the flow of a team. Only ``random`` draws: which agents follow which."""
    return _PATTERNS[agents.pattern](agents, rng)


def _sequence(given: Agents, _rng: random.Random) -> Flow:
    stages: list[Stage] = [(agent,) for agent in range(given.agents)]
    return Flow.of(given.agents, _in_turn(stages, ring=given.rounds > 1), given.agents)


def _branch(given: Agents, _rng: random.Random) -> Flow:
    """The first agent is a stage of its own: who begins is no choice."""
    layers: list[list[Stage]] = [[(0,)]]
    for first in range(1, given.agents, given.branches):
        layers.append([(a,) for a in range(first, min(first + given.branches, given.agents))])
    options: dict[Stage, Options] = {}
    for layer, following in zip(layers, [*layers[1:], layers[0]], strict=True):
        if following is not layers[0] or given.rounds > 1:
            options.update(dict.fromkeys(layer, Options.alike(following)))
    return Flow.of(given.agents, options, len(layers))


def _fan_out(given: Agents, _rng: random.Random) -> Flow:
    """What is left over after whole groups makes a smaller group."""
    stages: list[Stage] = []
    astray: dict[Stage, Options] = {}
    size = given.branches + 2
    for first in range(0, given.agents, size):
        last = min(first + size, given.agents) - 1
        workers = tuple(range(first + 1, last))
        group = [(first,), workers, (last,)] if workers else [(first,), (last,)]
        stages += group if last > first else group[:1]
        if len(workers) > 1:
            astray.update({(worker,): Options.alike([(last,)]) for worker in workers})
    options = _in_turn(stages, ring=given.rounds > 1)
    return Flow.of(given.agents, options, given.agents, astray)


def _loop(given: Agents, _rng: random.Random) -> Flow:
    back = given.loop_probability
    last = given.agents - 1
    options: dict[Stage, Options] = {}
    for agent in range(given.agents):
        on: Stage = (agent + 1,) if agent < last else ((0,) if given.rounds > 1 else ())
        weights: dict[Stage, float] = {on: 1.0 - back if agent else 1.0}
        if agent:
            weights[agent - 1,] = weights.get((agent - 1,), 0.0) + back
        likely = {stage: weight for stage, weight in weights.items() if weight}
        options[agent,] = Options(tuple(likely), tuple(likely.values()))
    return Flow.of(given.agents, options, None)


def _random(given: Agents, rng: random.Random) -> Flow:
    """The next agent is always among the successors, so that each can be reached."""
    options: dict[Stage, Options] = {}
    for agent in range(given.agents):
        following = (agent + 1) % given.agents
        others = [a for a in range(given.agents) if a not in (agent, following)]
        drawn = [following, *rng.sample(others, min(given.branches - 1, len(others)))]
        rng.shuffle(drawn)
        options[agent,] = Options(
            tuple((a,) for a in drawn), tuple(0.5**rank for rank in range(len(drawn)))
        )
    return Flow.of(given.agents, options, given.agents)


def _in_turn(stages: list[Stage], *, ring: bool) -> dict[Stage, Options]:
    options = {stage: Options.alike([on]) for stage, on in pairwise(stages)}
    if ring:
        options[stages[-1]] = Options.alike([stages[0]])
    return options


_PATTERNS: Final[Mapping[Pattern, Callable[[Agents, random.Random], Flow]]] = {
    "sequence": _sequence,
    "branch": _branch,
    "fan_out": _fan_out,
    "loop": _loop,
    "random": _random,
}
