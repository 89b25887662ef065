import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvflow.prefetch.usage import PrefetchUsage


def loaded(*loads: tuple[str, int, str]) -> PrefetchUsage[str, str]:
    usage: PrefetchUsage[str, str] = PrefetchUsage()
    for node, tokens, owner in loads:
        usage.loaded(node, tokens, owner)
    return usage


def totals(usage: PrefetchUsage[str, str]) -> tuple[int, int, int, int]:
    return (
        usage.prefetched_tokens,
        usage.used_tokens,
        usage.wasted_tokens,
        usage.unused_tokens,
    )


def test_tokens_count_as_used_once() -> None:
    usage = loaded(("n", 10, "a"))
    assert totals(usage) == (10, 0, 0, 10)
    assert usage.used(["other", "n"]) == [("a", 10)]
    assert usage.used(["n"]) == []
    assert usage.evicted("n") == []
    assert totals(usage) == (10, 10, 0, 0)


def test_tokens_that_leave_before_their_use_are_wasted() -> None:
    usage = loaded(("n", 10, "a"))
    assert usage.evicted("n") == [("a", 10)]
    assert usage.used(["n"]) == []
    assert totals(usage) == (10, 0, 10, 0)


@pytest.mark.parametrize(
    ("tokens", "wasted"),
    [
        (0, []),
        (4, [("b", 4)]),
        (7, [("a", 1), ("b", 6)]),
        (16, [("a", 10), ("b", 6)]),
        (99, [("a", 10), ("b", 6)]),
    ],
)
def test_the_tail_may_leave_alone(tokens: int, wasted: list[tuple[str, int]]) -> None:
    usage = loaded(("n", 10, "a"), ("n", 6, "b"))
    assert usage.evicted("n", tokens) == wasted
    gone = sum(size for _, size in wasted)
    assert totals(usage) == (16, 0, gone, 16 - gone)
    assert sum(size for _, size in usage.used(["n"])) == 16 - gone


@pytest.mark.parametrize(
    ("upper_tokens", "upper", "lower"),
    [
        (4, [("a", 4)], [("a", 6), ("b", 6)]),
        (10, [("a", 10)], [("b", 6)]),
        (12, [("a", 10), ("b", 2)], [("b", 4)]),
        (20, [("a", 10), ("b", 6)], []),
    ],
)
def test_a_split_divides_what_waits(
    upper_tokens: int, upper: list[tuple[str, int]], lower: list[tuple[str, int]]
) -> None:
    usage = loaded(("n", 10, "a"), ("n", 6, "b"))
    usage.split("upper", "n", upper_tokens)
    assert usage.used(["upper"]) == upper
    assert usage.evicted("n") == lower
    assert totals(usage)[3] == 0


def test_a_split_of_a_node_where_nothing_waits_is_nothing() -> None:
    usage = loaded(("n", 10, "a"))
    usage.split("upper", "other", 5)
    assert len(usage) == 1
    assert totals(usage) == (10, 0, 0, 10)


def test_each_owner_is_named_once_in_the_order_of_the_path() -> None:
    usage = loaded(("deep", 3, "a"), ("middle", 2, "b"), ("root", 1, "c"), ("beside", 9, "a"))
    usage.loaded("root", 5, "a")
    assert usage.used(iter(["root", "middle", "deep"])) == [("c", 1), ("a", 8), ("b", 2)]
    assert totals(usage) == (20, 11, 0, 9)


def test_a_load_of_nothing_leaves_nothing_to_wait_for() -> None:
    usage = loaded(("n", 0, "a"))
    assert len(usage) == 0
    assert usage.used(["n"]) == []


def test_clear_wastes_what_waits() -> None:
    usage = loaded(("n", 10, "a"), ("m", 5, "a"))
    usage.used(["m"])
    usage.clear()
    assert totals(usage) == (15, 5, 10, 0)
    assert usage.used(["n"]) == []
    assert len(usage) == 0


class UsageMachine(RuleBasedStateMachine):
    """Against a model that keeps the owner of each single token, in order, per node."""

    choices = st.integers(0, 100)

    def __init__(self) -> None:
        super().__init__()
        self.usage: PrefetchUsage[int, str] = PrefetchUsage()
        self.tokens: dict[int, str] = {0: ""}
        self.used = self.wasted = self.prefetched = 0

    @rule()
    def new_node(self) -> None:
        self.tokens[len(self.tokens)] = ""

    @rule(choice=choices, tokens=st.integers(0, 9), owner=st.sampled_from("ab"))
    def load(self, choice: int, tokens: int, owner: str) -> None:
        node = self.node(choice)
        self.usage.loaded(node, tokens, owner)
        self.tokens[node] += owner * tokens
        self.prefetched += tokens

    @precondition(lambda self: any(len(tokens) > 1 for tokens in self.tokens.values()))
    @rule(choice=choices, at=choices)
    def split(self, choice: int, at: int) -> None:
        nodes = [node for node, tokens in self.tokens.items() if len(tokens) > 1]
        lower, upper = nodes[choice % len(nodes)], len(self.tokens)
        tokens = self.tokens[lower]
        cut = 1 + at % (len(tokens) - 1)
        self.usage.split(upper, lower, cut)
        self.tokens[upper], self.tokens[lower] = tokens[:cut], tokens[cut:]

    @rule(chosen=st.lists(choices, max_size=4))
    def use(self, chosen: list[int]) -> None:
        nodes = [self.node(choice) for choice in chosen]
        read = "".join(self.take(node) for node in nodes)
        assert self.usage.used(nodes) == per_owner(read)
        self.used += len(read)

    @rule(choice=choices, tokens=st.none() | st.integers(0, 12))
    def evict(self, choice: int, tokens: int | None) -> None:
        node = self.node(choice)
        held = self.take(node)
        keep = 0 if tokens is None else max(0, len(held) - tokens)
        self.tokens[node] = held[:keep]
        assert self.usage.evicted(node, tokens) == per_owner(held[keep:])
        self.wasted += len(held) - keep

    @rule()
    def clear(self) -> None:
        self.usage.clear()
        self.wasted += sum(len(self.take(node)) for node in self.tokens)

    def node(self, choice: int) -> int:
        return choice % len(self.tokens)

    def take(self, node: int) -> str:
        held, self.tokens[node] = self.tokens[node], ""
        return held

    @invariant()
    def agrees(self) -> None:
        waiting = sum(map(len, self.tokens.values()))
        assert self.usage.prefetched_tokens == self.prefetched
        assert self.usage.used_tokens == self.used
        assert self.usage.wasted_tokens == self.wasted
        assert self.usage.unused_tokens == waiting
        assert self.prefetched == self.used + self.wasted + waiting
        assert len(self.usage) == sum(1 for tokens in self.tokens.values() if tokens)


def per_owner(tokens: str) -> list[tuple[str, int]]:
    return [(owner, tokens.count(owner)) for owner in dict.fromkeys(tokens)]


TestUsageMachine = UsageMachine.TestCase
TestUsageMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
