"""What KVFlow's plugin knows on the engine, run on a simulated tree.

The parts are the plugin's own: ``WorkflowWeights`` with its trust, ``OwnershipMap``,
``CallLearner`` and ``eviction_key``. What stands here is the glue that ``sglang_plugin/cache.py``
is there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from kvflow.eviction import (
    AgentCall,
    CallLearner,
    EvictionKey,
    Owner,
    OwnershipMap,
    eviction_key,
)
from kvflow.sglang_plugin.control import ServiceUpdate
from kvflow.sglang_plugin.weights import WorkflowWeights
from kvflow.simulator.base import Order
from kvflow.simulator.prefixes import Path
from kvflow.simulator.radix import Node, RadixTree
from kvflow.simulator.requests import Request

__all__ = ["Knowledge"]


class Knowledge:
    """Who is going to read which node, and the eviction order that follows (a ``Ranking``)."""

    def __init__(self, order: Order = "steps") -> None:
        self.weights = WorkflowWeights(self._owner_changed, self._owner_dropped)
        self.weights.order_by(order)
        self.ownership: OwnershipMap[Node] = OwnershipMap()
        self.paths: dict[int, tuple[Path, int]] = {}
        self.keeps_paths = False
        self.changed = True
        self._learner = CallLearner()
        self._rank_changed: Callable[[Node], None] = _ignore

    def attach(self, rank_changed: Callable[[Node], None]) -> None:
        """Tell the cache of nodes whose rank changed."""
        self._rank_changed = rank_changed

    def key(self, node: Node) -> EvictionKey:
        kind, steps = self.ownership.rank(node)
        return eviction_key(kind, steps, node.end, node.recency)

    def lowered(self, now_s: float) -> Iterable[Node]:
        return ()

    def split(self, upper: Node, lower: Node) -> None:
        """``upper`` is a new node, above ``lower``."""
        self.ownership.split(upper, lower)
        self._rank_changed(upper)
        self._rank_changed(lower)

    def removed(self, node: Node) -> None:
        """The node left the tree."""
        self.ownership.forget(node)

    def apply(self, message: ServiceUpdate) -> None:
        """Take what the service says."""
        self.changed = True
        for key in self.weights.apply(message):
            self.weights.drop_histories(self._learner.forget_workflow(key))

    def finished(self, tree: RadixTree, request: Request) -> None:
        """A request has finished and is in the tree: learn from it which nodes are whose."""
        key = request.key
        if key is None:
            return
        prompt, whole = request.path, request.whole
        cached_tokens = request.kv_tokens // tree.page_tokens * tree.page_tokens
        agent_id = request.call.agent_id
        weights = self.weights
        client_id = key[0]
        prefix_owner = weights.prefix_owner(client_id, agent_id, None)
        stated = weights.fixed_prefix_tokens(key, agent_id)
        identities = array("q", [prefix.identity for prefix in whole])
        lesson = self._learner.observe(
            AgentCall(
                agent=(client_id, agent_id, None),
                workflow=key,
                prompt=identities[: len(prompt)],
                answer=identities[len(prompt) :],
                fixed_prefix_tokens=None if stated is None else _pieces_within(prompt, stated),
            )
        )
        weights.drop_histories(lesson.ended)
        nodes = tree.nodes_of(whole, cached_tokens)
        self.ownership.mark_seen(nodes)
        fixed = prompt[: lesson.fixed_tokens]
        end = min(fixed[-1].aligned, cached_tokens) if fixed else 0
        self.assign(prefix_owner, tree.nodes_of(prompt, end))
        self._remember(prefix_owner, fixed, end)
        owner = weights.history_owner(key, agent_id, lesson.conversation)
        keep = lesson.keep_history
        self.assign(owner, tree.nodes_of(whole, cached_tokens) if keep else ())
        if keep:
            self._remember(owner, whole, cached_tokens)
        self.changed = True

    def find_again(self, number: int, tree: RadixTree) -> None:
        """Nodes of an owner's path came back into the tree without a request."""
        owner, known = self.weights.owner(number), self.paths.get(number)
        if owner is not None and known is not None:
            self.assign(owner, tree.nodes_of(*known))

    @staticmethod
    def chain(owner: Owner[Node], root: Node) -> list[Node]:
        """The nodes of an owner's path from the root down, as far as they hang together."""
        below = {node.parent: node for node in owner.nodes}
        nodes = []
        node = below.get(root)
        while node is not None:
            nodes.append(node)
            node = below.get(node)
        return nodes

    def assign(self, owner: Owner[Node], nodes: Iterable[Node]) -> None:
        """Make these nodes the owner's."""
        for node in self.ownership.assign(owner, nodes):
            self._rank_changed(node)

    def _remember(self, owner: Owner[Node], path: Path, end: int) -> None:
        if self.keeps_paths and end:
            self.paths[owner.number] = (path, end)

    def _owner_changed(self, owner: Owner[Node]) -> None:
        for node in owner.nodes:
            self._rank_changed(node)

    def _owner_dropped(self, owner: Owner[Node]) -> None:
        self.assign(owner, ())
        self.paths.pop(owner.number, None)


def _pieces_within(path: Path, tokens: int) -> int:
    """How many pieces of the path end within its first ``tokens``."""
    count = 0
    for prefix in path:
        if prefix.tokens > tokens:
            break
        count += 1
    return count


def _ignore(node: Node) -> None:
    """Nobody is told."""
