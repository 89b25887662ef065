"""A policy that knows the coming calls of every workflow under way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvflow.eviction import EvictionKey
from kvflow.simulator.clients import LiveWorkflow
from kvflow.simulator.prefixes import Path, PrefixPool
from kvflow.simulator.radix import Node, RadixTree
from kvflow.simulator.requests import Request

__all__ = ["Oracle"]

_WEIGHTED: Final = 1


class Oracle:
    """Evicts what is read furthest ahead; a ``Ranking``.

    Belady's rule as far as anyone could follow it while the calls are made. The calls of a
    workflow that has begun are known, with their prompts whole: prefix, dynamic part and history.
    How the calls of different workflows will interleave is not, so distance is counted in calls of
    the workflow that reads it next; nor is what workflows will begin. That is also all that it
    knows better than KVFlow with a right graph.

    A rank costs O(live workflows that read the node).
    """

    def __init__(self, pool: PrefixPool) -> None:
        self._pool = pool
        self._scheduled: dict[LiveWorkflow, int] = {}
        # Prefixes are known for as long as something refers to them.
        self._paths: dict[LiveWorkflow, list[Path]] = {}

    def began(self, live: LiveWorkflow) -> None:
        """A workflow has begun: note what its calls will read."""
        paths = [self._pool.path(call.prompt) for call in live.workflow.calls]
        for position, path in enumerate(paths):
            for prefix in path:
                if prefix.uses is None:
                    prefix.uses = {}
                prefix.uses.setdefault(live, []).append(position)
        self._paths[live] = paths
        self._scheduled[live] = 0

    def scheduled(self, request: Request) -> None:
        """A call has found what it reads, and holds it from now on."""
        live = request.client
        assert isinstance(live, LiveWorkflow)  # noqa: S101  (whoever sends requests is one)
        self._scheduled[live] += 1
        for prefix in request.path:
            if prefix.uses is not None:
                positions = prefix.uses[live]
                positions.remove(request.position)
                if not positions:
                    del prefix.uses[live]

    def computed(self, request: Request, tree: RadixTree) -> None:
        """A call's prompt is in the tree: cut it where other calls will read what follows."""
        for prefix in request.path:
            if prefix.uses:
                tree.nodes_of(request.path, prefix.aligned)

    def over(self, live: LiveWorkflow) -> None:
        """A workflow has ended."""
        del self._paths[live], self._scheduled[live]

    def key(self, node: Node) -> EvictionKey:
        uses = node.prefix.uses
        if not uses:
            return (0, node.recency)
        scheduled = self._scheduled
        calls = min(positions[0] - scheduled[workflow] for workflow, positions in uses.items())
        return (_WEIGHTED, -calls, -node.end, node.recency)

    def lowered(self, now_s: float) -> Iterable[Node]:
        return ()
