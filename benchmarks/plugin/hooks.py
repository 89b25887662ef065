"""What the plugin's hooks add to a scheduler step in which they have nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Final

from benchmarks.plugin.hints import live_update, own_leaves
from benchmarks.plugin.requests import Tree, build_tree
from benchmarks.plugin.samples import summary
from benchmarks.plugin.trees import quiet_collector
from kvflow.sglang_plugin.foresight import Foresight
from kvflow.sglang_plugin.runtime import PluginRuntime
from kvflow.sglang_plugin.schedule import StatusAwareScheduling
from kvflow.sglang_plugin.settings import PluginSettings
from tests.sglang_plugin.hicache import build_engine, patched_sglang

__all__ = ["measure_hooks"]

WORKFLOWS: Final = 100
AGENTS: Final = 10
STEPS_PER_SAMPLE: Final = 20
_LEAF_TOKENS: Final = 4


def measure_hooks(samples: int) -> list[dict[str, Any]]:
    """Microseconds per step, all hooks together; the states take turns.

    The scheduler is a stand-in that has a batch decoding and nothing waiting, so what is measured
    is the plugin alone.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    batch = SimpleNamespace(forward_mode=ForwardMode.DECODE, hicache_consumer_index=-1)
    scheduler = SimpleNamespace(
        waiting_queue=[], running_batch=SimpleNamespace(reqs=[], is_empty=lambda: False)
    )
    with ExitStack() as stack:
        stack.enter_context(patched_sglang())
        steps = {
            (tiers, workflows): _step(_cache(stack, tiers, workflows), tiers, scheduler, batch)
            for tiers in ("device", "device and host")
            for workflows in (0, WORKFLOWS)
        }
        stack.enter_context(quiet_collector())
        taken = _taken(steps, samples)
    return [
        {"tiers": tiers, "live_workflows": workflows, "us": summary(taken[tiers, workflows])}
        for tiers, workflows in steps
    ]


def _taken(
    steps: Mapping[tuple[str, int], Callable[[], None]], samples: int
) -> dict[tuple[str, int], list[float]]:
    taken: dict[tuple[str, int], list[float]] = {state: [] for state in steps}
    for step in steps.values():
        for _ in range(STEPS_PER_SAMPLE):
            step()
    for _ in range(samples):
        for state, step in steps.items():
            begun_s = time.perf_counter()
            for _ in range(STEPS_PER_SAMPLE):
                step()
            taken[state].append((time.perf_counter() - begun_s) / STEPS_PER_SAMPLE * 1e6)
    return taken


def _cache(stack: ExitStack, tiers: str, workflows: int) -> Any:
    tokens = WORKFLOWS * AGENTS * _LEAF_TOKENS + 64
    cache = (
        build_tree("kvflow", 1, tokens, 16).cache
        if tiers == "device"
        else stack.enter_context(build_engine(capacity_tokens=tokens)).cache
    )
    if workflows:
        own_leaves(Tree(cache), workflows, AGENTS)
        cache.apply_control(live_update(workflows, AGENTS))
    return cache


def _step(cache: Any, tiers: str, scheduler: Any, batch: Any) -> Callable[[], None]:
    """The hooks of one step, in the order in which SGLang comes to them."""
    runtime = PluginRuntime(PluginSettings(service_url=None))
    runtime._cache = cache
    runtime._schedule = StatusAwareScheduling(cache, None)
    runtime._scheduler = scheduler
    if tiers != "device":
        runtime._foresight = Foresight(cache, PluginSettings().prefetch_max_tokens)

    def step() -> None:
        received: list[Any] = []
        received = runtime.add_messages(received) or received
        runtime.take_messages(_nothing, scheduler, received)
        runtime.form_batch(_no_batch, scheduler)
        runtime.before_run(scheduler, batch)
        runtime.batch_done(None, scheduler, batch)

    return step


def _nothing(*_args: Any) -> None:
    """What SGLang does with the requests is not measured."""


def _no_batch(*_args: Any) -> tuple[None]:
    return (None,)
