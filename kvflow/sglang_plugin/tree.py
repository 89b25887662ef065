"""SGLang's radix tree with KVFlow's eviction order.

Two subclasses of SGLang's own classes, selected through its public registries:

* ``KVFlowTreeCore``: the Python tree core, whose two sets of evictable leaves (device, host) keep
  an eviction index beside them, and whose nodes keep their owners over splits;
* ``KVFlowFullComponent``: takes victims from those indexes instead of building a heap per call.

What each needs of SGLang, per version, is in ``compat.py``. Everything here runs on the scheduler
thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE

from kvflow.eviction import (
    EvictionIndex,
    EvictionKey,
    OwnershipMap,
    eviction_key,
    is_weighted,
)
from kvflow.graph import INFINITE_STEPS
from kvflow.sglang_plugin.metrics import EngineMetrics, NoMetrics, Tier
from kvflow.sglang_plugin.walks import ShortWalks

try:
    from sglang.srt.mem_cache.unified_cache.components.full import FullComponent
except ModuleNotFoundError:  # up to 0.5.19
    from sglang.srt.mem_cache.unified_cache.components.full_component import FullComponent

__all__ = ["KVFlowFullComponent", "KVFlowTreeCore", "NodeWatcher"]

MIN_SPLIT_TOKENS = 64
"""A weighted victim longer than what is needed gives up its tail only, in pieces of at least this
many tokens: smaller ones would cost more in nodes than they save in tokens."""


class NodeWatcher(Protocol):
    """Told of what happens to nodes. Called on the scheduler thread."""

    def split(self, upper: Any, lower: Any) -> None: ...
    def evicted(self, node: Any) -> None: ...


class LeafSet(set[Any]):
    """A set of evictable leaves that keeps an eviction index of its members.

    SGLang adds to and discards from it one node at a time (0.5.17-0.5.23,
    ``UnifiedTreeCore._update_evictable_leaf_sets``); whatever else it does only reads.
    """

    def __init__(self, index: EvictionIndex[Any]) -> None:
        super().__init__()
        self.index = index

    def add(self, node: Any) -> None:
        if node not in self:
            super().add(node)
            self.index.add(node)

    def discard(self, node: Any) -> None:
        if node in self:
            super().discard(node)
            self.index.discard(node)


class KVFlowTreeCore(ShortWalks):
    """The Python tree core with ordered leaves and owned nodes."""

    watcher: NodeWatcher | None = None

    def reset(self) -> None:
        super().reset()
        self.ownership: OwnershipMap[Any] = OwnershipMap()
        self.evictable_device_leaves = LeafSet(EvictionIndex(self.rank, _node_id))
        self.evictable_host_leaves = LeafSet(EvictionIndex(self.rank, _node_id))

    def rank(self, node: Any) -> EvictionKey:
        """The node's eviction key, the same on both tiers."""
        kind, steps = self.ownership.rank(node)
        depth_tokens = self._depth_tokens(node) if steps < INFINITE_STEPS else 0
        return eviction_key(kind, steps, depth_tokens, node.last_access_time)

    def rerank(self, nodes: Iterable[Any]) -> None:
        """The weight of these nodes changed."""
        for node in nodes:
            self.evictable_device_leaves.index.refresh(node)
            self.evictable_host_leaves.index.refresh(node)

    def _depth_tokens(self, node: Any) -> int:
        depth = 0
        while node is not self.root_node:
            depth += len(node.key)
            node = node.parent
        return depth

    def _split_node(self, key: RadixKey, child: Any, split_len: int) -> Any:
        result = super()._split_node(key, child, split_len)
        upper = result[0]
        self.ownership.split(upper, child)
        if self.watcher is not None:
            self.watcher.split(upper, child)
        self.rerank((upper, child))
        return result

    def _unregister_node(self, node: Any) -> None:
        super()._unregister_node(node)
        self.ownership.forget(node)
        if self.watcher is not None:
            self.watcher.evicted(node)

    def _demote(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._demote(node, *args, **kwargs)
        if self.watcher is not None:
            self.watcher.evicted(node)
        return result

    def reclaimable_tokens(self, key: EvictionKey, wanted: int) -> int:
        """Device tokens that can be evicted without touching what ranks at or above ``key``.

        Stops at ``wanted``. A lower bound: a parent counts with its last child only. O(leaves) at
        worst.
        """
        found = 0
        for leaf in self.evictable_device_leaves.index.below(key):
            if not self.rank(leaf) < key:
                continue  # read since it was ranked
            node = leaf
            while True:
                found += len(node.key)
                if found >= wanted:
                    return wanted
                node = node.parent
                if (
                    node is self.root_node
                    or sum(not child.evicted for child in node.children.values()) > 1
                    or node.component_data[BASE_COMPONENT_TYPE].lock_ref > 0
                    or not self.rank(node) < key
                ):
                    break
        return found

    def host_duplicate_tokens(self) -> int:
        """Host tokens whose KV is on the device as well. O(duplicates)."""
        return sum(
            len(node.key)
            for node in self.full_host_duplicates.values()
            if self._can_reclaim_full_host_duplicate(node)
        )

    def drop_host_duplicates(
        self, num_tokens: int, kept: frozenset[Any], tracker: Any, **frees: Any
    ) -> None:
        """Free host copies of what is on the device too, until ``num_tokens`` are free.

        For engines with a storage tier, which has them as well: there the host pool is what
        fetches pass through. Not those in ``kept``. Children go before their parents, so what is
        left in the host pool still hangs together from the root.
        """
        progress = True
        while progress and tracker[BASE_COMPONENT_TYPE] < num_tokens:
            progress = False
            for node in reversed(tuple(self.full_host_duplicates.values())):
                if tracker[BASE_COMPONENT_TYPE] >= num_tokens:
                    return
                if (
                    node in kept
                    or any(child.backuped for child in node.children.values())
                    or not self._can_reclaim_full_host_duplicate(node)
                ):
                    continue
                self._release_full_host_duplicate(node, tracker, **frees)
                self.full_host_duplicates.pop(node.id, None)
                progress = True

    def split_at(self, node: Any, length: int) -> tuple[Any, Any]:
        """Split without touching recency: ``(upper node, action to apply)``."""
        recency = node.last_access_time
        upper, action = self._split_node(node.key, node, length)
        upper.last_access_time = node.last_access_time = recency
        self.rerank((upper, node))
        return upper, action


class KVFlowFullComponent(FullComponent):
    """Chooses victims from the index, on the device and in the host pool."""

    metrics: EngineMetrics = NoMetrics()
    needed_tokens: int | None = None
    device_candidate_key: EvictionKey | None = None
    host_candidate_key: EvictionKey | None = None
    kept_duplicates: frozenset[Any] = frozenset()

    def _evict_device_start(self, request_cnt: int) -> None:
        self._requested_tokens = request_cnt
        self._set_aside: list[Any] = []
        self._last_victim: Any = None

    def _evict_device_next_node(
        self, tracker: Any, device_frees: Any, host_frees: Any, cache_actions: Any = None
    ) -> int | None:
        leaves = self.tree_core.evictable_device_leaves
        last = self._last_victim
        if last is not None and last in leaves:
            # Its eviction was declined (a write-back that found no room): do not offer it again.
            leaves.index.discard(last)
            self._set_aside.append(last)
        evicted_tokens = tracker[self.component_type]
        if evicted_tokens >= self._requested_tokens or not self._may_evict(leaves):
            self._last_victim = None
            return None
        wanted = self._requested_tokens if self.needed_tokens is None else self.needed_tokens
        victim, actions = self._choose(leaves, "device", wanted - evicted_tokens)
        self._last_victim = victim
        if victim is None:
            return None
        if cache_actions is None:
            self.cache._apply_cache_actions(actions)
        else:
            cache_actions.extend(actions)
        return int(victim.id)

    def _may_evict(self, leaves: LeafSet) -> bool:
        """Whether the next victim is worth less than what it would make room for."""
        if self.device_candidate_key is None:
            return True
        lowest = leaves.index.lowest()
        return lowest is None or self.tree_core.rank(lowest) < self.device_candidate_key

    def _evict_device_end(self) -> None:
        leaves = self.tree_core.evictable_device_leaves
        for node in self._set_aside:
            if node in leaves:
                leaves.index.add(node)
        self._set_aside = []
        self._last_victim = None

    def drive_host_eviction(
        self, num_tokens: int, tracker: Any, device_frees: Any, host_frees: Any, **kwargs: Any
    ) -> None:
        leaves = self.tree_core.evictable_host_leaves
        duplicates_dropped = not (
            self.cache.enable_storage and hasattr(self.tree_core, "full_host_duplicates")
        )
        while (missing := num_tokens - tracker[self.component_type]) > 0:
            lowest = leaves.index.lowest()
            if not duplicates_dropped and (
                lowest is None or is_weighted(self.tree_core.rank(lowest))
            ):
                duplicates_dropped = True
                self.tree_core.drop_host_duplicates(
                    num_tokens,
                    self.kept_duplicates,
                    tracker,
                    device_frees=device_frees,
                    host_frees=host_frees,
                    **kwargs,
                )
                continue
            if lowest is None:
                return
            if self.host_candidate_key is not None and not (
                self.tree_core.rank(lowest) < self.host_candidate_key
            ):
                # What would be written is worth less than anything it could displace.
                return
            victim, actions = self._choose(leaves, "host", missing)
            self.cache._apply_cache_actions(actions)
            self.tree_core._evict_host_leaf(victim, tracker, device_frees, host_frees, **kwargs)

    def _choose(self, leaves: LeafSet, tier: Tier, missing: int) -> tuple[Any, list[Any]]:
        start_s = time.perf_counter()
        victim = leaves.index.lowest()
        actions: list[Any] = []
        if victim is None:
            return None, actions
        core = self.tree_core
        kind, steps = core.ownership.rank(victim)
        # A storage tier gives back long stretches only, so there nodes stay in one piece.
        if steps < INFINITE_STEPS and not self.cache.enable_storage:
            pieces = max(missing, MIN_SPLIT_TOKENS)
            keep = (len(victim.key) - pieces) // core.page_size * core.page_size
            if keep > 0:
                _, action = core.split_at(victim, keep)
                if action is not None:
                    actions.append(action)
        self.metrics.evicted(tier, kind, len(victim.key))
        self.metrics.decided(tier, time.perf_counter() - start_s)
        return victim, actions


def _node_id(node: Any) -> int:
    return int(node.id)
