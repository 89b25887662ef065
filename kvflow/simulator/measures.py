"""What is counted while a simulation runs. Its memory does not grow with the calls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["RELATIVE_ERROR", "Durations", "Tally"]

RELATIVE_ERROR: Final = 0.01
"""Of a quantile, at most."""

QUANTILES: Final = (0.5, 0.9, 0.99)

_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
_LEAST_S: Final = 1e-9


class Durations:
    """A histogram with buckets that grow by a constant factor, for quantiles in one pass.

    A value in the bucket ``(g**(i-1), g**i]`` is answered as ``2 * g**i / (g + 1)``, which is
    within ``RELATIVE_ERROR`` of it. Source: DDSketch (Masson, Rim, Lee, VLDB 2019), without its
    bound on the number of buckets: from a microsecond to a day there are some 1,300.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count a value; what is below a nanosecond counts as one."""
        bucket = math.ceil(math.log(max(seconds, _LEAST_S)) / _LOG_GAMMA)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """The value that ``share`` of all are at or below; nan without values. O(buckets)."""
        rank = max(1, math.ceil(share * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return float(2 * _GAMMA**bucket / (_GAMMA + 1))
        return math.nan

    def quantiles(self, shares: Iterable[float] = QUANTILES) -> dict[float, float]:
        return {share: self.quantile(share) for share in shares}


@dataclass(slots=True)
class Tally:
    """Sums over the calls that count."""

    calls: int = 0
    calls_in_all: int = 0
    workflows: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    device_hits: int = 0
    host_hits: int = 0
    storage_hits: int = 0
    counted_from_s: float = 0.0
    last_end_s: float = 0.0
    ttft: Durations = field(default_factory=Durations)
    total: Durations = field(default_factory=Durations)
    workflow: Durations = field(default_factory=Durations)
