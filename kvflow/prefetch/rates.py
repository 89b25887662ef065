"""How fast copies and prefills are, and whether a load is worth its time."""

from __future__ import annotations

import math
from typing import Final, Literal

from kvflow.prefetch.base import Link

__all__ = ["LoadChoice", "RateEstimator", "choose_load"]

LoadChoice = Literal["load", "recompute"]

_DECAY: Final = 0.9
_OUTLIER_FACTOR: Final = 4.0
_SAMPLES_BEFORE_CAP: Final = 4
_MIN_SPREAD: Final = 0.05


class RateEstimator:
    """Learns the line ``seconds = latency + tokens / rate`` from what was measured.

    Least squares with weights that fall by a tenth with every new sample, so about the last ten
    count and a changed load is followed. Once a few samples are known, one that took more than
    four times what was expected counts as four times: a single stall moves the line a little, a
    lasting slowdown is reached within some samples.

    Where no line can be told, because all samples are of about one size or larger ones took no
    longer, the latency is 0 and the rate is that of the line through the origin. Likewise where
    the latency would be negative.

    Deterministic; O(1) per call; not thread-safe.
    """

    __slots__ = ("_samples", "_sum", "_sum_s", "_sum_tokens", "_sum_tokens_s", "_sum_tokens_tokens")

    def __init__(self) -> None:
        self._samples = 0
        self._sum = 0.0
        self._sum_tokens = 0.0
        self._sum_s = 0.0
        self._sum_tokens_tokens = 0.0
        self._sum_tokens_s = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn that ``tokens`` took ``seconds``; ignored unless both are above 0 and finite."""
        if tokens <= 0 or not (0 < seconds < math.inf):
            return
        link = self.link()
        if link is not None and self._samples >= _SAMPLES_BEFORE_CAP:
            seconds = min(seconds, _OUTLIER_FACTOR * link.seconds(tokens))
        self._samples += 1
        self._sum = _DECAY * self._sum + 1
        self._sum_tokens = _DECAY * self._sum_tokens + tokens
        self._sum_s = _DECAY * self._sum_s + seconds
        self._sum_tokens_tokens = _DECAY * self._sum_tokens_tokens + tokens * tokens
        self._sum_tokens_s = _DECAY * self._sum_tokens_s + tokens * seconds

    def link(self) -> Link | None:
        """The line as known now; None before the first sample."""
        if self._samples == 0:
            return None
        determinant = self._sum * self._sum_tokens_tokens - self._sum_tokens**2
        # Divided by the square of the mean, this is the relative variance of the sizes.
        if determinant > _MIN_SPREAD * self._sum_tokens**2:
            covariance = self._sum * self._sum_tokens_s - self._sum_tokens * self._sum_s
            s_per_token = covariance / determinant
            latency_s = (self._sum_s - s_per_token * self._sum_tokens) / self._sum
            if s_per_token > 0 and latency_s >= 0:
                return Link(1 / s_per_token, latency_s)
        return Link(self._sum_tokens_tokens / self._sum_tokens_s)


def choose_load(
    load_tokens: int,
    load_link: Link | None,
    prefill_link: Link | None,
    forced: Literal["auto", "load", "recompute"] = "auto",
    margin: float = 1.1,
) -> LoadChoice:
    """Whether a request should load KV from the host or compute it again.

    Args:
        load_tokens: what is on the host and not on the device.
        load_link: host to device as measured, None if not yet.
        prefill_link: prefill as measured, likewise. Its latency is left out: the request computes
            at least its last token and pays it in either case.
        forced: the answer, unless ``auto``.
        margin: how many times longer than computing a load must take to be given up.

    Returns:
        ``recompute`` only if both are measured and loading takes longer than ``margin`` times
        computing.
    """
    if forced != "auto":
        return forced
    if load_link is None or prefill_link is None:
        return "load"
    compute_s = load_tokens / prefill_link.tokens_per_s
    return "recompute" if load_link.seconds(load_tokens) > margin * compute_s else "load"
