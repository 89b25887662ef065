"""The tree of pieces against plain sets of pages of token ids."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvflow.simulator.prefixes import PrefixPool
from kvflow.simulator.radix import Node, RadixTree
from kvflow.workload import Piece


class Silent:
    """Nobody watches."""

    def split(self, upper: Node, lower: Node) -> None: ...
    def leaf_changed(self, node: Node) -> None: ...
    def rank_changed(self, node: Node) -> None: ...
    def removed(self, node: Node) -> None: ...


LENGTHS = {"a": 3, "b": 5, "c": 1, "d": 8}
PROMPTS = st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=10)


def pieces(text: str) -> list[Piece]:
    return [Piece(key, LENGTHS[key]) for key in text]


def tokens(text: str) -> list[Any]:
    return [(key, n) for key in text for n in range(LENGTHS[key])]


@given(PROMPTS, st.sampled_from([1, 2, 4]), st.integers(0, 6))
def test_it_finds_what_plain_token_ids_would(texts: list[str], page: int, cut: int) -> None:
    pool, tree = PrefixPool(page), RadixTree(page, Silent())
    cached: set[tuple[Any, ...]] = set()
    for text in texts:
        path = pool.path(pieces(text))
        prompt = tokens(text)
        assert path[-1].tokens == len(prompt)
        limit = max(0, len(prompt) - cut) // page * page
        found = 0
        while found + page <= limit and tuple(prompt[: found + page]) in cached:
            found += page
        match = tree.match(path, limit)
        assert match.device_tokens == found
        assert match.host_tokens == 0
        inserted = tree.insert(path, limit, 0, 0)
        new = {tuple(prompt[:end]) for end in range(page, limit + 1, page)} - cached
        assert inserted.adopted == page * len(new)
        assert inserted.node.end == limit
        cached |= new
        assert tree.device_tokens == page * len(cached)
        nodes = tree.nodes_of(path, limit)
        assert sum(map(len, nodes)) == limit


def test_equal_beginnings_are_one_object_for_as_long_as_someone_has_them() -> None:
    pool = PrefixPool(4)
    one, other = pool.path(pieces("abc")), pool.path(pieces("abd"))
    assert one[:2] == other[:2]
    assert one[2] is not other[2]
    assert pool.path(pieces("c"), one[:2]) == one
    assert len(pool) == 4
    del other
    assert len(pool) == 3
    identity = one[2].identity
    del one
    assert len(pool) == 0
    assert pool.path(pieces("abc"))[2].identity == identity


def test_splits_part_where_prompts_do_in_whole_pages() -> None:
    pool, tree = PrefixPool(4), RadixTree(4, Silent())
    first, second = pool.path(pieces("ddab")), pool.path(pieces("dda"))
    tree.insert(first, 24, 0, 0)
    assert tree.nodes == 1
    assert tree.match(second, 16).device_tokens == 16
    assert [(node.start, node.end) for node, _ in tree.walk(first, 24)] == [(0, 16), (16, 24)]


def test_a_node_keeps_the_highest_priority_and_counts_its_insertions() -> None:
    pool, tree = PrefixPool(1), RadixTree(1, Silent())
    path, other = pool.path(pieces("ab")), pool.path(pieces("ac"))
    tree.insert(path, 8, 1, 0)
    tree.insert(other, 4, 5, 0)
    (upper, _), (lower, _) = tree.walk(path, 8)
    assert (upper.priority, lower.priority) == (5, 1)
    counted = tree.insert(path, 8, 0, 3).counted
    assert counted == [lower], "what ends within the first three tokens was counted before"
