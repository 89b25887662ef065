"""Caches of one tier played out in full: by trying every choice, and by simple policies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from kvflow.eviction import CachedCall

Page = tuple[int, ...]
"""A page of a prefix tree, named by all tokens up to its end."""


def pages(call: CachedCall, page_size: int = 1) -> list[Page]:
    tokens = (*call.prompt, *call.answer)
    return [tokens[:end] for end in range(page_size, len(tokens) + 1, page_size)]


def prompt_pages(call: CachedCall, page_size: int = 1) -> list[Page]:
    return pages(CachedCall(call.prompt), page_size)


def found(call: CachedCall, cached: frozenset[Page] | dict[Page, int], page_size: int = 1) -> int:
    """Pages of the prompt read from ``cached``."""
    return sum(1 for _ in itertools.takewhile(cached.__contains__, prompt_pages(call, page_size)))


def most_hit_tokens(
    calls: Sequence[CachedCall], capacity_pages: int, page_size: int = 1, *, any_page: bool = False
) -> int:
    """The most prompt tokens that any sequence of evictions lets the calls find.

    Args:
        any_page: let pages go whose successors stay. A radix tree can't do that.
    """

    def is_tree(cached: frozenset[Page]) -> bool:
        return all(len(page) == page_size or page[:-page_size] in cached for page in cached)

    @cache
    def best(position: int, cached: frozenset[Page]) -> int:
        if position == len(calls):
            return 0
        call = calls[position]
        running = frozenset(pages(call, page_size))
        others = cached - running
        # Keeping more never hurts: what is not wanted can still go later.
        kept = min(len(others), capacity_pages - len(running))
        after = (running.union(choice) for choice in itertools.combinations(others, kept))
        return found(call, cached, page_size) + max(
            best(position + 1, state) for state in after if any_page or is_tree(state)
        )

    return best(0, frozenset()) * page_size


@dataclass(frozen=True)
class Candidate:
    """A leaf that a policy may choose to evict."""

    page: Page
    last_used: int


Policy = Callable[[list[Candidate]], Candidate]


def policy_hit_tokens(
    calls: Sequence[CachedCall], capacity_pages: int, page_size: int, choose: Policy
) -> int:
    """Prompt tokens found in a prefix tree that evicts, when it must, the leaf ``choose`` names."""
    last_used: dict[Page, int] = {}
    hits = 0
    for position, call in enumerate(calls):
        hits += found(call, last_used, page_size)
        running = pages(call, page_size)
        last_used.update(dict.fromkeys(running, position))
        while len(last_used) > capacity_pages:
            parents = {page[:-page_size] for page in last_used}
            candidates = [
                Candidate(page, used)
                for page, used in last_used.items()
                if page not in parents and page not in running
            ]
            del last_used[choose(candidates).page]
    return hits * page_size
