"""Whether what was learned predicts well enough to be used."""

from __future__ import annotations

from typing import Final

__all__ = ["MIN_SCORED", "USED_FROM", "LOST_BELOW", "HeldOutScore"]

USED_FROM: Final = 0.4
LOST_BELOW: Final = 0.25
MIN_SCORED: Final = 6
"""Starts that must have been scored before anything is used."""
NEWEST_WEIGHT: Final = 0.05
"""Of the newest start in the score, once there are 20."""


class HeldOutScore:
    """The mean probability that had been given to the agents that then started.

    Each start is scored by what was known before it, so nothing is scored by what it taught. 1 is
    an order that is always right; a choice of two scores 0.5, as good as it can be known; guessing
    among n agents 1/n. Predictions are used from ``USED_FROM`` on, and no more below
    ``LOST_BELOW``.
    """

    __slots__ = ("scored", "used", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.scored = 0
        self.used = False

    def add(self, probability: float) -> None:
        """Score one start. O(1)."""
        self.scored += 1
        self.value += max(1 / self.scored, NEWEST_WEIGHT) * (probability - self.value)
        if self.used:
            self.used = self.value >= LOST_BELOW
        else:
            self.used = self.value >= USED_FROM and self.scored >= MIN_SCORED
