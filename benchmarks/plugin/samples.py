"""Samples of a measurement, and what is written down of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any, Final, TypeVar

__all__ = ["RAW_SAMPLES", "in_turn", "ratios", "summary"]

RAW_SAMPLES: Final = 24
_T = TypeVar("_T")


def in_turn(names: Iterable[_T], turn: int) -> Iterator[_T]:
    """All of them, another one first in each turn: what comes later finds warmer caches."""
    listed = list(names)
    first = turn % len(listed)
    yield from listed[first:]
    yield from listed[:first]


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, p99 and the count of the samples, and at most 24 of them, evenly spread in time."""
    ordered = sorted(samples)
    every = max(1, -(-len(samples) // RAW_SAMPLES))
    return {
        "median": _rounded(median(ordered)),
        "p99": _rounded(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]),
        "count": len(ordered),
        "raw": [_rounded(sample) for sample in samples[::every]],
    }


def ratios(these: Sequence[float], those: Sequence[float]) -> dict[str, float]:
    """``these`` over ``those``, sample by sample, as taken in turns."""
    pairs = [this / that for this, that in zip(these, those, strict=True)]
    return {
        "median": _rounded(median(pairs)),
        "least": _rounded(min(pairs)),
        "most": _rounded(max(pairs)),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
