"""The best hit rate that any policy could have had on the calls of an arm."""

from __future__ import annotations

from collections.abc import Sequence

from kvflow.demo.calls import Answer
from kvflow.eviction import CachedCall, clairvoyant_hit_tokens

__all__ = ["clairvoyant_hits"]


def clairvoyant_hits(
    answers: Sequence[Answer], capacity_tokens: int, page_size: int
) -> list[int] | None:
    """Prompt tokens that a clairvoyant cache of this size would have found, per call.

    For two tiers give their sum. A policy that had both for itself, and never kept a prompt twice,
    could not do better; SGLang's write-through keeps in the host pool a copy of what is on the
    device, so what is within reach lies below.

    The last token of an answer is not counted: the engine never computes its keys and values.

    Returns:
        None if the engine did not report token ids.
    """
    if not all(answer.prompt_ids for answer in answers):
        return None
    calls = [CachedCall(answer.prompt_ids, answer.output_ids[:-1]) for answer in answers]
    return clairvoyant_hit_tokens(calls, capacity_tokens, page_size)
