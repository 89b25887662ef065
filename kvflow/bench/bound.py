"""What a clairvoyant cache of an arm's size would have found in the very calls of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvflow.bench.arms import ArmCache
from kvflow.bench.reply import Reply
from kvflow.eviction import CachedCall, clairvoyant_hit_tokens

__all__ = ["Bounds", "bounds"]


class Bounds(NamedTuple):
    """Prompt tokens per call, in the order given.

    ``whole``: for one cache of all tiers' size, which no policy can surpass. ``mirrored``: for one
    of the host tier's size, near to what is within reach where the host keeps a copy of what is on
    the device; None without a host tier that could hold each call. Both None where nothing is
    limited (a storage tier), and where the engine reports no token ids.
    """

    whole: list[int] | None
    mirrored: list[int] | None


def bounds(replies: Sequence[Reply], cache: ArmCache) -> Bounds:
    """Apply Belady's rule to calls in the order in which they started, one at a time.

    The last token of an answer does not count: its keys and values are never computed.
    """
    if cache.storage or not all(reply.prompt_ids for reply in replies):
        return Bounds(None, None)
    order = sorted(range(len(replies)), key=lambda number: replies[number].started_s)
    calls = [
        CachedCall(replies[number].prompt_ids, replies[number].output_ids[:-1]) for number in order
    ]

    def found(capacity_tokens: int) -> list[int]:
        hits = clairvoyant_hit_tokens(calls, capacity_tokens, cache.page_tokens)
        by_call = dict(zip(order, hits, strict=True))
        return [by_call[number] for number in range(len(replies))]

    whole = found(cache.device_tokens + cache.host_tokens)
    longest = max(len(call.prompt) + len(call.answer) for call in calls)
    return Bounds(whole, found(cache.host_tokens) if cache.host_tokens >= longest else None)
