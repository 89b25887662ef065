"""Which of two waiting calls goes first: one definition, and how each engine writes it.

Ours is Dynamo's: an integer, 0 if nothing is said, and the higher one goes first. SGLang counts the
same way unless it was told otherwise; vLLM counts the other way round. An engine that does not
schedule by priority is sent none: vLLM refuses such a request, SGLang may.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["MAX_PRIORITY", "PriorityOrder", "priority_for"]

PriorityOrder = Literal["higher_first", "lower_first", "none"]
"""How an engine orders its waiting requests by the ``priority`` they bring."""

MAX_PRIORITY: Final = 2**31 - 1
"""Largest magnitude, so that it and its negative fit into any engine's integer."""


def priority_for(order: PriorityOrder, priority: int) -> int | None:
    """What to write into the request's ``priority`` for one of ours; ``None``: leave it out."""
    if order == "none":
        return None
    return priority if order == "higher_first" else -priority
