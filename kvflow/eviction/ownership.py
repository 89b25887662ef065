"""Who will read a node of the radix tree: the link between agents and nodes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, Literal, TypeVar

from kvflow.eviction.order import NodeKind
from kvflow.graph import INFINITE_STEPS

__all__ = ["Owner", "OwnershipMap"]

N = TypeVar("N", bound=Hashable)


class Owner(Generic[N]):
    """Something that will read one path of the tree again: an agent, or an agent's conversation.

    Attributes:
        kind: ``prefix`` for an agent's fixed prompt, ``history`` for a conversation.
        steps: its steps-to-execution now.
        due_s: when it is expected to read the path, on some clock, if the order goes by time; None
            if it goes by steps. Either all owners have one or none has.
        number: tells owners apart by a plain value, for messages between ranks.
        nodes: the nodes of its path. They form one chain from the root, so at any time at most
            one of them is a leaf of a tier.
    """

    __slots__ = ("due_s", "kind", "nodes", "number", "steps")

    def __init__(
        self,
        kind: Literal["prefix", "history"],
        steps: float = INFINITE_STEPS,
        number: int = 0,
    ) -> None:
        self.kind = kind
        self.steps = steps
        self.number = number
        self.due_s: float | None = None
        self.nodes: set[N] = set()

    @property
    def order(self) -> float:
        """What the eviction order compares: the due time, or the steps."""
        return self.steps if self.due_s is None else self.due_s


class OwnershipMap(Generic[N]):
    """Owners per node. Survives splits; forgets nodes that leave the tree.

    Not thread-safe: it belongs to the thread that owns the tree.
    """

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        self._owners: dict[N, set[Owner[N]]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def mark_seen(self, nodes: Iterable[N]) -> None:
        """Note that a request of some workflow brought these nodes (else they are unknown)."""
        for node in nodes:
            self._owners.setdefault(node, set())

    def assign(self, owner: Owner[N], path: Iterable[N]) -> set[N]:
        """Make ``path`` the path of ``owner``, in place of the one it had.

        Returns:
            The nodes whose rank may have changed. O(old path + new path).
        """
        new = set(path)
        left = owner.nodes - new
        joined = new - owner.nodes
        for node in left:
            self._owners[node].discard(owner)
        for node in joined:
            self._owners.setdefault(node, set()).add(owner)
        owner.nodes = new
        return left | joined

    def split(self, upper: N, lower: N) -> None:
        """``lower`` was split and ``upper`` is the new node above it: it has the same owners."""
        owners = self._owners.get(lower)
        if owners is not None:
            self._owners[upper] = set(owners)
            for owner in owners:
                owner.nodes.add(upper)

    def forget(self, node: N) -> None:
        """``node`` left the tree."""
        for owner in self._owners.pop(node, ()):
            owner.nodes.discard(node)

    def rank(self, node: N) -> tuple[NodeKind, float]:
        """What the node is and the order that counts: the minimum over its owners."""
        owners = self._owners.get(node)
        if not owners:
            return ("unknown" if owners is None else "suffix", INFINITE_STEPS)
        if len(owners) == 1:
            (nearest,) = owners
        else:
            nearest = min(owners, key=_by_order_prefix_first)
        return (nearest.kind, nearest.order)


def _by_order_prefix_first(owner: Owner[N]) -> tuple[float, bool]:
    return (owner.order, owner.kind == "history")
