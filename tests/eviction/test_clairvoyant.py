import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvflow.eviction import CachedCall, clairvoyant_hit_tokens
from tests.eviction.every_policy import (
    Policy,
    most_hit_tokens,
    pages,
    policy_hit_tokens,
)


def call(prompt: str, answer: str = "") -> CachedCall:
    return CachedCall([ord(c) for c in prompt], [ord(c) for c in answer])


def calls(*texts: str) -> list[CachedCall]:
    """Calls written as ``prompt>answer``."""
    return [call(*text.split(">")) for text in texts]


# Three agents in a cycle; prompts of four tokens, answers of two that nobody reads again. Capacity
# is filled by the running call (6) and what may stay beside it. In steady state each gap of a
# cycle of three has room for one of the two other prompts: the one that is run next stays, so
# every other call finds all that fitted.
CYCLE = calls("AAAA>xy", "BBBB>xy", "CCCC>xy") * 3


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (6, [0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (8, [0, 0, 0, 2, 0, 2, 0, 2, 0]),
        (10, [0, 0, 0, 4, 0, 4, 0, 4, 0]),
        (12, [0, 0, 0, 4, 2, 4, 2, 4, 2]),
        (14, [0, 0, 0, 4, 4, 4, 4, 4, 4]),
    ],
)
def test_a_cycle_worked_out_by_hand(capacity: int, expected: list[int]) -> None:
    assert clairvoyant_hit_tokens(CYCLE, capacity) == expected


@pytest.mark.parametrize(("agents", "capacity"), [(3, 2), (5, 2), (5, 4), (10, 7)])
def test_the_hit_rate_of_a_long_cycle(agents: int, capacity: int) -> None:
    """One slot serves the running agent, the others ``agents - 1`` agents in turn."""
    rounds = 8 * (agents - 1)
    hits = clairvoyant_hit_tokens([CachedCall([n]) for n in range(agents)] * rounds, capacity)
    steady = hits[agents * (agents - 1) :]
    assert sum(steady) / len(steady) == pytest.approx((capacity - 1) / (agents - 1), abs=0.03)


def test_shared_beginnings_are_stored_once() -> None:
    shared = calls("SSSSa", "SSSSb", "SSSSa", "SSSSb")
    assert clairvoyant_hit_tokens(shared, 6) == [0, 4, 5, 5]
    assert clairvoyant_hit_tokens(shared, 5) == [0, 4, 4, 4]


def test_the_same_tokens_after_another_beginning_are_other_pages() -> None:
    assert clairvoyant_hit_tokens(calls("aSSS", "bSSS", "SSS"), 100) == [0, 0, 0]


REPEATED_ANSWER = calls("d", "a>b", ">c", ">d", "d", "ab")


def test_an_answer_that_is_read_again_counts() -> None:
    chat = calls("P>ab", "Pab+>cd", "Pab+cd?>e")
    assert clairvoyant_hit_tokens(chat, 100) == [0, 3, 6]


def test_a_page_that_an_answer_brings_again_is_not_worth_keeping_until_then() -> None:
    """The fourth call brings ``d``, kept or not; ``ab`` has to be kept to be found."""
    assert clairvoyant_hit_tokens(REPEATED_ANSWER, 3) == [0, 0, 0, 0, 1, 2]


def test_once_brought_again_it_is_worth_what_it_will_be_read_for() -> None:
    assert clairvoyant_hit_tokens(calls("x", ">x", "y", "z", "x"), 2) == [0, 0, 0, 0, 1]


def test_a_running_call_keeps_its_pages_though_nobody_reads_them_again() -> None:
    assert clairvoyant_hit_tokens(calls("y", ">x", ">xz", "y"), 2) == [0, 0, 0, 0]
    assert clairvoyant_hit_tokens(calls("y", ">x", ">xz", "y"), 3) == [0, 0, 0, 1]


def test_nothing_is_found_by_no_calls_and_by_empty_ones() -> None:
    assert clairvoyant_hit_tokens([], 0) == []
    assert clairvoyant_hit_tokens(calls("", "", ">a"), 1) == [0, 0, 0]


