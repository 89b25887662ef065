"""What is counted for an engine's reports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.protocol import EngineTotals
from kvflow.sglang_plugin import tally as tally_module
from kvflow.sglang_plugin.metrics import NoMetrics
from kvflow.sglang_plugin.tally import FIRST_TOKEN_BOUNDS_S, FirstTokenTimer, Tally


class Seen(NoMetrics):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name == "calls" or name.startswith("__"):
            return super().__getattribute__(name)
        return lambda *values: self.calls.append((name, *values))


CALLS: tuple[tuple[Any, ...], ...] = (
    ("evicted", "device", "suffix", 5),
    ("evicted", "host", "prefix", 7),
    ("served", "predicted", 100, 60),
    ("served", "none", 10, 0),
    ("found", 40, 15, 5),
    ("decided", "device", 0.1),
    ("state", 1, True, 2),
    ("prefetched", "load", 30, 300),
    ("prefetched", "fetch", 8, 80),
    ("prefetch_outcome", "used", 20),
    ("prefetch_outcome", "wasted", 9),
    ("prefetch_outcome", "cancelled", 1),
    ("prefetch_outcome", "late", 2),
    ("load_chosen", "load", 15),
    ("stalled", "wait", 0.5),
    ("predictions", 3, 1),
)


def test_counts_and_passes_everything_on() -> None:
    seen = Seen()
    tally = Tally(seen)
    for name, *values in CALLS:
        getattr(tally, name)(*values)
    assert seen.calls == list(CALLS)
    assert tally.totals.as_dict() == {
        "requests": 2,
        "prompt_tokens": 110,
        "cached_tokens": 60,
        "device_hit_tokens": 40,
        "host_hit_tokens": 15,
        "storage_hit_tokens": 5,
        "evicted_device_tokens": 5,
        "evicted_host_tokens": 7,
        "loaded_tokens": 30,
        "fetched_tokens": 8,
        "prefetch_used_tokens": 20,
        "prefetch_wasted_tokens": 9,
        "prefetch_cancelled_tokens": 1,
        "prefetch_late_tokens": 2,
        "predictions_hit": 3,
        "predictions_missed": 1,
    }


def test_every_metric_of_the_plugin_is_tried_here() -> None:
    assert {name for name, *_ in CALLS} == {n for n in vars(NoMetrics) if not n.startswith("_")}


def test_totals_are_those_of_the_wire() -> None:
    assert set(Tally(NoMetrics()).totals.as_dict()) == set(EngineTotals.model_fields)


def batch(**output: list[int]) -> Any:
    return SimpleNamespace(
        reqs=[SimpleNamespace(rid=rid, output_ids=ids) for rid, ids in output.items()]
    )


class TestFirstTokens:
    def test_each_request_counts_once_with_its_first_token(self) -> None:
        timer = FirstTokenTimer()
        timer.arrived("a", 10.0)
        timer.arrived("b", 10.0)
        timer.batch_done(batch(a=[], b=[7]), 10.5)  # a's prompt is in chunks
        timer.batch_done(batch(a=[1], b=[7, 8]), 12.0)
        timer.batch_done(batch(a=[1, 2], stranger=[3]), 15.0)
        assert sum(timer.counts) == 2
        for seconds in (0.5, 2.0):
            bucket = next(i for i, bound in enumerate(FIRST_TOKEN_BOUNDS_S) if seconds <= bound)
            assert timer.counts[bucket] == 1

    @pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (999, -1)])
    def test_buckets(self, seconds: float, bucket: int) -> None:
        timer = FirstTokenTimer()
        timer.arrived("a", 0.0)
        timer.batch_done(batch(a=[1]), seconds)
        assert timer.counts[bucket] == 1

    def test_requests_that_never_come_to_a_token_are_forgotten(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tally_module, "MAX_AWAITED", 2)
        timer = FirstTokenTimer()
        for rid in ("a", "b", "c", None):
            timer.arrived(rid, 0.0)
        timer.batch_done(batch(a=[1]), 1.0)
        assert sum(timer.counts) == 0
        timer.batch_done(batch(b=[1], c=[1]), 1.0)
        assert sum(timer.counts) == 2
