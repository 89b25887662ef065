"""The tiers of a simulated cache: what is given up, copied to the host and loaded back.

The rules are those of SGLang's unified cache with HiCache (0.5.23,
``mem_cache/unified_radix_cache.py``) and, where a cache is told to cut victims, of KVFlow's
``sglang_plugin/tree.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kvflow.eviction import EvictionIndex, EvictionKey, is_weighted
from kvflow.simulator.base import EngineModel
from kvflow.simulator.costs import CostModel
from kvflow.simulator.links import Copy, FifoLink
from kvflow.simulator.prefixes import Path
from kvflow.simulator.radix import Inserted, Match, Node, RadixTree
from kvflow.simulator.ranking import Ranking
from kvflow.simulator.storage import Fetch, StorageTier
from kvflow.workload import CacheSizes

__all__ = ["CacheObserver", "Landed", "LoadUnderWay", "TieredCache", "path_above"]

MIN_SPLIT_TOKENS = 64
"""``kvflow.sglang_plugin.tree.MIN_SPLIT_TOKENS``: no smaller tail of a weighted victim is cut off.
That module cannot be imported without SGLang."""


class CacheObserver(Protocol):
    """Told of what happens to nodes."""

    def split(self, upper: Node, lower: Node) -> None: ...
    def left_device(self, node: Node) -> None: ...
    def removed(self, node: Node) -> None: ...


@dataclass(slots=True, eq=False)
class LoadUnderWay:
    """A copy to the device; ``anchors`` are the nodes locked until it is over."""

    copy: Copy
    anchors: list[Node]


class Landed(NamedTuple):
    """Copies that are over."""

    loads: list[LoadUnderWay]
    fetches: list[Fetch]


_NOTHING = Landed([], [])


class _Write(NamedTuple):
    """A copy to the host under way; the node may have been cut since, and lost its head."""

    end_s: float
    node: Node
    start: int


class TieredCache:
    """Device, host and storage tier of one engine.

    Args:
        uses_host: whether there is a host tier (and storage, if the sizes have it).
        cuts_victims: whether a weighted victim gives up only the tail that is needed.
        refuses_backups: whether a node worth less than all that is in host memory is not written
            there.

    Attributes:
        private_tokens: KV of running requests that is not in the tree.
        blocked_s: time for which the scheduler has stood still for writes; the engine takes it.
    """

    def __init__(
        self,
        sizes: CacheSizes,
        engine: EngineModel,
        costs: CostModel,
        ranking: Ranking,
        *,
        uses_host: bool,
        cuts_victims: bool,
        refuses_backups: bool,
    ) -> None:
        page = sizes.page_tokens
        self.page_tokens = page
        self.device_capacity = sizes.device_tokens // page * page
        self.host_capacity = sizes.host_tokens // page * page if uses_host else 0
        self.has_host = self.host_capacity > 0
        self.storage: StorageTier | None = None
        if self.has_host and sizes.storage:
            self.storage = StorageTier(costs.fetch)
        self._fetching_host_tokens = 0
        # Nodes that are on the device and in host memory, oldest first. May name others too.
        self._duplicates: dict[Node, None] = {}
        self.ranking = ranking
        self.tree = RadixTree(page, self)
        self.device_leaves: EvictionIndex[Node] = EvictionIndex(ranking.key, _number)
        self.host_leaves: EvictionIndex[Node] = EvictionIndex(ranking.key, _number)
        self.observer: CacheObserver | None = None
        self.private_tokens = 0
        self.now_s = 0.0
        self.blocked_s = 0.0
        self.evicted_tokens = 0
        self.load_link = FifoLink(costs.load)
        self.write_link = FifoLink(costs.write)
        self.loads: deque[LoadUnderWay] = deque()
        self._writes: deque[_Write] = deque()
        self._queued: list[Node] = []
        self._queued_nodes: list[Node] = []
        self._queued_tokens = 0
        self._load_back_tokens = engine.load_back_tokens
        self._fetch_tokens = engine.fetch_tokens
        self._write_back = engine.write_policy == "write_back"
        self._write_after_hits = 1 if engine.write_policy == "write_through" else 2
        # A storage tier gives back long stretches only, so there nodes stay in one piece.
        self._cuts_victims = cuts_victims and self.storage is None
        self._refuses_backups = refuses_backups
        self._keeps_duplicates = self._write_back or self.storage is not None

    @property
    def free_tokens(self) -> int:
        """On the device."""
        return self.device_capacity - self.tree.device_tokens - self.private_tokens

    @property
    def free_host_tokens(self) -> int:
        return self.host_capacity - self.tree.host_tokens - self._fetching_host_tokens

    @property
    def evictable_tokens(self) -> int:
        """On the device, in the tree, and held by nobody."""
        return self.tree.device_tokens - self.tree.locked_tokens

    def split(self, upper: Node, lower: Node) -> None:
        if lower in self._duplicates:
            self._duplicates[upper] = None
        if self.observer is not None:
            self.observer.split(upper, lower)

    def leaf_changed(self, node: Node) -> None:
        if node is self.tree.root:
            return
        if node.device:
            if node.locks or node.device_children:
                self.device_leaves.discard(node)
            else:
                self.device_leaves.add(node)
            if self.has_host:
                self.host_leaves.discard(node)
            return
        self.device_leaves.discard(node)
        if self.has_host:
            if node.host and not node.locks and not node.children:
                self.host_leaves.add(node)
            else:
                self.host_leaves.discard(node)

    def rank_changed(self, node: Node) -> None:
        self.device_leaves.refresh(node)
        if self.has_host:
            self.host_leaves.refresh(node)

    def removed(self, node: Node) -> None:
        self._duplicates.pop(node, None)
        if self.observer is not None:
            self.observer.removed(node)

    def at(self, now_s: float) -> None:
        """Time has passed."""
        self.now_s = now_s
        for node in self.ranking.lowered(now_s):
            self.rank_changed(node)

    def reap(self) -> Landed:
        """Let go of what copies have held that are over by now. Done once in each step."""
        now_s = self.now_s
        while self._writes and self._writes[0].end_s <= now_s:
            self._written(self._writes.popleft())
        if not (self.loads or self.storage):
            return _NOTHING
        loads, fetches = [], []
        while self.loads and self.loads[0].copy.end_s <= now_s:
            load = self.loads.popleft()
            for node in load.anchors:
                self.tree.unlock(node)
            loads.append(load)
        storage = self.storage
        while storage and storage.fetches and storage.fetches[0].copy.end_s <= now_s:
            fetch = storage.fetches.popleft()
            self._fetching_host_tokens -= fetch.tokens
            self.tree.add_host(fetch.path, fetch.start, fetch.end)
            fetches.append(fetch)
        return Landed(loads, fetches)

    @property
    def next_landing_s(self) -> float | None:
        """When the next copy to or from the host is over; None if none is under way."""
        ends = []
        if self._writes:
            ends.append(self._writes[0].end_s)
        if self.loads:
            ends.append(self.loads[0].copy.end_s)
        if self.storage is not None and self.storage.fetches:
            ends.append(self.storage.fetches[0].copy.end_s)
        return min(ends, default=None)

    def make_room(self, tokens: int, below: EvictionKey | None = None) -> bool:
        """Evict until so many tokens are free on the device; whether they are.

        Args:
            below: touch only what ranks lower.
        """
        declined: list[Node] = []
        while (missing := tokens - self.free_tokens) > 0:
            victim = self.device_leaves.lowest()
            if victim is None or (below is not None and not self.ranking.key(victim) < below):
                break
            if not self._evict(self._cut(victim, missing)):
                self.device_leaves.discard(victim)
                declined.append(victim)
        for node in declined:
            self.leaf_changed(node)
        return tokens <= self.free_tokens

    def _cut(self, victim: Node, missing: int) -> Node:
        """What to give up of a victim: its tail, where KVFlow knows who needs the rest."""
        if self._cuts_victims and is_weighted(self.ranking.key(victim)):
            pieces = max(missing, MIN_SPLIT_TOKENS)
            keep = (len(victim) - pieces) // self.page_tokens * self.page_tokens
            if keep > 0:
                self.tree.split_quietly(victim, victim.start + keep)
        return victim

    def _evict(self, node: Node) -> bool:
        if self._write_back and self.has_host and not node.host:
            copy = self._backup(node)
            if copy is not None:
                # SGLang waits for this copy before it goes on.
                self.blocked_s = max(self.blocked_s, copy.end_s - self.now_s)
            elif not self._drop_below(node):
                return False
        self.evicted_tokens += len(node)
        if self.observer is not None:
            self.observer.left_device(node)
        if not node.host:
            self._drop_below(node)
        self.tree.drop_device(node)
        return True

    def _drop_below(self, node: Node) -> bool:
        """Drop the children of a node that goes without a copy, unless one of them is held."""
        below = [node]
        for each in below:
            below.extend(each.children.values())
        if any(each.locks for each in below):
            return False
        for each in reversed(below[1:]):
            self.tree.drop_host(each)
        return True

    def _backup(self, node: Node) -> Copy | None:
        """Copy a node to the host; None if there is no room for it."""
        tokens = len(node)
        # Where there is a storage tier the way to it leads through host memory: nothing is refused.
        refuses = self._refuses_backups and self.storage is None
        key = self.ranking.key(node) if refuses else None
        if not self._make_host_room(tokens, key):
            return None
        self.tree.set_host(node)
        if self._keeps_duplicates:
            self._duplicates[node] = None
        return self.write_link.submit(tokens, self.now_s)

    def _make_host_room(self, tokens: int, below: EvictionKey | None = None) -> bool:
        """Free host memory: copies of what is on the device too where SGLang or KVFlow says so."""
        drop_duplicates = self._write_back or (self.storage is not None and self._refuses_backups)
        while (missing := tokens - self.free_host_tokens) > 0:
            victim = self.host_leaves.lowest()
            if drop_duplicates and (
                self._write_back or victim is None or is_weighted(self.ranking.key(victim))
            ):
                drop_duplicates = False
                self._drop_duplicates(tokens)
                continue
            if victim is None or (below is not None and not self.ranking.key(victim) < below):
                return False
            self.tree.drop_host(self._cut(victim, missing))
        return True

    def _drop_duplicates(self, tokens: int) -> None:
        """Free host copies of what is on the device, children first, until ``tokens`` are free."""
        progress = True
        while progress and self.free_host_tokens < tokens:
            progress = False
            for node in reversed(tuple(self._duplicates)):
                if not (node.device and node.host):
                    del self._duplicates[node]
                elif not node.locks and not any(c.host for c in node.children.values()):
                    del self._duplicates[node]
                    self.tree.drop_host(node)
                    progress = True
                    if self.free_host_tokens >= tokens:
                        return

    @property
    def host_duplicate_tokens(self) -> int:
        """Host tokens that are on the device as well and could be dropped. O(duplicates)."""
        return sum(
            len(node) for node in self._duplicates if node.device and node.host and not node.locks
        )

    def _written(self, write: _Write) -> None:
        """A copy to the host is over; from there it goes on to storage."""
        self.tree.unlock(write.node)
        if self.storage is not None:
            self.storage.store(write.node.prefix, write.start, write.node.end)

    def fetch(
        self,
        path: Path,
        limit: int,
        *,
        request: str | None = None,
        owner: int | None = None,
        below: EvictionKey | None = None,
    ) -> Fetch | None:
        """Start bringing the first ``limit`` tokens of a path from storage to the host.

        Nothing happens if too little is missing, stored, or would find room in host memory.
        """
        storage = self.storage
        if storage is None:
            return None
        start = 0
        node = self.tree.root
        for child, shared in self.tree.walk(path, limit):
            if shared < child.end or not (child.host or child.device):
                break
            start, node = shared, child
        if limit - start < self._fetch_tokens:
            return None
        end = storage.reach(path, start, limit)
        if end - start < self._fetch_tokens:
            return None
        self.tree.lock(node)
        room = self._make_host_room(end - start, below)
        self.tree.unlock(node)
        if not room:
            return None
        self._fetching_host_tokens += end - start
        return storage.fetch(
            path,
            start,
            end,
            wanted_tokens=limit - start,
            now_s=self.now_s,
            request=request,
            owner=owner,
        )

    def cancel_fetch(self, owner: int) -> int:
        """Give up a fetch made ahead; how many tokens."""
        fetch = None if self.storage is None else self.storage.cancel(owner)
        if fetch is None:
            return 0
        self._fetching_host_tokens -= fetch.tokens
        return fetch.tokens

    def match(self, path: Path, limit: int) -> Match:
        """Find the longest cached beginning, and note that it was read."""
        return self.tree.match(path, limit)

    def insert(self, path: Path, end: int, priority: int, counted_from: int) -> Inserted:
        """Put computed KV into the tree; copies to the host what is due for that."""
        inserted = self.tree.insert(path, end, priority, counted_from)
        if self._write_back:
            # Nothing is counted there: SGLang, ``_inc_hit_count_and_check``.
            return inserted
        for node in inserted.counted:
            node.hits += 1
            if self.has_host and not node.host and node.hits >= self._write_after_hits:
                self._write_through(node)
        return inserted

    def _write_through(self, node: Node) -> None:
        chain = []
        each = node
        while each is not self.tree.root and not each.host:
            chain.append(each)
            each = each.parent
        for one in reversed(chain):
            # Held while room is made for it, as a leaf of the host tier may hang from it.
            self.tree.lock(one)
            copy = self._backup(one)
            if copy is None:
                self.tree.unlock(one)
                return
            self._writes.append(_Write(copy.end_s, one, one.start))

    def load_back(self, node: Node, below: EvictionKey | None = None) -> int:
        """Queue the load of a node and of what it hangs from; how many tokens, 0 if refused."""
        missing = []
        tokens = 0
        each = node
        while not each.device:
            missing.append(each)
            tokens += len(each)
            each = each.parent
        if tokens < max(1, self._load_back_tokens):
            return 0
        self.tree.lock(node)
        if not self.make_room(tokens, below):
            self.tree.unlock(node)
            return 0
        for each in reversed(missing):
            self.tree.set_device(each)
            if self._keeps_duplicates:
                self._duplicates[each] = None
        self._queued.append(node)
        self._queued_nodes += missing
        self._queued_tokens += tokens
        return tokens

    @property
    def load_queued(self) -> bool:
        return bool(self._queued)

    def start_loads(self) -> LoadUnderWay | None:
        """Start what is queued, as one copy."""
        if not self._queued:
            return None
        copy = self.load_link.submit(self._queued_tokens, self.now_s)
        for node in self._queued_nodes:
            node.loading_until_s = copy.end_s
        load = LoadUnderWay(copy, self._queued)
        self.loads.append(load)
        self._queued, self._queued_nodes, self._queued_tokens = [], [], 0
        return load

    def reclaimable_tokens(self, key: EvictionKey, wanted: int) -> int:
        """Device tokens that can be evicted without touching what ranks at or above ``key``.

        Stops at ``wanted``. As ``kvflow.sglang_plugin.tree.KVFlowTreeCore`` does it.
        """
        found = 0
        rank = self.ranking.key
        for leaf in self.device_leaves.below(key):
            if not rank(leaf) < key:
                continue
            node = leaf
            while True:
                found += len(node)
                if found >= wanted:
                    return wanted
                parent = node.parent
                if (
                    parent is self.tree.root
                    or parent.device_children > 1
                    or parent.locks
                    or not rank(parent) < key
                ):
                    break
                node = parent
        return found

    def host_room(self, key: EvictionKey) -> int:
        """Host tokens that are free, on the device as well, or hold what ranks below ``key``."""
        below = sum(len(node) for node in self.host_leaves.below(key))
        return self.free_host_tokens + self.host_duplicate_tokens + below


def path_above(node: Node) -> Iterable[Node]:
    """The nodes from this one up to the root, without the root."""
    while node.parent is not node:
        yield node
        node = node.parent


def _number(node: Node) -> int:
    return node.number