@pytest.mark.parametrize(
    ("texts", "capacity", "page_size", "message"),
    [
        (["a", "abc"], 2, 1, "call 1 needs 3 pages of 1 tokens, the cache has 2"),
        (["ab>c"], 2, 1, "call 0 needs 3 pages of 1 tokens, the cache has 2"),
        (["abcd", "abcd>ef"], 5, 2, "call 1 needs 3 pages of 2 tokens, the cache has 2"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    texts: list[str], capacity: int, page_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        clairvoyant_hit_tokens(calls(*texts), capacity, page_size)


def test_only_whole_pages_are_found() -> None:
    twice = calls("abcdefg", "abcdefg", "abcdefX", "abcX")
    assert clairvoyant_hit_tokens(twice, 100, page_size=1) == [0, 7, 6, 3]
    assert clairvoyant_hit_tokens(twice, 100, page_size=2) == [0, 6, 6, 2]
    assert clairvoyant_hit_tokens(twice, 100, page_size=4) == [0, 4, 4, 0]
    assert clairvoyant_hit_tokens(twice, 100, page_size=8) == [0, 0, 0, 0]


def test_a_page_of_prompt_and_answer_together_is_found_only_by_a_prompt_that_has_it_all() -> None:
    across = calls("abc>de", "abc", "abcd", "abcde")
    assert clairvoyant_hit_tokens(across, 100, page_size=4) == [0, 0, 4, 4]


def test_capacity_is_counted_in_whole_pages() -> None:
    two = calls("aa", "bb", "aa", "bb")
    assert clairvoyant_hit_tokens(two, 3, page_size=2) == [0, 0, 0, 0]
    assert clairvoyant_hit_tokens(two, 4, page_size=2) == [0, 0, 2, 2]


def cut(text: str, at: int) -> CachedCall:
    return call(text[:at], text[at:])


PROMPTS = st.builds(call, st.text("abc", max_size=4))
# Few texts, cut anywhere, so that prompts often read what was an answer.
PROMPTS_WITH_ANSWERS = st.builds(
    cut, st.sampled_from(["a", "ab", "abc", "abd", "abcd", "c", "cd", "d"]), st.integers(0, 4)
)
SILENT_CALLS = st.lists(PROMPTS, max_size=7)
CALLS = st.lists(PROMPTS_WITH_ANSWERS, max_size=7)


def capacity_for(some: Sequence[CachedCall], spare_pages: int, page_size: int = 1) -> int:
    """Room for the largest call and ``spare_pages`` more."""
    return spare_pages + max((len(pages(c, page_size)) for c in some), default=0)


@given(SILENT_CALLS, st.integers(0, 5))
def test_no_choice_of_evictions_is_better(some: list[CachedCall], spare: int) -> None:
    capacity = capacity_for(some, spare)
    assert sum(clairvoyant_hit_tokens(some, capacity)) == most_hit_tokens(some, capacity)


@given(CALLS, st.integers(0, 3))
@example(REPEATED_ANSWER, 1)
@settings(max_examples=200)
def test_no_choice_of_evictions_is_better_with_answers(some: list[CachedCall], spare: int) -> None:
    capacity = capacity_for(some, spare)
    bound = sum(clairvoyant_hit_tokens(some, capacity))
    assert bound == most_hit_tokens(some, capacity, any_page=True)
    assert bound >= most_hit_tokens(some, capacity)


@given(CALLS, st.integers(0, 4), st.integers(2, 3))
def test_no_choice_of_evictions_is_better_with_pages(
    some: list[CachedCall], spare: int, page_size: int
) -> None:
    capacity = capacity_for(some, spare, page_size)
    bound = sum(clairvoyant_hit_tokens(some, capacity * page_size, page_size))
    assert bound == most_hit_tokens(some, capacity, page_size, any_page=True)


LONGER_CALLS = st.lists(
    st.builds(call, st.text("abc", max_size=9), st.text("ab", max_size=3)), max_size=30
)


def lru(seed: int) -> Policy:
    return lambda candidates: min(candidates, key=lambda c: (c.last_used, -len(c.page)))


def mru(seed: int) -> Policy:
    return lambda candidates: max(candidates, key=lambda c: (c.last_used, len(c.page)))


def at_random(seed: int) -> Policy:
    return random.Random(seed).choice


@pytest.mark.parametrize("policy", [lru, mru, at_random])
@given(LONGER_CALLS, st.integers(0, 12), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=60)
def test_no_simple_policy_is_better(
    policy: Callable[[int], Policy], some: list[CachedCall], spare: int, page_size: int, seed: int
) -> None:
    capacity = capacity_for(some, spare, page_size)
    by_policy = policy_hit_tokens(some, capacity, page_size, policy(seed))
    assert by_policy <= sum(clairvoyant_hit_tokens(some, capacity * page_size, page_size))


def test_the_simple_policies_are_far_from_it_in_a_cycle() -> None:
    """Else the test above would show nothing."""
    assert sum(clairvoyant_hit_tokens(CYCLE, 10)) == 12
    assert policy_hit_tokens(CYCLE, 10, 1, lru(0)) == 0


@given(LONGER_CALLS, st.integers(0, 12), st.integers(1, 3))
def test_more_capacity_never_finds_less(some: list[CachedCall], spare: int, page_size: int) -> None:
    capacity = capacity_for(some, spare, page_size) * page_size
    smaller, larger = (
        sum(clairvoyant_hit_tokens(some, tokens, page_size))
        for tokens in (capacity, capacity + page_size)
    )
    assert smaller <= larger


@given(LONGER_CALLS, st.integers(1, 3))
def test_with_room_for_all_each_call_finds_what_any_before_it_brought(
    some: list[CachedCall], page_size: int
) -> None:
    expected: list[int] = []
    brought: set[tuple[int, ...]] = set()
    for each in some:
        mine = pages(each, page_size)[: len(each.prompt) // page_size]
        expected.append(page_size * sum(page in brought for page in mine))
        brought.update(pages(each, page_size))
    assert clairvoyant_hit_tokens(some, 10_000, page_size) == expected


@given(CALLS, st.integers(0, 5), st.integers(1, 4))
def test_pages_are_to_the_cache_what_tokens_are_at_page_size_one(
    some: list[CachedCall], spare: int, page_size: int
) -> None:
    def stretched(tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens for _ in range(page_size)]

    capacity = capacity_for(some, spare)
    unit = clairvoyant_hit_tokens(some, capacity)
    large = [CachedCall(stretched(c.prompt), stretched(c.answer)) for c in some]
    assert clairvoyant_hit_tokens(large, capacity * page_size, page_size) == [
        tokens * page_size for tokens in unit
    ]
