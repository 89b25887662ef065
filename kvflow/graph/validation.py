"""What makes a graph acceptable, and the sentences that say why one is not."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import get_args

from kvflow.errors import GraphError, InvalidInputError
from kvflow.graph.adjacency import Adjacency
from kvflow.graph.base import INFINITE_STEPS, Agent, Edge, EdgeKind, Join
from kvflow.graph.marking import Marking
from kvflow.graph.steps import compute_steps

__all__ = ["check_agents_can_run", "check_declaration"]

_MAX_NAMED = 50
_ROUNDING = 1e-6
_MAX_EXPLAINED = 10


def check_declaration(agents: Sequence[Agent], edges: Sequence[Edge], entry: Sequence[str]) -> None:
    """Check each value by itself. O(V + E).

    Raises:
        InvalidInputError: with the path of the first wrong field.
    """
    positions: dict[str, int] = {}
    for i, agent in enumerate(agents):
        _check_agent(i, agent)
        if (first := positions.setdefault(agent.agent_id, i)) != i:
            raise InvalidInputError(
                ("agents", i, "agent_id"),
                f"{agent.agent_id!r} is declared already, as agents[{first}]; "
                "each agent_id may appear once",
            )
    if not agents:
        raise InvalidInputError(("agents",), "is empty; a workflow needs at least one agent")
    edge_positions: dict[tuple[str, str], int] = {}
    for i, edge in enumerate(edges):
        _check_edge(i, edge, positions)
        if (first := edge_positions.setdefault((edge.source, edge.target), i)) != i:
            raise InvalidInputError(
                ("edges", i),
                f"{edge.source!r} -> {edge.target!r} is declared already, as edges[{first}]; "
                "at most one edge, of one kind, may lead from one agent to another",
            )
    _check_probabilities(edges)
    entry_positions: dict[str, int] = {}
    for i, agent_id in enumerate(entry):
        if agent_id not in positions:
            raise InvalidInputError(("entry", i), _unknown_agent(agent_id, positions))
        if (first := entry_positions.setdefault(agent_id, i)) != i:
            raise InvalidInputError(
                ("entry", i),
                f"{agent_id!r} is named already, as entry[{first}]; name each entry agent once",
            )
    if not entry:
        raise InvalidInputError(("entry",), "is empty; name at least one agent that can run first")


def _check_agent(i: int, agent: Agent) -> None:
    if not isinstance(agent.agent_id, str) or not agent.agent_id:
        raise InvalidInputError(
            ("agents", i, "agent_id"), f"is {agent.agent_id!r}; it must be a non-empty string"
        )
    if agent.join not in get_args(Join):
        raise InvalidInputError(
            ("agents", i, "join"), f"is {agent.join!r}; it must be 'all' or 'any'"
        )
    tokens = agent.fixed_prefix_tokens
    if tokens is not None and (not isinstance(tokens, int) or tokens < 0):
        raise InvalidInputError(
            ("agents", i, "fixed_prefix_tokens"),
            f"is {tokens!r}; it must be a number of tokens, 0 or more, or None if not known",
        )
    _check_duration(("agents", i), agent.expected_duration_s)


def _check_edge(i: int, edge: Edge, known: Collection[str]) -> None:
    if edge.source not in known:
        raise InvalidInputError(("edges", i, "source"), _unknown_agent(edge.source, known))
    if edge.target not in known:
        raise InvalidInputError(("edges", i, "target"), _unknown_agent(edge.target, known))
    if edge.kind not in get_args(EdgeKind):
        raise InvalidInputError(
            ("edges", i, "kind"), f"is {edge.kind!r}; it must be 'always' or 'choice'"
        )
    probability = edge.probability
    if probability is not None and not 0 < probability <= 1:
        raise InvalidInputError(
            ("edges", i, "probability"),
            f"is {probability!r}; it must be over 0 and at most 1, or None if not known; "
            "leave out an edge that is never taken",
        )
    if probability is not None and probability < 1 and edge.kind == "always":
        raise InvalidInputError(
            ("edges", i, "probability"),
            f"is {probability!r} on an edge of kind 'always', which every finish takes; "
            "make it a 'choice', or leave the probability out",
        )
    _check_duration(("edges", i), edge.expected_duration_s)
    limit = edge.max_iterations
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidInputError(
            ("edges", i, "max_iterations"),
            f"is {limit!r}; it must be a whole number, 1 or more, or None for any number",
        )


def _check_duration(path: tuple[str | int, ...], seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds < math.inf:
        raise InvalidInputError(
            (*path, "expected_duration_s"),
            f"is {seconds!r}; it must be a number of seconds, 0 or more, or None if not known",
        )


def _check_probabilities(edges: Sequence[Edge]) -> None:
    """Of one source's choice edges: one finish takes one of them at most."""
    sums: dict[str, float] = {}
    for i, edge in enumerate(edges):
        if edge.kind == "choice" and edge.probability is not None:
            total = sums[edge.source] = sums.get(edge.source, 0.0) + edge.probability
            if total > 1 + _ROUNDING:
                raise InvalidInputError(
                    ("edges", i, "probability"),
                    f"makes those of {edge.source!r}'s choice edges add up to {total:g}; "
                    "they are alternatives, so it must be at most 1",
                )


