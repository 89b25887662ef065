"""How likely each way on is, after agents whose choices were declared with probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kvflow.graph.base import Edge

__all__ = ["declared_shares"]


def declared_shares(edges: Iterable[Edge]) -> Mapping[str, Mapping[int, float]]:
    """Of each agent with a declared probability, how likely its out-edges are taken.

    All its out-edges are in it, by their position in ``edges``: an ``always`` edge with 1, a choice
    with what was declared, and choices of which nothing was declared share what is left equally.
    Agents without any declared probability are not. O(E).
    """
    declared = {edge.source for edge in edges if edge.probability is not None}
    ways: defaultdict[str, dict[int, Edge]] = defaultdict(dict)
    for position, edge in enumerate(edges):
        if edge.source in declared:
            ways[edge.source][position] = edge
    return {source: _shares(out) for source, out in ways.items()}


def _shares(out: Mapping[int, Edge]) -> dict[int, float]:
    choices = [edge.probability for edge in out.values() if edge.kind == "choice"]
    left = max(0.0, 1.0 - sum(known for known in choices if known is not None))
    each = left / max(1, choices.count(None))

    def share(edge: Edge) -> float:
        if edge.kind == "always":
            return 1.0
        return each if edge.probability is None else edge.probability

    return {position: share(edge) for position, edge in out.items()}
