import math
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvflow.eviction import NodeKind, Owner, OwnershipMap

NEVER = math.inf


def owned(
    *path: str, kind: Literal["prefix", "history"] = "prefix", steps: float = 1
) -> tuple[OwnershipMap[str], Owner[str]]:
    owners: OwnershipMap[str] = OwnershipMap()
    owner: Owner[str] = Owner(kind, steps)
    owners.assign(owner, path)
    return owners, owner


def test_what_no_workflow_brought_is_unknown() -> None:
    owners: OwnershipMap[str] = OwnershipMap()
    owners.mark_seen(["seen"])
    assert owners.rank("never heard of") == ("unknown", NEVER)
    assert owners.rank("seen") == ("suffix", NEVER)


def test_being_seen_again_takes_nothing_from_an_owner() -> None:
    owners, _ = owned("a", steps=2)
    owners.mark_seen(["a"])
    assert owners.rank("a") == ("prefix", 2)


def test_an_owner_without_steps_still_says_what_the_node_is() -> None:
    owners, _ = owned("a", kind="history", steps=NEVER)
    assert owners.rank("a") == ("history", NEVER)


def test_steps_are_read_when_asked() -> None:
    owners, owner = owned("a", steps=5)
    owner.steps = 2
    assert owners.rank("a") == ("prefix", 2)


@pytest.mark.parametrize(
    ("prefix_steps", "history_steps", "expected"),
    [
        (3, 2, ("history", 2)),
        (2, 3, ("prefix", 2)),
        (2, 2, ("prefix", 2)),
        (NEVER, 4, ("history", 4)),
        (NEVER, NEVER, ("prefix", NEVER)),
    ],
)
@pytest.mark.parametrize("history_first", [True, False])
def test_the_nearest_owner_counts_and_a_prefix_at_a_tie(
    prefix_steps: float,
    history_steps: float,
    expected: tuple[NodeKind, float],
    history_first: bool,
) -> None:
    owners: OwnershipMap[str] = OwnershipMap()
    both = [Owner[str]("prefix", prefix_steps), Owner[str]("history", history_steps)]
    for owner in reversed(both) if history_first else both:
        owners.assign(owner, ["a"])
    owners.assign(Owner("history", NEVER), ["a"])
    assert owners.rank("a") == expected


def test_assign_returns_just_the_nodes_that_changed() -> None:
    owners: OwnershipMap[str] = OwnershipMap()
    owner: Owner[str] = Owner("prefix", 1)
    assert owners.assign(owner, iter(["a", "b"])) == {"a", "b"}
    assert owners.assign(owner, ["a", "b"]) == set()
    assert owners.assign(owner, ["a", "b", "c"]) == {"c"}
    assert owners.assign(owner, ["a", "d"]) == {"b", "c", "d"}
    assert owner.nodes == {"a", "d"}
    assert owners.assign(owner, ()) == {"a", "d"}
    assert owner.nodes == set()


def test_what_an_owner_leaves_falls_to_the_others_or_becomes_a_suffix() -> None:
    owners, near = owned("a", "b", steps=1)
    owners.assign(Owner("history", 7), ["a"])
    owners.assign(near, ())
    assert owners.rank("a") == ("history", 7)
    assert owners.rank("b") == ("suffix", NEVER)


def test_both_halves_of_a_split_keep_the_owners() -> None:
    owners, prefix = owned("a", "b", steps=3)
    history: Owner[str] = Owner("history", 2)
    owners.assign(history, ["a", "b"])
    owners.split("upper", "b")
    assert owners.rank("upper") == owners.rank("b") == ("history", 2)
    assert prefix.nodes == history.nodes == {"a", "upper", "b"}


def test_the_halves_go_separate_ways_afterwards() -> None:
    owners, owner = owned("a", "b", steps=3)
    owners.split("upper", "b")
    assert owners.assign(owner, ["a", "upper"]) == {"b"}
    assert owners.rank("upper") == ("prefix", 3)
    assert owners.rank("b") == ("suffix", NEVER)
    owners.assign(Owner("history", 1), ["b"])
    assert owners.rank("upper") == ("prefix", 3)


def test_splitting_keeps_suffixes_suffixes_and_unknown_nodes_unknown() -> None:
    owners: OwnershipMap[str] = OwnershipMap()
    owners.mark_seen(["suffix"])
    owners.split("upper suffix", "suffix")
    owners.split("upper unknown", "unknown")
    assert owners.rank("upper suffix") == ("suffix", NEVER)
    assert owners.rank("upper unknown") == owners.rank("unknown") == ("unknown", NEVER)


def test_forgetting_releases_the_node_on_both_sides() -> None:
    owners, owner = owned("a", "b", steps=3)
    owners.forget("b")
    owners.forget("b")
    owners.forget("never heard of")
    assert owner.nodes == {"a"}
    assert owners.rank("b") == ("unknown", NEVER)
    assert len(owners) == 1
    assert owners.assign(owner, ["a", "b"]) == {"b"}
    assert owners.rank("b") == ("prefix", 3)


