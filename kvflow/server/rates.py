"""How much of something may happen in a time: token buckets, one for each name."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Buckets"]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at_s: float


class Buckets:
    """Token buckets by name: each refills by its rate and holds ``burst_s`` seconds of it.

    A cost is paid if the bucket holds one token, and may leave it in debt. So a cost above what a
    bucket holds is not refused for ever, and over time none gets more than its rate. O(1). Not
    for several threads.

    Args:
        burst_s: how many seconds' worth may come at once.
        max_names: when there are more, the one unused for the longest is forgotten, which fills
            its bucket.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        burst_s: float,
        max_names: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst_s = burst_s
        self._max_names = max_names
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, name: str, per_s: float) -> float:
        """Seconds until a cost can be paid; 0: now. Takes nothing."""
        bucket = self._filled(name, per_s)
        # Filling it up to one token may end a rounding error short of it.
        return 0.0 if bucket.tokens >= 1 - 1e-6 else (1 - bucket.tokens) / per_s

    def take(self, name: str, per_s: float, cost: float = 1.0) -> float:
        """Pay the cost and give 0, or pay nothing and give the seconds to wait."""
        wait_s = self.wait_s(name, per_s)
        if wait_s == 0.0:
            self._buckets[name].tokens -= cost
        return wait_s

    def _filled(self, name: str, per_s: float) -> _Bucket:
        now_s = self._clock()
        most = max(1.0, per_s * self._burst_s)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(most, now_s)
            if len(self._buckets) > self._max_names:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
            earned = (now_s - bucket.filled_at_s) * per_s
            bucket.tokens = min(most, bucket.tokens + earned)
            bucket.filled_at_s = now_s
        return bucket


def retry_after(wait_s: float) -> dict[str, str]:
    """The header that says how long to wait, in whole seconds and at least one."""
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}
