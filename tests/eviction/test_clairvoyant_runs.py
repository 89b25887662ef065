from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow.eviction import (
    CachedCall,
    PageRun,
    RunCall,
    clairvoyant_hit_pages,
    clairvoyant_hit_tokens,
)

LENGTHS = (1, 2, 3, 1, 4)
"""Of the pieces that prompts are made of: piece n is so many tokens n."""

PIECES = st.lists(st.integers(0, len(LENGTHS) - 1), max_size=4)
CALLS = st.lists(st.tuples(PIECES, PIECES), max_size=12)


def runs(pieces: Sequence[int]) -> list[PageRun]:
    return [
        PageRun(hash(tuple(pieces[: end + 1])), LENGTHS[piece]) for end, piece in enumerate(pieces)
    ]


def tokens(pieces: Sequence[int]) -> list[int]:
    return [piece for piece in pieces for _ in range(LENGTHS[piece])]


def by_run(calls: Sequence[tuple[list[int], list[int]]]) -> list[RunCall]:
    return [RunCall(runs([*prompt, *answer]), len(prompt)) for prompt, answer in calls]


def by_page(calls: Sequence[tuple[list[int], list[int]]]) -> list[CachedCall]:
    return [CachedCall(tokens(prompt), tokens(answer)) for prompt, answer in calls]


@given(CALLS, st.integers(0, 12))
def test_it_is_what_belady_says_page_by_page(
    calls: list[tuple[list[int], list[int]]], spare: int
) -> None:
    largest = max((len(tokens([*prompt, *answer])) for prompt, answer in calls), default=0)
    expected = clairvoyant_hit_tokens(by_page(calls), largest + spare)
    assert clairvoyant_hit_pages(by_run(calls), largest + spare) == expected


@given(CALLS, st.integers(0, 12))
def test_a_call_in_three_accesses_finds_what_it_finds_in_one(
    calls: list[tuple[list[int], list[int]]], spare: int
) -> None:
    largest = max((len(tokens([*prompt, *answer])) for prompt, answer in calls), default=0)
    accesses = []
    for prompt, answer in calls:
        accesses.append(RunCall(runs(prompt), len(prompt), brings=False))
        accesses.append(RunCall(runs(prompt), 0, holds=runs(prompt)))
        accesses.append(RunCall(runs([*prompt, *answer]), 0, releases=runs(prompt)))
    assert clairvoyant_hit_pages(accesses, largest + spare)[::3] == clairvoyant_hit_tokens(
        by_page(calls), largest + spare
    )


@given(CALLS)
def test_without_a_limit_all_that_was_brought_is_found(
    calls: list[tuple[list[int], list[int]]],
) -> None:
    unlimited = clairvoyant_hit_pages(by_run(calls), None)
    assert unlimited == clairvoyant_hit_tokens(by_page(calls), 10_000)


A, B, C = PageRun(1, 2), PageRun(2, 2), PageRun(3, 2)


def test_what_is_not_counted_has_no_claim() -> None:
    """One place beside what runs: it is B's, which counts, though A is read sooner."""
    calls = [RunCall([A], 0), RunCall([B], 0), RunCall([C], 0), RunCall([A], 0), RunCall([B], 1)]
    assert clairvoyant_hit_pages(calls, 4) == [0, 0, 0, 0, 2]
    counted = [*calls[:3], RunCall([A], 1), calls[4]]
    assert clairvoyant_hit_pages(counted, 4) == [0, 0, 0, 2, 0]
    assert clairvoyant_hit_pages(counted, 5) == [0, 0, 0, 2, 1]


def test_what_is_held_stays_and_leaves_that_much_less_room() -> None:
    reading_b = [RunCall([B], 0), RunCall([C], 0), RunCall([B], 1, brings=False)]
    assert clairvoyant_hit_pages([RunCall([A], 0), *reading_b], 4)[-1] == 2
    assert clairvoyant_hit_pages([RunCall([A], 0, holds=[A]), *reading_b], 4)[-1] == 0
    released = [RunCall([A], 0, holds=[A]), RunCall([A], 0, releases=[A]), *reading_b]
    assert clairvoyant_hit_pages(released, 4)[-1] == 2


def test_a_look_brings_nothing() -> None:
    looks = [RunCall([A], 1, brings=False), RunCall([A], 1, brings=False)]
    assert clairvoyant_hit_pages(looks, 4) == [0, 0]
    assert clairvoyant_hit_pages([RunCall([A], 0), *looks], 4) == [0, 2, 2]


def test_pages_that_need_no_room() -> None:
    with pytest.raises(ValueError, match="access 0 needs 2 pages; the cache has 1"):
        clairvoyant_hit_pages([RunCall([A], 0)], 1)
    assert clairvoyant_hit_pages([RunCall([A], 0, unneeded_pages=1)], 1) == [0]


def test_held_pages_that_leave_no_room_are_an_error() -> None:
    with pytest.raises(ValueError, match="some may be held"):
        clairvoyant_hit_pages([RunCall([A], 0, holds=[A]), RunCall([B], 0)], 3)