class Node:
    """A node of a radix tree over strings: holds the characters from ``start`` to ``end``."""

    def __init__(self, parent: "Node | None", text: str, start: int) -> None:
        self.parent = parent
        self.text = text
        self.start = start
        self.children: dict[str, Node] = {}

    def __repr__(self) -> str:
        return f"Node({self.text[: self.start]}|{self.text[self.start :]})"

    @property
    def cells(self) -> set[str]:
        """The places in the tree that this node holds, each named by the text that leads there."""
        return {self.text[:end] for end in range(self.start + 1, len(self.text) + 1)}


class OwnershipMachine(RuleBasedStateMachine):
    """A radix tree that splits and loses leaves, against a model that knows no nodes.

    The model keeps owners per character instead, where there is nothing to split.
    """

    texts = st.text("ab", min_size=1, max_size=7)
    owner_numbers = st.integers(0, 4)

    @initialize()
    def begin(self) -> None:
        self.root = Node(None, "", 0)
        self.ownership: OwnershipMap[Node] = OwnershipMap()
        self.owners: list[Owner[Node]] = [
            Owner("history" if number % 2 else "prefix") for number in range(5)
        ]
        self.seen: set[str] = set()
        self.cells_of: list[set[str]] = [set() for _ in self.owners]

    @rule(text=texts, by_a_workflow=st.booleans())
    def insert(self, text: str, by_a_workflow: bool) -> None:
        path = self.walk(text)
        at = path[-1] if path else self.root
        if len(at.text) < len(text):
            leaf = Node(at, text, len(at.text))
            at.children[text[len(at.text)]] = leaf
            path.append(leaf)
        if by_a_workflow:
            self.ownership.mark_seen(path)
            self.seen |= cells(path)

    @rule(number=owner_numbers, text=texts)
    def assign(self, number: int, text: str) -> None:
        path = self.walk(text)
        new = cells(path)
        changed = self.ownership.assign(self.owners[number], path)
        differing = self.cells_of[number] ^ new
        assert changed == {node for node in self.nodes() if node.cells & differing}
        self.cells_of[number] = new
        self.seen |= new

    @rule(number=owner_numbers)
    def release(self, number: int) -> None:
        self.ownership.assign(self.owners[number], ())
        self.cells_of[number] = set()

    @rule(number=owner_numbers, steps=st.one_of(st.integers(0, 3), st.just(NEVER)))
    def set_steps(self, number: int, steps: float) -> None:
        self.owners[number].steps = steps

    @rule(choice=st.integers(0, 50))
    def lose_a_leaf(self, choice: int) -> None:
        leaves = [node for node in self.nodes() if not node.children]
        if not leaves:
            return
        leaf = leaves[choice % len(leaves)]
        assert leaf.parent is not None
        del leaf.parent.children[leaf.text[leaf.start]]
        self.ownership.forget(leaf)
        self.seen -= leaf.cells
        for owned_cells in self.cells_of:
            owned_cells.difference_update(leaf.cells)

    def walk(self, text: str) -> list[Node]:
        """The nodes that hold ``text`` as far as it is in the tree; the last is split to fit."""
        path: list[Node] = []
        at = self.root
        while len(at.text) < len(text) and text[len(at.text)] in at.children:
            at = at.children[text[len(at.text)]]
            shared = next(
                (i for i in range(at.start, min(len(at.text), len(text))) if at.text[i] != text[i]),
                min(len(at.text), len(text)),
            )
            if shared < len(at.text):
                at = self.split(at, shared)
                path.append(at)
                break
            path.append(at)
        return path

    def split(self, lower: Node, end: int) -> Node:
        assert lower.parent is not None
        upper = Node(lower.parent, lower.text[:end], lower.start)
        lower.parent.children[lower.text[lower.start]] = upper
        upper.children[lower.text[end]] = lower
        lower.parent, lower.start = upper, end
        self.ownership.split(upper, lower)
        return upper

    def nodes(self) -> Iterator[Node]:
        open_nodes = list(self.root.children.values())
        while open_nodes:
            node = open_nodes.pop()
            yield node
            open_nodes += node.children.values()

    def expected_rank(self, cell: str) -> tuple[NodeKind, float]:
        if cell not in self.seen:
            return ("unknown", NEVER)
        nearest: tuple[NodeKind, float] = ("suffix", NEVER)
        for wanted in ("history", "prefix"):  # the later wins a tie
            for owner, owned_cells in zip(self.owners, self.cells_of, strict=True):
                if owner.kind == wanted and cell in owned_cells and owner.steps <= nearest[1]:
                    nearest = (owner.kind, owner.steps)
        return nearest

    @invariant()
    def agrees(self) -> None:
        nodes = list(self.nodes())
        for node in nodes:
            for cell in node.cells:
                assert self.ownership.rank(node) == self.expected_rank(cell)
        for owner, owned_cells in zip(self.owners, self.cells_of, strict=True):
            assert cells(owner.nodes) == owned_cells
            assert owner.nodes <= set(nodes)

    @invariant()
    def remembers_only_nodes_of_the_tree(self) -> None:
        assert len(self.ownership) == sum(1 for node in self.nodes() if node.text in self.seen)


def cells(nodes: list[Node] | set[Node]) -> set[str]:
    return {cell for node in nodes for cell in node.cells}


TestOwnershipMachine = OwnershipMachine.TestCase
TestOwnershipMachine.settings = settings(max_examples=60, stateful_step_count=30)