def _unknown_agent(agent_id: object, known: Collection[str]) -> str:
    return f"no agent has agent_id {agent_id!r}; this graph declares {_name(list(known), 20)}"


def check_agents_can_run(graph: Adjacency, agent_ids: Sequence[str], entry: frozenset[int]) -> None:
    """Check that the initial marking gives every agent finite steps.

    A choice is taken both ways here: an agent that joins two branches of one choice is accepted,
    because a later visit may take the other branch.

    Raises:
        GraphError: naming all agents that can never run, and what to change.
    """
    steps = compute_steps(Marking(graph, entry, runs={}), running=())
    dead = [agent for agent, value in enumerate(steps) if value == INFINITE_STEPS]
    if not dead:
        return
    is_dead = frozenset(dead)
    reachable = _reachable(graph, entry)
    causes: list[int] = []
    followers: list[int] = []
    for agent in dead:
        sources = [graph.source[edge] for edge in graph.in_edges[agent]]
        is_follower = agent in reachable and is_dead.issuperset(sources)
        (followers if is_follower else causes).append(agent)
    sentences = [
        _explain(graph, agent_ids, agent, is_dead, reachable) for agent in causes[:_MAX_EXPLAINED]
    ]
    if len(causes) > _MAX_EXPLAINED:
        sentences.append(f"likewise {_name([agent_ids[a] for a in causes[_MAX_EXPLAINED:]])}")
    if followers:
        sentences.append(f"{_name([agent_ids[a] for a in followers])} can only come after these")
    named = [agent_ids[agent] for agent in dead]
    raise GraphError(
        ("agents", causes[0]),
        f"{_name(named)} can never run from the start: {'; '.join(sentences)}",
        named,
    )


def _explain(
    graph: Adjacency,
    agent_ids: Sequence[str],
    agent: int,
    dead: Collection[int],
    reachable: Collection[int],
) -> str:
    name = repr(agent_ids[agent])
    if agent not in reachable:
        return (
            f"{name} is not reachable from the entry "
            "(add an edge that leads to it, or add it to entry)"
        )
    waited_for = [
        graph.source[edge] for edge in graph.in_edges[agent] if graph.source[edge] in dead
    ]
    after = _reachable(graph, [agent])
    looping = [source for source in waited_for if source in after]
    if looping:
        sources = _name([agent_ids[source] for source in looping])
        own_edge = "itself" if looping == [agent] else f"{sources}, which comes after it"
        return (
            f"{name} waits (join 'all') on a loop's back edge, for {own_edge} "
            f"(give {name} join 'any', or add it to entry)"
        )
    sources = _name([agent_ids[source] for source in waited_for])
    return f"{name} waits (join 'all') for {sources} (or give {name} join 'any')"


def _reachable(graph: Adjacency, start: Collection[int]) -> set[int]:
    seen = set(start)
    stack = list(start)
    while stack:
        for successor in graph.successors[stack.pop()]:
            if successor not in seen:
                seen.add(successor)
                stack.append(successor)
    return seen


def _name(agent_ids: Sequence[str], limit: int = _MAX_NAMED) -> str:
    text = ", ".join(repr(agent_id) for agent_id in agent_ids[:limit])
    more = len(agent_ids) - limit
    return f"{text} and {more} more" if more > 0 else text
