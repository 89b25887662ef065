"""How users describe a workflow, and how that becomes a checked graph.

Mistakes in decorators are reported in their terms: ``@agent('coder').after[1]``, not
``edges[7].source``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from kvflow.agent_sdk.settings import checked_identifier
from kvflow.errors import GraphError, InvalidInputError
from kvflow.graph import Agent, AgentStepGraph, Edge, EdgeKind, Join
from kvflow.graph_specs import agent_from, edge_from
from kvflow.protocol import AgentSpec, EdgeSpec

__all__ = [
    "After",
    "AgentLike",
    "DecoratedAgents",
    "EdgeLike",
    "Source",
    "choice",
    "declared_graph",
    "edge",
    "unknown_agent",
]

_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Source:
    """What :func:`choice` and :func:`edge` return: an edge without its target."""

    agent_id: str
    kind: EdgeKind
    probability: float | None = None
    expected_duration_s: float | None = None
    max_iterations: int | None = None


def choice(
    agent_id: str,
    *,
    probability: float | None = None,
    expected_duration_s: float | None = None,
    max_iterations: int | None = None,
) -> Source:
    """In ``after=[...]``: this agent is one of several that ``agent_id`` chooses between.

    When one of them runs, the others stop looking imminent.

    Args:
        agent_id: the agent that chooses.
        probability: how likely it chooses this one, if you know.
        expected_duration_s: from its end to this agent's start, as of a tool; learned if not given.
        max_iterations: how often this can be chosen in a run at most: of a loop, how often it can
            be gone round.
    """
    return Source(agent_id, "choice", probability, expected_duration_s, max_iterations)


def edge(
    agent_id: str,
    *,
    expected_duration_s: float | None = None,
    max_iterations: int | None = None,
) -> Source:
    """In ``after=[...]``: as the id alone, with what is known of the way from there.

    Args:
        agent_id: the agent that this one comes after.
        expected_duration_s: as for :func:`choice`.
        max_iterations: as for :func:`choice`.
    """
    return Source(agent_id, "always", None, expected_duration_s, max_iterations)


After = str | Source | Sequence[str | Source]
AgentLike = str | Agent | Mapping[str, Any]
EdgeLike = Edge | Sequence[str] | Mapping[str, Any]


class DecoratedAgents:
    """Agents added one by one, each with what it comes after; names may point forward."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._edges: dict[str, tuple[Edge, ...]] = {}
        self._entry: dict[str, bool] = {}

    def add(
        self,
        agent_id: str,
        *,
        after: After = (),
        join: Join = "all",
        entry: bool | None = None,
        fixed_prefix_tokens: int | None = None,
        expected_duration_s: float | None = None,
    ) -> None:
        """Add an agent. ``entry=None``: it can run first if it comes after nothing.

        Raises:
            InvalidInputError: a value is wrong in itself; the decorator's argument is named.
        """
        checked_identifier(("@agent(...)", "agent_id"), agent_id)
        here = _decorator(agent_id)
        if agent_id in self._agents:
            raise InvalidInputError((here,), "is there already; give each agent an id of its own")
        if join not in get_args(Join):
            raise InvalidInputError((here, "join"), f"must be 'all' or 'any', not {join!r}")
        if entry is not None and not isinstance(entry, bool):
            raise InvalidInputError((here, "entry"), f"must be True, False or None, not {entry!r}")
        tokens = fixed_prefix_tokens
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens <= 10_000_000):
            raise InvalidInputError(
                (here, "fixed_prefix_tokens"),
                f"must be a number of tokens from 0 to 10,000,000, not {tokens!r}",
            )
        edges = tuple(_edges_to(agent_id, after))
        _checked(
            AgentSpec,
            (here,),
            {"agent_id": agent_id, "expected_duration_s": expected_duration_s},
        )
        self._agents[agent_id] = Agent(agent_id, join, tokens, expected_duration_s)
        self._edges[agent_id] = edges
        self._entry[agent_id] = not edges if entry is None else entry

    def graph(self) -> AgentStepGraph:
        """The graph of all agents added.

        Raises:
            InvalidInputError: ``after`` names an unknown agent; the decorator's argument is named.
            GraphError: some agent could never run; says which and what to change.
        """
        if not self._agents:
            raise InvalidInputError(
                ("agents",), "there are none; use @workflow.agent('name') or Workflow(agents=...)"
            )
        for agent_id, edges in self._edges.items():
            for position, edge in enumerate(edges):
                if edge.source not in self._agents:
                    raise InvalidInputError(
                        (_decorator(agent_id), "after", position),
                        unknown_agent(edge.source, self._agents),
                    )
        entry = [agent_id for agent_id, is_entry in self._entry.items() if is_entry]
        if not entry:
            raise InvalidInputError(
                ("entry",),
                "every agent comes after another one; mark those that can run first with "
                "@workflow.agent(..., entry=True)",
            )
        agents = list(self._agents.values())
        try:
            return AgentStepGraph(agents, [e for es in self._edges.values() for e in es], entry)
        except GraphError as error:
            if len(error.field) < 2 or error.field[0] != "agents":
                raise
            agent_id = agents[int(error.field[1])].agent_id
            raise GraphError(
                (_decorator(agent_id), *error.field[2:]), error.problem, error.agent_ids
            ) from None


