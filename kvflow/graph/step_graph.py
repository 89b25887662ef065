"""The Agent Step Graph: agents, edges, and which agents can run first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvflow.graph.adjacency import Adjacency
from kvflow.graph.base import Agent, Edge
from kvflow.graph.choices import declared_shares
from kvflow.graph.validation import check_agents_can_run, check_declaration

__all__ = ["AgentStepGraph"]


class AgentStepGraph:
    """An immutable, checked graph. One object serves any number of workflows.

    Two graphs are equal if they have the same agents, edges and entry agents; the order of their
    declaration does not count. Cycles and edges from an agent to itself are ordinary.

    Building takes O(V + E) and uses no recursion.

    Raises:
        InvalidInputError: a value is wrong (duplicate agent or edge, unknown agent, empty entry
            ...); ``field`` is its path, e.g. ``("edges", 2, "target")``.
        GraphError: some agents could never run from the start; names them and what to change.
    """

    __slots__ = (
        "__weakref__",
        "_adjacency",
        "_agent_ids",
        "_agents",
        "_declared_shares",
        "_edges",
        "_entry",
        "_entry_positions",
    )

    def __init__(
        self, agents: Sequence[Agent], edges: Sequence[Edge], entry: Sequence[str]
    ) -> None:
        self._agents = tuple(agents)
        self._edges = tuple(edges)
        self._entry = tuple(entry)
        check_declaration(self._agents, self._edges, self._entry)
        self._compile()
        check_agents_can_run(self._adjacency, self._agent_ids, self._entry_positions)

    @classmethod
    def observed(
        cls, agents: Sequence[Agent], edges: Sequence[Edge], entry: Sequence[str]
    ) -> AgentStepGraph:
        """A graph that was seen rather than declared: it may be empty, and nothing is checked.

        To be shown; ``WorkflowState`` needs a declared one.
        """
        graph = cls.__new__(cls)
        graph._agents = tuple(agents)
        graph._edges = tuple(edges)
        graph._entry = tuple(entry)
        graph._compile()
        return graph

    def _compile(self) -> None:
        self._agent_ids = tuple(agent.agent_id for agent in self._agents)
        self._adjacency = Adjacency.build(self._agents, self._edges)
        self._entry_positions = frozenset(self._adjacency.position[a] for a in self._entry)
        self._declared_shares = declared_shares(self._edges)

    @property
    def agents(self) -> tuple[Agent, ...]:
        """In declaration order, as are edges and entry."""
        return self._agents

    @property
    def edges(self) -> tuple[Edge, ...]:
        return self._edges

    @property
    def entry(self) -> tuple[str, ...]:
        """agent_ids of the agents that can run first."""
        return self._entry

    @property
    def agent_ids(self) -> tuple[str, ...]:
        return self._agent_ids

    @property
    def adjacency(self) -> Adjacency:
        """The compiled form, for use inside kvflow.graph."""
        return self._adjacency

    @property
    def declared_shares(self) -> Mapping[str, Mapping[int, float]]:
        """See ``kvflow.graph.choices``."""
        return self._declared_shares

    @property
    def entry_positions(self) -> frozenset[int]:
        """``entry`` as positions in ``agents``."""
        return self._entry_positions

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, AgentStepGraph):
            return NotImplemented
        return (
            set(self._agents) == set(other._agents)
            and set(self._edges) == set(other._edges)
            and set(self._entry) == set(other._entry)
        )

    def __hash__(self) -> int:
        return hash((frozenset(self._agents), frozenset(self._edges), frozenset(self._entry)))

    def __repr__(self) -> str:
        return (
            f"AgentStepGraph({len(self._agents)} agents, {len(self._edges)} edges, "
            f"entry={self._entry!r})"
        )
