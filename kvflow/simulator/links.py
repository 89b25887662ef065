"""Copies on one link, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from kvflow.prefetch import Link

__all__ = ["Copy", "FifoLink"]


@dataclass(slots=True, eq=False)
class Copy:
    """A copy under way.

    Attributes:
        start_s: when it gets the link.
        end_s: when it is over.
    """

    tokens: int
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """What the copy itself takes, without what was before it on the link."""
        return self.end_s - self.start_s


@dataclass(slots=True)
class FifoLink:
    """A link that carries one copy at a time, in the order in which they were submitted."""

    link: Link
    free_from_s: float = 0.0
    tokens: int = 0
    """All that has ever been submitted."""

    def submit(self, tokens: int, now_s: float) -> Copy:
        """Add a copy. The latency is paid where the link was idle, and hidden where not."""
        if self.free_from_s > now_s:
            start_s = self.free_from_s
            end_s = start_s + tokens / self.link.tokens_per_s
        else:
            start_s = now_s
            end_s = start_s + self.link.seconds(tokens)
        self.free_from_s = end_s
        self.tokens += tokens
        return Copy(tokens, start_s, end_s)
