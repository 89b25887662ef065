import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvflow.eviction import EvictionIndex, EvictionKey, NodeKind, eviction_key
from kvflow.eviction import index as index_module

NEVER = math.inf


class Leaf:
    """A leaf as the index sees it: no order of its own, compared by identity."""

    def __init__(self, number: int, recency: float = 0) -> None:
        self.number = number
        self.kind: NodeKind = "suffix"
        self.steps: float = NEVER
        self.recency = recency

    def __repr__(self) -> str:
        return f"Leaf({self.number}, {self.kind}, steps={self.steps}, recency={self.recency})"


def key(leaf: Leaf) -> EvictionKey:
    return eviction_key(leaf.kind, leaf.steps, leaf.number % 3, leaf.recency)


def tie(leaf: Leaf) -> int:
    return leaf.number


def filled(leaves: Sequence[Leaf]) -> EvictionIndex[Leaf]:
    index = EvictionIndex(key, tie)
    for leaf in leaves:
        index.add(leaf)
    return index


def evict_all(index: EvictionIndex[Leaf]) -> list[int]:
    numbers: list[int] = []
    while (leaf := index.lowest()) is not None:
        numbers.append(leaf.number)
        index.discard(leaf)
    return numbers


def test_an_empty_index_has_nothing_to_evict() -> None:
    index = filled([])
    assert index.lowest() is None
    assert len(index) == 0
    assert Leaf(0) not in index


def test_lowest_leaves_the_node_in_place() -> None:
    older, newer = Leaf(1, recency=1), Leaf(0, recency=2)
    index = filled([newer, older])
    assert index.lowest() is older
    assert index.lowest() is older
    assert older in index
    assert len(index) == 2


def test_adding_twice_and_discarding_twice_do_nothing() -> None:
    leaf, other = Leaf(0, recency=1), Leaf(1, recency=2)
    index = filled([leaf, leaf, other])
    assert len(index) == 2
    assert index.lowest() is leaf
    assert len(index._heap) == 2
    index.discard(leaf)
    index.discard(leaf)
    assert leaf not in index
    assert evict_all(index) == [1]


def test_a_discarded_node_may_come_back() -> None:
    leaf, other = Leaf(0, recency=1), Leaf(1, recency=2)
    index = filled([leaf, other])
    index.discard(leaf)
    index.add(leaf)
    assert evict_all(index) == [0, 1]
    leaf.recency = 3
    index.add(other)
    index.add(leaf)
    assert evict_all(index) == [1, 0]


def test_refresh_does_not_make_a_node_evictable() -> None:
    leaf = Leaf(0)
    index = filled([])
    index.refresh(leaf)
    assert leaf not in index
    assert index.lowest() is None


def test_an_access_needs_no_refresh() -> None:
    first, second = Leaf(0, recency=1), Leaf(1, recency=2)
    index = filled([first, second])
    first.recency = 3
    assert evict_all(index) == [1, 0]


def test_an_access_does_not_bring_up_what_was_discarded() -> None:
    first, discarded, second = (Leaf(number, recency=number) for number in range(3))
    index = filled([first, discarded, second])
    index.discard(discarded)
    first.recency = 9
    assert evict_all(index) == [2, 0]


@pytest.mark.parametrize("steps", [0, 3, 9])
def test_gaining_a_weight_and_losing_it(steps: float) -> None:
    leaves = [Leaf(number, recency=number) for number in range(4)]
    index = filled(leaves)
    leaves[0].kind, leaves[0].steps = "prefix", steps
    index.refresh(leaves[0])
    assert index.lowest() is leaves[1]
    leaves[0].steps = NEVER
    index.refresh(leaves[0])
    assert evict_all(index) == [0, 1, 2, 3]


def test_a_key_that_returns_to_what_it_was() -> None:
    leaf, other = Leaf(0, recency=1), Leaf(1, recency=2)
    index = filled([leaf, other])
    for _ in range(3):
        leaf.kind, leaf.steps = "history", 1
        index.refresh(leaf)
        leaf.steps = NEVER
        index.refresh(leaf)
    assert evict_all(index) == [0, 1]


