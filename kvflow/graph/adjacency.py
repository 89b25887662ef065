"""The graph as arrays of indices, shared by all workflows that run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvflow.graph.base import INFINITE_STEPS, Agent, Edge

__all__ = ["Adjacency"]

_IntRows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Adjacency:
    """Agents and edges by their position in the graph's declaration.

    Attributes:
        position: agent_id -> agent.
        source, target, is_choice: per edge.
        max_taken: per edge that only so many starts may take, how many.
        joins_any: per agent.
        out_edges, in_edges: per agent, edges in declaration order.
        choice_edges: per agent, those of its out-edges that are choices.
        successors: per agent, the targets of its out-edges.
        needed: per agent, how many of its in-edges must be marked for it to start. A template to
            copy, as is
        unreached: per agent, INFINITE_STEPS.
    """

    position: dict[str, int]
    source: tuple[int, ...]
    target: tuple[int, ...]
    is_choice: tuple[bool, ...]
    max_taken: dict[int, int]
    joins_any: tuple[bool, ...]
    out_edges: _IntRows
    in_edges: _IntRows
    choice_edges: _IntRows
    successors: _IntRows
    needed: list[int]
    unreached: list[float]

    @classmethod
    def build(cls, agents: Sequence[Agent], edges: Sequence[Edge]) -> Adjacency:
        """Compile a graph whose ids and endpoints were checked. O(V + E)."""
        position = {agent.agent_id: i for i, agent in enumerate(agents)}
        source = tuple(position[edge.source] for edge in edges)
        target = tuple(position[edge.target] for edge in edges)
        is_choice = tuple(edge.kind == "choice" for edge in edges)
        out_edges: list[list[int]] = [[] for _ in agents]
        in_edges: list[list[int]] = [[] for _ in agents]
        for edge in range(len(edges)):
            out_edges[source[edge]].append(edge)
            in_edges[target[edge]].append(edge)
        joins_any = tuple(agent.join == "any" for agent in agents)
        return cls(
            position=position,
            source=source,
            target=target,
            is_choice=is_choice,
            max_taken={
                i: edge.max_iterations
                for i, edge in enumerate(edges)
                if edge.max_iterations is not None
            },
            joins_any=joins_any,
            out_edges=tuple(map(tuple, out_edges)),
            in_edges=tuple(map(tuple, in_edges)),
            choice_edges=tuple(tuple(e for e in row if is_choice[e]) for row in out_edges),
            successors=tuple(tuple(target[e] for e in row) for row in out_edges),
            needed=[
                min(1, len(row)) if any_is_enough else len(row)
                for row, any_is_enough in zip(in_edges, joins_any, strict=True)
            ],
            unreached=[INFINITE_STEPS] * len(agents),
        )
