"""The best hit rate any eviction policy could have had, counted in tokens."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CachedCall", "clairvoyant_hit_tokens"]

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class CachedCall:
    """One call as a cache sees it.

    Attributes:
        prompt: token ids of the prompt.
        answer: token ids generated; they are cached after the prompt.
    """

    prompt: Sequence[int]
    answer: Sequence[int] = ()


def clairvoyant_hit_tokens(
    calls: Sequence[CachedCall], capacity_tokens: int, page_size: int = 1
) -> list[int]:
    """Prompt tokens found in cache, per call, under Belady's rule.

    Calls run one after the other. Each needs room for all its whole pages while it runs; then
    every page may stay or go. The page whose next use lies furthest ahead goes first (Belady
    1966), which is optimal for pages of one size; at equal distance the deeper page goes first,
    so what a call finds is always a prefix. Pages are shared by calls that begin alike. It is a
    bound for one tier: no policy, whatever it knows, finds more in a cache of this size.

    What it ignores, so that the bound may exceed what is reachable by a little: that a last page
    is never a hit as a whole (the engine computes at least one token of each prompt); that a last
    page begun needs room too; that a page can't go before those that follow it in a tree, which
    matters only where an answer is generated again and then read.

    Args:
        calls: all calls, in the order they run.
        capacity_tokens: size of the cache.
        page_size: tokens per page.

    Raises:
        ValueError: the whole pages of a call alone do not fit.

    Complexity: O(P log P) for P pages over all calls.
    """
    capacity = capacity_tokens // page_size
    paths = _page_paths(calls, page_size)
    prompt_pages = [len(call.prompt) // page_size for call in calls]
    next_uses = _next_uses(paths, prompt_pages)
    cached: set[int] = set()
    order: list[tuple[float, int, int]] = []
    current: dict[int, float] = {}
    hits: list[int] = []
    for position, path in enumerate(paths):
        if len(path) > capacity:
            raise ValueError(
                f"call {position} needs {len(path)} pages of {page_size} tokens, "
                f"the cache has {capacity}"
            )
        found = 0
        while found < prompt_pages[position] and path[found] in cached:
            found += 1
        hits.append(found * page_size)
        for depth, page in enumerate(path):
            cached.add(page)
            current[page] = next_uses[position][depth]
        running = set(path)
        while len(cached) > capacity:
            distance, _, page = heapq.heappop(order)
            if page not in running and -distance == current[page]:
                cached.discard(page)
        for depth, page in enumerate(path):
            heapq.heappush(order, (-current[page], -depth, page))
    return hits


def _page_paths(calls: Sequence[CachedCall], page_size: int) -> list[list[int]]:
    """Page ids per call; a page is the same where everything up to its end is the same."""
    ids: dict[tuple[int, tuple[int, ...]], int] = {}
    paths: list[list[int]] = []
    for call in calls:
        tokens = [*call.prompt, *call.answer]
        parent = -1
        path: list[int] = []
        for start in range(0, len(tokens) - page_size + 1, page_size):
            key = (parent, tuple(tokens[start : start + page_size]))
            parent = ids.setdefault(key, len(ids))
            path.append(parent)
        paths.append(path)
    return paths


def _next_uses(paths: Sequence[Sequence[int]], prompt_pages: Sequence[int]) -> list[list[float]]:
    """For each page of each call, the position of the next call whose prompt has it.

    None if an answer has it before: that call brings the page whether it was kept or not.
    """
    upcoming: dict[int, float] = {}
    uses: list[list[float]] = []
    for position in range(len(paths) - 1, -1, -1):
        uses.append([upcoming.get(page, _NEVER) for page in paths[position]])
        for depth, page in enumerate(paths[position]):
            upcoming[page] = position if depth < prompt_pages[position] else _NEVER
    uses.reverse()
    return uses