def test_equal_keys_are_ordered_by_tie_whatever_the_order_they_came_in() -> None:
    leaves = [Leaf(number, recency=number // 4) for number in range(16)]
    for seed in range(5):
        shuffled = random.Random(seed).sample(leaves, len(leaves))
        assert evict_all(filled(shuffled)) == list(range(16))


def test_the_same_changes_evict_the_same_nodes() -> None:
    """Even though one index was asked for its lowest node in between and the other was not."""

    def play(ask: bool) -> list[int]:
        rng = random.Random(7)
        leaves = [Leaf(number, recency=rng.randrange(5)) for number in range(60)]
        index = filled(leaves)
        for clock in range(5, 200):
            leaf = rng.choice(leaves)
            if clock % 3:
                leaf.recency = clock // 7
            else:
                leaf.kind, leaf.steps = "prefix", rng.choice([0, 1, NEVER])
                index.refresh(leaf)
            if ask:
                index.lowest()
        return evict_all(index)

    assert play(ask=True) == play(ask=False)


def test_an_eviction_looks_at_what_it_evicts_and_not_at_all_leaves() -> None:
    looks = 0

    def counting_key(leaf: Leaf) -> EvictionKey:
        nonlocal looks
        looks += 1
        return key(leaf)

    leaves = [Leaf(number, recency=number) for number in range(10_000)]
    index = EvictionIndex(counting_key, tie)
    for leaf in leaves:
        index.add(leaf)
    looks = 0
    for number in range(100):
        assert index.lowest() is leaves[number]
        index.discard(leaves[number])
    assert 100 <= looks <= 200
    for leaf in leaves[100:150]:
        leaf.recency += 100_000
    looks = 0
    assert index.lowest() is leaves[150]
    assert looks == 51


@pytest.mark.parametrize("leaves_alive", [1, 10, 300])
def test_memory_is_bounded_under_churn(leaves_alive: int) -> None:
    leaves = [Leaf(number) for number in range(leaves_alive)]
    index = filled(leaves)
    bound = 64 + 3 * leaves_alive
    rng = random.Random(1)
    for clock in range(5_000):
        leaf = rng.choice(leaves)
        leaf.recency = clock
        if clock % 2:
            index.refresh(leaf)
        else:
            index.discard(leaf)
            index.add(leaf)
        assert len(index._heap) <= bound
    assert evict_all(index) == [leaf.number for leaf in sorted(leaves, key=lambda n: n.recency)]


def test_nothing_is_left_once_it_was_asked_when_empty() -> None:
    leaves = [Leaf(number) for number in range(100)]
    index = filled(leaves)
    for leaf in leaves:
        index.discard(leaf)
    assert index.lowest() is None
    assert not index._heap


RANKED: list[tuple[NodeKind, float]] = [
    ("unknown", NEVER),
    ("suffix", NEVER),
    ("history", 3),
    ("prefix", 1),
]


@pytest.mark.parametrize("bound", range(len(RANKED)))
def test_below_is_what_ranks_lower_and_nothing_that_ranks_the_same(bound: int) -> None:
    leaves = [Leaf(number, recency=number) for number in range(len(RANKED))]
    for leaf, (kind, steps) in zip(leaves, RANKED, strict=True):
        leaf.kind, leaf.steps = kind, steps
    index = filled(leaves)
    assert set(index.below(key(leaves[bound]))) == set(leaves[:bound])
    assert len(index) == len(leaves)


def test_below_leaves_out_what_is_not_evictable_and_ranks_anew_what_was_refreshed() -> None:
    leaves = [Leaf(number, recency=number) for number in range(4)]
    index = filled(leaves)
    bound = eviction_key("prefix", 2, 0, 0)
    index.discard(leaves[0])
    for leaf, steps in ((leaves[1], 1), (leaves[2], 3)):
        leaf.kind, leaf.steps = "prefix", steps
        index.refresh(leaf)
    assert set(index.below(bound)) == {leaves[2], leaves[3]}


class IndexMachine(RuleBasedStateMachine):
    """All operations in any order, against the minimum over a plain set."""

    numbers = st.integers(0, 5)

    @initialize(
        recencies=st.lists(st.integers(0, 3), min_size=6, max_size=6),
        evictable=st.integers(0, 6),
        asked_always=st.booleans(),
    )
    def begin(self, recencies: list[int], evictable: int, asked_always: bool) -> None:
        self.leaves = [Leaf(number, recency) for number, recency in enumerate(recencies)]
        self.clock = 3
        self.model = set(self.leaves[:evictable])
        self.index = filled(self.leaves[:evictable])
        # Else only at the end, so that what is out of date piles up before.
        self.asked_always = asked_always

    @rule(number=numbers)
    def add(self, number: int) -> None:
        self.index.add(self.leaves[number])
        self.model.add(self.leaves[number])

    @rule(number=numbers)
    def discard(self, number: int) -> None:
        self.index.discard(self.leaves[number])
        self.model.discard(self.leaves[number])

    @rule(number=numbers, ticks=st.integers(0, 1))
    def touch(self, number: int, ticks: int) -> None:
        self.clock += ticks
        self.leaves[number].recency = self.clock

    @rule(
        number=numbers,
        kind=st.sampled_from(["prefix", "history", "suffix", "unknown"]),
        steps=st.one_of(st.integers(0, 3), st.just(NEVER)),
    )
    def reweigh(self, number: int, kind: NodeKind, steps: float) -> None:
        self.leaves[number].kind = kind
        self.leaves[number].steps = steps
        self.index.refresh(self.leaves[number])

    @rule(number=numbers, times=st.integers(1, 60))
    def churn(self, number: int, times: int) -> None:
        leaf = self.leaves[number]
        for turn in range(times):
            leaf.kind, leaf.steps = "prefix", turn % 2
            self.index.refresh(leaf)

    def in_order(self) -> list[int]:
        return [n.number for n in sorted(self.model, key=lambda leaf: (key(leaf), leaf.number))]

    @rule()
    def evict(self) -> None:
        lowest = self.index.lowest()
        if lowest is not None:
            assert [lowest.number] == self.in_order()[:1]
            self.index.discard(lowest)
            self.model.discard(lowest)

    @invariant()
    def has_the_lowest_ready(self) -> None:
        if self.asked_always:
            lowest = self.index.lowest()
            assert ([] if lowest is None else [lowest.number]) == self.in_order()[:1]

    @invariant()
    def below_is_as_it_was_ranked_last(self) -> None:
        bound = eviction_key("prefix", 2, 0, 0)
        # An access moves a node up within its class unannounced: this bound lies between classes.
        assert set(self.index.below(bound)) == {leaf for leaf in self.model if key(leaf) < bound}

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.model)
        assert [leaf in self.index for leaf in self.leaves] == [
            leaf in self.model for leaf in self.leaves
        ]

    @invariant()
    def holds_little_that_is_out_of_date(self) -> None:
        # Discarding frees nothing by itself, so the bound is that of the most there ever were.
        assert len(self.index._heap) <= index_module._SLACK + index_module._MAX_STALE_RATIO * len(
            self.leaves
        )

    def teardown(self) -> None:
        if hasattr(self, "index"):
            assert evict_all(self.index) == self.in_order()


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=60, stateful_step_count=40)
