"""What the plugin's hooks do in a scheduler step, with the real cache and no scheduler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvflow.prefetch import Link
from kvflow.sglang_plugin import runtime as runtime_module
from kvflow.sglang_plugin.control import Rates, Tick
from kvflow.sglang_plugin.runtime import TICK_S, PluginRuntime
from kvflow.sglang_plugin.settings import PluginSettings
from tests.sglang_plugin.caches import build_cache, finished_request

MEASURED = Rates(load=Link(100.0))


class Clock:
    """In place of the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(runtime_module, "time", fake)
    return fake


@pytest.fixture
def runtime() -> PluginRuntime:
    runtime = PluginRuntime(PluginSettings(service_url=None))
    runtime._cache = build_cache("kvflow", 100)
    return runtime


def take(runtime: PluginRuntime, *items: Any) -> list[Any]:
    """A step in which these were received; what SGLang gets to see of them."""
    seen: list[Any] = []
    runtime.take_messages(lambda _, reqs: seen.extend(reqs), object(), list(items))
    return seen


class TestClock:
    def test_is_that_of_this_step_or_none(self, runtime: PluginRuntime) -> None:
        cache = runtime._cache
        assert cache is not None
        take(runtime, Tick(50.0, MEASURED))
        assert (cache.kvflow_now_s, cache.kvflow_rates) == (50.0, MEASURED)
        take(runtime, finished_request([1], (), None))
        assert cache.kvflow_now_s is None
        take(runtime, Tick(51.0, MEASURED))
        assert cache.kvflow_now_s == 51.0
        take(runtime)
        assert (cache.kvflow_now_s, cache.kvflow_rates) == (None, MEASURED)

    def test_messages_stay_with_us(self, runtime: PluginRuntime) -> None:
        request = finished_request([1], (), None)
        assert take(runtime, Tick(50.0, MEASURED), request) == [request]


class TestTicks:
    def ticks(self, runtime: PluginRuntime) -> list[Any]:
        return runtime.add_messages([]) or []

    def test_none_where_nothing_is_measured_and_nobody_waits(self, runtime: PluginRuntime) -> None:
        assert self.ticks(runtime) == []

    def test_at_each_step_while_a_decision_depends_on_the_time(
        self, runtime: PluginRuntime, clock: Clock
    ) -> None:
        schedule = SimpleNamespace(needs_clock=True)
        runtime._schedule = schedule  # type: ignore[assignment]
        for now_s in (1000.0, 1000.01):
            clock.now_s = now_s
            assert self.ticks(runtime) == [Tick(now_s, Rates())]
        schedule.needs_clock = False
        assert self.ticks(runtime) == []

    def test_now_and_then_when_rates_have_changed(
        self, runtime: PluginRuntime, clock: Clock
    ) -> None:
        runtime._foresight = SimpleNamespace(rates=Rates())  # type: ignore[assignment]
        assert self.ticks(runtime) == []
        runtime._foresight = SimpleNamespace(rates=MEASURED)  # type: ignore[assignment]
        assert self.ticks(runtime) == [Tick(1000.0, MEASURED)]
        clock.now_s += 2 * TICK_S
        assert self.ticks(runtime) == []
        runtime._foresight = SimpleNamespace(rates=Rates())  # type: ignore[assignment]
        assert self.ticks(runtime) == [Tick(clock.now_s, Rates())]
        runtime._foresight = SimpleNamespace(rates=MEASURED)  # type: ignore[assignment]
        clock.now_s += TICK_S / 2
        assert self.ticks(runtime) == []

    def test_a_tick_carries_the_rates_of_its_time(
        self, runtime: PluginRuntime, clock: Clock
    ) -> None:
        runtime._foresight = SimpleNamespace(rates=MEASURED)  # type: ignore[assignment]
        runtime._schedule = SimpleNamespace(needs_clock=True)  # type: ignore[assignment]
        assert self.ticks(runtime) == [Tick(1000.0, MEASURED)]
        runtime._schedule = None
        clock.now_s += 2 * TICK_S
        assert self.ticks(runtime) == []  # these are known

    def test_ranks_that_pull_nothing_add_nothing(self, runtime: PluginRuntime) -> None:
        runtime._schedule = SimpleNamespace(needs_clock=True)  # type: ignore[assignment]
        assert runtime.add_messages(None) is None


class TestBeforeRun:
    @pytest.mark.parametrize(
        ("mode", "index"),
        [("DECODE", -1), ("EXTEND", 2), ("MIXED", 2), ("IDLE", 2), ("TARGET_VERIFY", 2)],
    )
    def test_a_batch_that_decodes_waits_for_nothing(
        self, runtime: PluginRuntime, mode: str, index: int
    ) -> None:
        batch = batch_of(mode)
        assert runtime.before_run(object(), batch) is None
        assert batch.hicache_consumer_index == index

    def test_not_without_our_cache(self, runtime: PluginRuntime) -> None:
        runtime._cache = None
        batch = batch_of("DECODE")
        runtime.before_run(object(), batch)
        assert batch.hicache_consumer_index == 2


def batch_of(mode: str) -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(forward_mode=ForwardMode[mode], hicache_consumer_index=2)
