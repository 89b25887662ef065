"""Where the agents' fixed prefixes are, looked up a few at a time.

A survey is made on the scheduler's thread, at step boundaries. One step does a bounded part of it,
so that thousands of agents cost no request a noticeable time; what it finds is therefore as old as
its oldest part, some steps.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvflow.graph import INFINITE_STEPS
from kvflow.protocol import MAX_REPORTED_AGENTS
from kvflow.sglang_plugin.weights import AgentKey

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache

__all__ = ["NODES_PER_STEP", "Placement", "PrefixSurvey", "pool_use"]

NODES_PER_STEP: Final = 400
"""Nodes of the tree looked at in one step: about 0.2 ms."""


class Placement(NamedTuple):
    """Tokens of one agent's fixed prefix, each in the nearest tier that has it."""

    tokens: int
    device_tokens: int
    host_tokens: int
    storage_tokens: int
    steps_to_execution: int | None

    def plus(self, other: Placement) -> Placement:
        """Both together: the same agent in two cache namespaces."""
        steps = [s for s in (self.steps_to_execution, other.steps_to_execution) if s is not None]
        return Placement(
            tokens=self.tokens + other.tokens,
            device_tokens=self.device_tokens + other.device_tokens,
            host_tokens=self.host_tokens + other.host_tokens,
            storage_tokens=self.storage_tokens + other.storage_tokens,
            steps_to_execution=min(steps, default=None),
        )


class PrefixSurvey:
    """One look at the agents called last, at most ``limit`` of them."""

    def __init__(self, cache: KVFlowRadixCache, limit: int = MAX_REPORTED_AGENTS) -> None:
        self._cache = cache
        # From the end, so that the one called last is the first.
        self._left = cache.kvflow_weights.called_last(limit)[::-1]
        self.found: dict[AgentKey, Placement] = {}

    def go_on(self, nodes: int = NODES_PER_STEP) -> bool:
        """Look at some more; whether all is done. O(``nodes``)."""
        while self._left and nodes > 0:
            agent, namespace = self._left.pop()
            nodes -= 1 + self._look(agent, namespace)
        return not self._left

    def _look(self, agent: AgentKey, namespace: Hashable) -> int:
        """How many nodes were looked at."""
        cache = self._cache
        owner = cache.kvflow_weights.known_prefix_owner(agent, namespace)
        if owner is None:  # given up since the survey began
            return 0
        device, host = 0, 0
        for node in owner.nodes:
            if not node.evicted:
                device += len(node.key)
            elif node.backuped:
                host += len(node.key)
        page = cache.page_size
        tokens = cache.kvflow_fixed_tokens.get(owner.number, 0) // page * page
        path = cache.kvflow_paths.get(owner.number)
        stored = 0 if path is None else max(0, len(path.tokens) - device - host)
        placement = Placement(
            max(tokens, device + host + stored),
            device,
            host,
            stored,
            int(owner.steps) if owner.steps < INFINITE_STEPS else None,
        )
        known = self.found.get(agent)
        self.found[agent] = placement if known is None else known.plus(placement)
        return len(owner.nodes)


def pool_use(pool: Any) -> tuple[int, int]:
    """``(size, used)`` of one of SGLang's pools, in tokens."""
    size = int(pool.size)
    return size, max(0, size - int(pool.available_size()))