def declared_graph(
    agents: Iterable[AgentLike], edges: Iterable[EdgeLike], entry: Iterable[str] | None
) -> AgentStepGraph:
    """The graph given as data. ``entry=None``: the agents without in-edges.

    Raises:
        InvalidInputError: a value is wrong; its field is named.
        GraphError: some agent could never run; says which and what to change.
    """
    agent_list = [_agent(index, agent) for index, agent in enumerate(agents)]
    edge_list = [_edge(index, edge) for index, edge in enumerate(edges)]
    if entry is None:
        targets = {edge.target for edge in edge_list}
        entry = [agent.agent_id for agent in agent_list if agent.agent_id not in targets]
    elif isinstance(entry, str):
        entry = [entry]
    return AgentStepGraph(agent_list, edge_list, list(entry))


def unknown_agent(agent_id: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not an agent."""
    known = list(known)
    close = difflib.get_close_matches(agent_id, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(map(repr, known))}"
    return f"no agent is called {agent_id!r}; {hint}"


def _decorator(agent_id: str) -> str:
    return f"@agent({agent_id!r})"


def _edges_to(agent_id: str, after: After) -> Iterable[Edge]:
    here = _decorator(agent_id)
    seen: set[str] = set()
    for position, source in enumerate([after] if isinstance(after, str | Source) else after):
        field = (here, "after", position)
        if not isinstance(source, str | Source):
            raise InvalidInputError(
                field, f"must be an agent's id, choice(id) or edge(id), not {source!r}"
            )
        source_id = source if isinstance(source, str) else source.agent_id
        checked_identifier(field, source_id)
        if source_id in seen:
            raise InvalidInputError(field, f"names {source_id!r} a second time")
        seen.add(source_id)
        if isinstance(source, str):
            yield Edge(source_id, agent_id)
            continue
        known = {
            "kind": source.kind,
            "probability": source.probability,
            "expected_duration_s": source.expected_duration_s,
            "max_iterations": source.max_iterations,
        }
        yield edge_from(
            _checked(EdgeSpec, field, {"source": source_id, "target": agent_id, **known})
        )


def _agent(index: int, agent: AgentLike) -> Agent:
    if isinstance(agent, str):
        agent = Agent(agent)
    elif not isinstance(agent, Agent):
        spec = _checked(AgentSpec, ("agents", index), agent)
        agent = agent_from(spec)
    checked_identifier(("agents", index, "agent_id"), agent.agent_id)
    return agent


def _edge(index: int, edge: EdgeLike) -> Edge:
    if isinstance(edge, Edge):
        return edge
    if isinstance(edge, Mapping):
        spec = _checked(EdgeSpec, ("edges", index), edge)
    elif isinstance(edge, str) or len(edge) not in (2, 3):
        raise InvalidInputError(
            ("edges", index), f"must be (source, target) or (source, target, kind), not {edge!r}"
        )
    else:
        fields = dict(zip(("source", "target", "kind"), edge, strict=False))
        spec = _checked(EdgeSpec, ("edges", index), fields)
    return edge_from(spec)


def _checked(model: type[_M], field: tuple[str | int, ...], value: object) -> _M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInputError(
            (*field, *first["loc"]), f"{first['msg']}; got {first['input']!r}"
        ) from None
