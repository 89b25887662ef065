"""The eviction order: which node of the radix tree goes first.

Written once; the device tier, the host tier and the simulator all rank nodes with
``eviction_key``. Lower keys are evicted first:

1. weightless nodes, least recently used first: one-off suffixes, nodes of requests that carry no
   workflow, and prefixes or histories of agents that no live workflow is going to run;
2. weighted nodes, larger steps-to-execution first; at equal steps the deeper node first (so the
   part shared with others outlives what hangs below it); then the less recently used.

Without any weight this *is* LRU, which is why losing the service needs no second code path.

Source: KVFlow, arXiv 2507.07400, section "Workflow-aware eviction". It differs from the paper in
that a chat agent's history is weighted as well; the paper evicts it with the suffixes.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from kvflow.graph import INFINITE_STEPS

__all__ = ["WEIGHTLESS", "EvictionKey", "NodeKind", "eviction_key", "is_weighted"]

NodeKind = Literal["prefix", "history", "suffix", "unknown"]
"""What a node of the radix tree is.

* ``prefix``: part of the prompt that all calls of some agent have in common;
* ``history``: context an agent's next call in the same workflow will begin with;
* ``suffix``: used once, by a request that belongs to a workflow;
* ``unknown``: brought by requests that say nothing about themselves.
"""

EvictionKey: TypeAlias = tuple[int, float] | tuple[int, float, int, float]

WEIGHTLESS: Final = 0
WEIGHTED: Final = 1


def eviction_key(kind: NodeKind, steps: float, depth_tokens: int, recency: float) -> EvictionKey:
    """Rank of a node; the lowest is evicted first.

    Args:
        kind: what the node is.
        steps: steps-to-execution of the agent that will read it next (the minimum where several
            will); ``INFINITE_STEPS`` if none will. Ignored for suffixes and unknown nodes. Or, for
            all nodes alike, the time at which it will be read, 0 for what is being read.
        depth_tokens: distance of the node's end from the root, in tokens.
        recency: any number that grows with every access.

    Returns:
        A key comparable with every other key from this function. O(1).
    """
    if (kind == "prefix" or kind == "history") and steps < INFINITE_STEPS:  # noqa: PLR1714
        return (WEIGHTED, -steps, -depth_tokens, recency)
    return (WEIGHTLESS, recency)


def is_weighted(key: EvictionKey) -> bool:
    """Whether a live workflow stands behind the node this key was made for."""
    return key[0] == WEIGHTED
