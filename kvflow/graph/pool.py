"""Equal graphs, stored once."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from kvflow.graph.base import Agent, Edge
from kvflow.graph.step_graph import AgentStepGraph

__all__ = ["GraphPool"]

_Declaration = tuple[tuple[Agent, ...], tuple[Edge, ...], tuple[str, ...]]


class GraphPool:
    """Gives workflows with the same declaration the same graph object.

    A service that runs thousands of workflows of a few types then holds, checks and compiles a few
    graphs. The pool keeps no graph alive: one goes when the last workflow that runs it goes.
    Declarations in another order are kept apart, so that each workflow is shown as it was declared.
    Not safe for use by several threads at once.
    """

    __slots__ = ("_graphs",)

    def __init__(self) -> None:
        self._graphs: WeakValueDictionary[_Declaration, AgentStepGraph] = WeakValueDictionary()

    def graph(
        self, agents: Sequence[Agent], edges: Sequence[Edge], entry: Sequence[str]
    ) -> AgentStepGraph:
        """Return the graph of this declaration, built on first use.

        Raises:
            InvalidInputError, GraphError: as ``AgentStepGraph`` does.
        """
        declaration = (tuple(agents), tuple(edges), tuple(entry))
        graph = self._graphs.get(declaration)
        if graph is None:
            graph = AgentStepGraph(*declaration)
            self._graphs[(graph.agents, graph.edges, graph.entry)] = graph
        return graph

    def __len__(self) -> int:
        """Return the number of graphs in use."""
        return len(self._graphs)
