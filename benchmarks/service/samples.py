"""Latencies as they were taken: exact quantiles, and a histogram to keep."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from typing import Any, Final

__all__ = ["Samples"]

_BUCKETS_PER_DECADE: Final = 40
_QUANTILES: Final = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}


class Samples:
    """Durations in seconds; each is kept until they are summed up."""

    def __init__(self) -> None:
        self._seconds = array("d")

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def __len__(self) -> int:
        return len(self._seconds)

    def summary(self) -> dict[str, Any]:
        """Exact quantiles in milliseconds, and how many samples each bucket has.

        A quantile is the smallest sample that at least that share of all does not exceed. A
        bucket's name is its upper bound in microseconds; bounds grow by 6 percent.
        """
        ordered = sorted(self._seconds)
        if not ordered:
            return {"count": 0}
        counts = Counter(_bucket(seconds) for seconds in ordered)
        return {
            "count": len(ordered),
            **{
                name: round(1e3 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 4)
                for name, share in _QUANTILES.items()
            },
            "max_ms": round(1e3 * ordered[-1], 4),
            "mean_ms": round(1e3 * sum(ordered) / len(ordered), 4),
            "histogram_us": {str(bound): counts[bound] for bound in sorted(counts)},
        }


def _bucket(seconds: float) -> int:
    """The upper bound of the bucket, in whole microseconds (below 20 us: all in one)."""
    microseconds = max(20.0, 1e6 * seconds)
    step = math.ceil(math.log10(microseconds) * _BUCKETS_PER_DECADE - 1e-9)
    return math.ceil(10 ** (step / _BUCKETS_PER_DECADE))
