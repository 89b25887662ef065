"""Scenarios on a real engine: what each kind of cache makes of them."""

from kvflow.bench.arms import ARMS, BenchArm, choose_arms
from kvflow.bench.progress import LineProgress, Progress
from kvflow.bench.result import BenchResult
from kvflow.bench.runner import BenchOptions, run_bench

__all__ = [
    "ARMS",
    "BenchArm",
    "BenchOptions",
    "BenchResult",
    "LineProgress",
    "Progress",
    "choose_arms",
    "run_bench",
]
