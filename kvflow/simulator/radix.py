"""A radix tree of prompts, as SGLang keeps one, that knows lengths and tiers and no token ids.

A node is a stretch of whole pages, up to where prompts part, a prompt ends, or a chunk was cut.
Matching, splitting, locking and what counts as a leaf are those of SGLang's
``UnifiedTreeCore`` (0.5.23); who evicts which leaf is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from kvflow.simulator.prefixes import Path, Prefix

__all__ = ["Inserted", "Match", "Node", "RadixTree", "TreeWatcher"]


class Node:
    """A stretch of pages.

    Attributes:
        parent: the node above; the root is its own.
        first: the prefix that its first page ends in: its key among its siblings.
        prefix: the prefix that its last page ends in.
        start: its beginning, in tokens from the root.
        end: its end, likewise.
        locks: how many running requests and copies hold it on the device.
        device_children: how many of its children are on the device.
        recency: grows with every access.
        hits: how many requests have inserted it.
        loading_until_s: when its copy to the device is over; 0 if none is under way.
    """

    __slots__ = (
        "children",
        "device",
        "device_children",
        "end",
        "first",
        "hits",
        "host",
        "loading_until_s",
        "locks",
        "number",
        "parent",
        "pinned_until_s",
        "prefix",
        "priority",
        "recency",
        "start",
    )

    def __init__(
        self, parent: Node | None, first: Prefix, prefix: Prefix, start: int, end: int
    ) -> None:
        self.parent = self if parent is None else parent
        self.first = first
        self.prefix = prefix
        self.start = start
        self.end = end
        self.children: dict[Prefix, Node] = {}
        self.device = False
        self.host = False
        self.device_children = 0
        self.locks = 0
        self.recency = 0.0
        self.hits = 0
        self.priority = 0
        self.number = 0
        self.loading_until_s = 0.0
        self.pinned_until_s = 0.0

    def __len__(self) -> int:
        return self.end - self.start

    def __bool__(self) -> bool:
        return True


class TreeWatcher(Protocol):
    """Told of what happens to nodes."""

    def split(self, upper: Node, lower: Node) -> None:
        """``upper`` is new, above ``lower``."""

    def leaf_changed(self, node: Node) -> None:
        """Whether the node can be evicted, from either tier, may have changed."""

    def rank_changed(self, node: Node) -> None:
        """The node may be worth less than before."""

    def removed(self, node: Node) -> None:
        """The node has left the tree."""


class Match(NamedTuple):
    """How much of a prompt is in the cache.

    Attributes:
        device_node: the last node that is on the device.
        best_node: the last node that is on the device or in host memory.
    """

    device_node: Node
    best_node: Node

    @property
    def device_tokens(self) -> int:
        return self.device_node.end

    @property
    def host_tokens(self) -> int:
        return self.best_node.end - self.device_node.end


class Inserted(NamedTuple):
    """What an insertion found.

    Attributes:
        node: the last node of the path.
        adopted: tokens that the tree took over; the others were on the device already.
        counted: nodes that this insertion has used once more, from the root down.
    """

    node: Node
    adopted: int
    counted: list[Node]


class RadixTree:
    """The tree. All lengths are in tokens and multiples of a page.

    Attributes:
        device_tokens: tokens of all nodes on the device.
        host_tokens: tokens of all nodes in host memory.
        locked_tokens: tokens on the device that are locked.
    """

    def __init__(self, page_tokens: int, watcher: TreeWatcher) -> None:
        self.page_tokens = page_tokens
        self.watcher = watcher
        nothing = Prefix(None, 0, 0, page_tokens)
        self.root = Node(None, nothing, nothing, 0, 0)
        self.root.device = True
        self.root.locks = 1
        self.device_tokens = 0
        self.host_tokens = 0
        self.locked_tokens = 0
        self.nodes = 0
        self._clock = 0

    def tick(self) -> int:
        """The next value of the counter that stands for time of access."""
        self._clock += 1
        return self._clock

    def walk(self, path: Path, limit: int) -> Iterator[tuple[Node, int]]:
        """The nodes on the way of ``path``, and where each ends to be on it. Changes nothing."""
        page = self.page_tokens
        node = self.root
        at = 0
        i = 0
        while at < limit:
            first_end = at + page
            while path[i].aligned < first_end:
                i += 1
            child = node.children.get(path[i])
            if child is None:
                return
            shared = self._shared(child, path, limit)
            yield child, shared
            if shared < child.end:
                return
            at = shared
            node = child

    @staticmethod
    def _shared(node: Node, path: Path, limit: int) -> int:
        """How far the node, whose first page is on the path, stays on it."""
        prefix: Prefix | None = node.prefix
        depth = len(path)
        end = node.end
        while prefix is not None and not (prefix.depth < depth and path[prefix.depth] is prefix):
            prefix = prefix.parent
            end = 0 if prefix is None else prefix.aligned
        return end if end < limit else limit

    def match(self, path: Path, limit: int) -> Match:
        """Find the longest cached beginning, and note that it was read."""
        device_node = best_node = self.root
        for child, shared in self.walk(path, limit):
            if not (child.device or child.host):
                break
            node = self.split(child, shared) if shared < child.end else child
            if node.device:
                device_node = node
            best_node = node
        recency: float = self.tick()
        node = best_node
        while True:
            node.recency = recency
            if node is self.root:
                break
            recency -= 0.00001
            node = node.parent
        return Match(device_node, best_node)

    def insert(self, path: Path, end: int, priority: int, counted_from: int) -> Inserted:
        """Put the first ``end`` tokens of ``path``, just computed, into the tree.

        Args:
            counted_from: nodes that end later than this count the insertion as a use.
        """
        root = self.root
        root.recency = self.tick()
        root.priority = max(root.priority, priority)
        node = root
        adopted = 0
        counted: list[Node] = []
        for child, shared in self.walk(path, end):
            child.recency = self.tick()
            node = self.split(child, shared) if shared < child.end else child
            node.priority = max(node.priority, priority)
            if not node.device:
                adopted += len(node)
                self.set_device(node)
            if node.end > counted_from:
                counted.append(node)
        if node.end < end:
            leaf = self._add(node, path, end, priority)
            adopted += len(leaf)
            if end > counted_from:
                counted.append(leaf)
            node = leaf
        return Inserted(node, adopted, counted)

    def _add(self, parent: Node, path: Path, end: int, priority: int) -> Node:
        leaf = self._leaf(parent, path, end)
        leaf.priority = priority
        self.set_device(leaf)
        return leaf

    def _leaf(self, parent: Node, path: Path, end: int) -> Node:
        """A new node below ``parent``, nowhere yet."""
        last = path[-1].holding(end)
        first = last.holding(parent.end + self.page_tokens)
        leaf = Node(parent, first, last, parent.end, end)
        leaf.recency = self.tick()
        leaf.number = self._clock
        parent.children[first] = leaf
        self.nodes += 1
        return leaf

    def add_host(self, path: Path, start: int, end: int) -> None:
        """Put what came from storage, from ``start`` to ``end``, into host memory.

        What it was to hang from may have gone meanwhile; then it is dropped.
        """
        node = self.root
        found = []
        for child, shared in self.walk(path, end):
            node = self.split_quietly(child, shared) if shared < child.end else child
            if not node.host and node.start >= start:
                found.append(node)
            elif not (node.host or node.device):
                return
        if node.end < start:
            return
        for each in found:
            self.set_host(each)
        if node.end < end:
            leaf = self._leaf(node, path, end)
            leaf.priority = node.priority
            self.set_host(leaf)
            self.watcher.leaf_changed(node)

    def split(self, lower: Node, at: int) -> Node:
        """Cut a node in two; returns the new node above. Counts as an access, as in SGLang."""
        parent = lower.parent
        upper = Node(parent, lower.first, lower.prefix.holding(at), lower.start, at)
        upper.recency = self.tick()
        upper.number = self._clock
        upper.device = lower.device
        upper.host = lower.host
        upper.locks = lower.locks
        upper.hits = lower.hits
        upper.priority = lower.priority
        upper.loading_until_s = lower.loading_until_s
        upper.pinned_until_s = lower.pinned_until_s
        upper.device_children = int(lower.device)
        parent.children[lower.first] = upper
        lower.parent = upper
        lower.start = at
        lower.first = lower.prefix.holding(at + self.page_tokens)
        lower.recency = self.tick()
        upper.children[lower.first] = lower
        self.nodes += 1
        self.watcher.split(upper, lower)
        self.watcher.leaf_changed(upper)
        self.watcher.leaf_changed(lower)
        return upper

    def split_quietly(self, lower: Node, at: int) -> Node:
        """Cut a node in two without touching recency."""
        recency = lower.recency
        upper = self.split(lower, at)
        upper.recency = lower.recency = recency
        self.watcher.rank_changed(upper)
        self.watcher.rank_changed(lower)
        return upper

    def nodes_of(self, path: Path, end: int) -> list[Node]:
        """The nodes that hold the first ``end`` tokens, as far as they are in the tree.

        Splits the last one where the path ends within it. Touches no recency.
        """
        return [
            self.split_quietly(child, shared) if shared < child.end else child
            for child, shared in self.walk(path, end)
        ]

    def set_device(self, node: Node) -> None:
        """The node is on the device from now on."""
        parent = node.parent
        node.device = True
        self.device_tokens += node.end - node.start
        if node.locks:
            self.locked_tokens += node.end - node.start
        parent.device_children += 1
        self.watcher.leaf_changed(node)
        self.watcher.leaf_changed(parent)

    def drop_device(self, node: Node) -> None:
        """The node leaves the device, and the tree if it is nowhere else."""
        parent = node.parent
        node.device = False
        self.device_tokens -= node.end - node.start
        if node.locks:
            self.locked_tokens -= node.end - node.start
        parent.device_children -= 1
        self.watcher.leaf_changed(node)
        self.watcher.leaf_changed(parent)
        self._prune(node)

    def set_host(self, node: Node) -> None:
        """The node is in host memory from now on."""
        node.host = True
        self.host_tokens += node.end - node.start
        self.watcher.leaf_changed(node)

    def drop_host(self, node: Node) -> None:
        """The node leaves host memory, and the tree if it is nowhere else."""
        node.host = False
        self.host_tokens -= node.end - node.start
        self.watcher.leaf_changed(node)
        self._prune(node)

    def _prune(self, node: Node) -> None:
        """Take nodes out of the tree that are nowhere, from this one up."""
        while not (node.device or node.host or node.children or node.locks):
            parent = node.parent
            del parent.children[node.first]
            self.nodes -= 1
            self.watcher.removed(node)
            self.watcher.leaf_changed(parent)
            node = parent

    def lock(self, node: Node) -> None:
        """Keep everything from the root to the node where it is."""
        while node is not self.root:
            if node.locks == 0:
                node.locks = 1
                if node.device:
                    self.locked_tokens += node.end - node.start
                self.watcher.leaf_changed(node)
            else:
                node.locks += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one ``lock``."""
        while node is not self.root:
            node.locks -= 1
            if node.locks == 0:
                if node.device:
                    self.locked_tokens -= node.end - node.start
                self.watcher.leaf_changed(node)
            node = node.parent
