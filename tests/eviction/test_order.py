import itertools
import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.eviction import EvictionKey, NodeKind, eviction_key, is_weighted

NEVER = math.inf
KINDS: tuple[NodeKind, ...] = ("prefix", "history", "suffix", "unknown")


class Node(NamedTuple):
    kind: NodeKind
    steps: float
    depth_tokens: int
    recency: float

    @property
    def key(self) -> EvictionKey:
        return eviction_key(*self)

    @property
    def is_weighted(self) -> bool:
        return self.kind in ("prefix", "history") and self.steps != NEVER


FIRST_TO_LAST = [
    # Weightless: by recency alone, whatever the kind and the depth.
    Node("suffix", NEVER, 10, 1),
    Node("unknown", NEVER, 900, 2),
    Node("prefix", NEVER, 5000, 3),
    Node("history", NEVER, 1, 4),
    Node("unknown", 0, 700, 5),
    Node("suffix", 0, 800, 6),
    Node("unknown", NEVER, 20, 10**9),
    # Weighted: larger steps first, although used just now.
    Node("prefix", 1_000_000, 1, 10**9),
    Node("history", 9, 100, 10**9),
    # Deeper first at equal steps, although used just now.
    Node("prefix", 4, 300, 10**9),
    Node("history", 4, 299, 50),
    # The less recently used at equal steps and depth, whatever the kind.
    Node("history", 4, 200, 7),
    Node("prefix", 4, 200, 8),
    Node("history", 4, 200, 9),
    Node("prefix", 4, 100, 1),
    Node("prefix", 1, 900, 1),
    Node("history", 0, 9000, 0),
]


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(FIRST_TO_LAST)))
def test_the_order_by_example(first: Node, second: Node) -> None:
    assert first.key < second.key
    assert not second.key < first.key


def test_any_mixture_sorts_into_the_order_by_example() -> None:
    assert sorted(reversed(FIRST_TO_LAST), key=lambda node: node.key) == FIRST_TO_LAST


@pytest.mark.parametrize("node", FIRST_TO_LAST)
def test_a_key_tells_whether_a_live_workflow_stands_behind_it(node: Node) -> None:
    assert is_weighted(node.key) == node.is_weighted


@pytest.mark.parametrize("kind", ["suffix", "unknown"])
def test_steps_and_depth_do_not_count_for_suffixes_and_unknown_nodes(kind: NodeKind) -> None:
    assert eviction_key(kind, 0, 10, 5.0) == eviction_key(kind, NEVER, 999, 5.0)


NODES = st.builds(
    Node,
    kind=st.sampled_from(KINDS),
    steps=st.one_of(st.integers(0, 3), st.just(NEVER)),
    depth_tokens=st.integers(1, 4),
    recency=st.one_of(st.integers(0, 4), st.floats(0, 4)),
)


def goes_before(a: Node, b: Node) -> bool:
    """The rules, one after the other, as the docstring states them."""
    if a.is_weighted != b.is_weighted:
        return b.is_weighted
    if a.is_weighted:
        if a.steps != b.steps:
            return a.steps > b.steps
        if a.depth_tokens != b.depth_tokens:
            return a.depth_tokens > b.depth_tokens
    return a.recency < b.recency


@given(NODES, NODES)
def test_keys_compare_as_the_rules_say(a: Node, b: Node) -> None:
    assert (a.key < b.key) == goes_before(a, b)
    assert (a.key == b.key) == (not goes_before(a, b) and not goes_before(b, a))


@given(NODES, NODES, NODES)
def test_the_order_is_total(a: Node, b: Node, c: Node) -> None:
    assert (a.key < b.key) + (a.key == b.key) + (b.key < a.key) == 1
    if a.key <= b.key <= c.key:
        assert a.key <= c.key
    if a.key == b.key:
        assert (a.key < c.key) == (b.key < c.key)


WEIGHTLESS = NODES.filter(lambda node: not node.is_weighted)


@given(st.lists(WEIGHTLESS))
def test_without_weights_it_is_lru(nodes: list[Node]) -> None:
    by_key = sorted(nodes, key=lambda node: node.key)
    assert by_key == sorted(nodes, key=lambda node: node.recency)


@given(st.lists(NODES))
def test_all_weightless_nodes_go_before_any_weighted_one(nodes: list[Node]) -> None:
    weighted = [node.is_weighted for node in sorted(nodes, key=lambda node: node.key)]
    assert weighted == sorted(weighted)
