"""What the calls of an arm amount to, and how arms compare. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from kvflow.bench.rows import Run
from kvflow.demo.summary import percentile

__all__ = [
    "METRICS",
    "TIERS",
    "Difference",
    "differences",
    "prefetch_figures",
    "ratios",
    "summarize",
]

TIERS: Final = ("device", "host", "storage")

_OUTCOMES: Final = ("used", "wasted", "cancelled", "late")
_CAUSES: Final = ("wait", "load", "recompute")


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """An arm in figures; over the calls that are counted, of all repeats.

    Percentiles are of all these calls together; what a repeat has one of (wall time, throughput,
    stall time) is a median with the least and the most.

    Raises:
        ValueError: nothing was counted.
    """
    rows = [row for run in runs for row in run.counted]
    if not rows:
        raise ValueError("nothing was counted")
    prompt_tokens = sum(row.prompt_tokens for row in rows)
    ttft_s = [row.ttft_s for row in rows]
    total_s = [row.total_s for row in rows]
    return {
        "calls": len(rows),
        "prompt_tokens": prompt_tokens,
        "output_tokens": sum(row.output_tokens for row in rows),
        "hit_rate": sum(row.cached_tokens for row in rows) / prompt_tokens,
        "hit_rate_by_tier": {
            tier: sum(getattr(row, f"{tier}_tokens") for row in rows) / prompt_tokens
            for tier in TIERS
        },
        "bound_hit_rate": _bound(runs, lambda run: run.bound_hits),
        "mirrored_hit_rate": _bound(runs, lambda run: run.mirrored_hits),
        **{f"ttft_p{percent}_s": percentile(ttft_s, percent) for percent in (50, 95, 99)},
        **{f"total_p{percent}_s": percentile(total_s, percent) for percent in (50, 95, 99)},
        "wall_s": spread([run.wall_s for run in runs]),
        "calls_per_s": spread([METRICS["calls_per_s"].of(run) for run in runs]),
        "output_tokens_per_s": spread(
            [sum(row.output_tokens for row in run.counted) / run.wall_s for run in runs]
        ),
        "prefetch": _figures(runs),
        "refusals": sum(len(run.refusals) for run in runs),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def prefetch_figures(delta: Mapping[str, float]) -> dict[str, float] | None:
    """What the plugin counted in one run, by short names; None without the plugin.

    Bytes of an outcome are its tokens at the size of those that were copied.
    """
    if not delta:
        return None

    def counted(name: str, label: str, value: str) -> float:
        return delta.get(f'kvflow_{name}_total{{{label}="{value}"}}', 0.0)

    figures = {
        f"{copied}_tokens": counted("prefetched_tokens", "copy", copy)
        for copied, copy in (("loaded", "load"), ("fetched", "fetch"))
    }
    figures |= {
        f"{copied}_bytes": counted("prefetched_bytes", "copy", copy)
        for copied, copy in (("loaded", "load"), ("fetched", "fetch"))
    }
    copied_tokens = figures["loaded_tokens"] + figures["fetched_tokens"]
    copied_bytes = figures["loaded_bytes"] + figures["fetched_bytes"]
    token_bytes = copied_bytes / copied_tokens if copied_tokens else 0.0
    for outcome in _OUTCOMES:
        tokens = counted("prefetch_outcome_tokens", "outcome", outcome)
        figures[f"{outcome}_tokens"] = tokens
        figures[f"{outcome}_bytes"] = tokens * token_bytes
    for cause in _CAUSES:
        figures[f"stall_{cause}_s"] = counted("stall_seconds", "cause", cause)
    for result in ("hit", "miss"):
        figures[f"predictions_{result}"] = counted("predictions", "result", result)
    return figures


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of one run; ``higher_is_better`` decides which way a ratio is written."""

    title: str
    of: Callable[[Run], float]
    higher_is_better: bool = False


def _ttft(percent: float) -> Callable[[Run], float]:
    return lambda run: percentile([row.ttft_s for row in run.counted], percent)


METRICS: Final[Mapping[str, Metric]] = {
    "wall_s": Metric("end to end", lambda run: run.wall_s),
    "ttft_p50_s": Metric("TTFT p50", _ttft(50)),
    "ttft_p95_s": Metric("TTFT p95", _ttft(95)),
    "ttft_p99_s": Metric("TTFT p99", _ttft(99)),
    "calls_per_s": Metric(
        "throughput", lambda run: len(run.counted) / run.wall_s, higher_is_better=True
    ),
}


def ratios(arms: Mapping[str, Sequence[Run]], references: Sequence[str]) -> list[dict[str, Any]]:
    """How many times as fast each arm is as each reference: above 1 is in the arm's favour.

    Each repeat of an arm is set against the same repeat of the reference, which ran next to it;
    the median, least and most are over repeats.
    """
    found = []
    for name, runs in arms.items():
        for reference in references:
            if reference == name or reference not in arms:
                continue
            pairs = list(zip(runs, arms[reference], strict=False))
            compared = {
                key: spread([_times_as_fast(metric, *pair) for pair in pairs])
                for key, metric in METRICS.items()
            }
            found.append({"arm": name, "to": reference, **compared})
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that one arm or repeat answered otherwise than the first did, or did not make."""

    workflow_id: str
    position: int
    repeat: int
    arm: str


def differences(arms: Mapping[str, Sequence[Run]]) -> list[Difference]:
    """Compare the answers of all runs with those of the first arm's first repeat."""
    expected: dict[tuple[str, int], str] | None = None
    found = []
    for name, runs in arms.items():
        for run in runs:
            answers = {(row.workflow_id, row.position): row.output_hash for row in run.calls}
            if expected is None:
                expected = answers
            found += [
                Difference(*call, run.repeat, name)
                for call in sorted(expected.keys() | answers.keys())
                if expected.get(call) != answers.get(call)
            ]
    return found


def _times_as_fast(metric: Metric, run: Run, reference: Run) -> float:
    mine, theirs = metric.of(run), metric.of(reference)
    return mine / theirs if metric.higher_is_better else theirs / mine


def _bound(runs: Sequence[Run], hits_of: Callable[[Run], Sequence[int] | None]) -> float | None:
    known = [(run, run.counted_of(hits_of(run))) for run in runs]
    worked_out = [(run, hits) for run, hits in known if hits is not None]
    if not worked_out:
        return None
    prompt_tokens = sum(row.prompt_tokens for run, _ in worked_out for row in run.counted)
    return sum(hits for _, hits in worked_out) / prompt_tokens


def _figures(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The median of each figure over repeats; None without the plugin."""
    figures = [found for run in runs if (found := prefetch_figures(run.metrics_delta)) is not None]
    if not figures:
        return None
    return {name: median(one[name] for one in figures) for name in figures[0]}
