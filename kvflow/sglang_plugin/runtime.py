"""The plugin's life in one process: what it registers with SGLang, and what runs each step."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from kvflow.sglang_plugin.channel import ServiceChannel
from kvflow.sglang_plugin.compat import (
    check_version,
    complete_fences,
    prefetch_obstacle,
    select_tree_core,
    served_model_name,
)
from kvflow.sglang_plugin.control import ControlMessage, Rates, Tick
from kvflow.sglang_plugin.settings import PluginSettings

if TYPE_CHECKING:
    from kvflow.sglang_plugin.cache import KVFlowRadixCache
    from kvflow.sglang_plugin.foresight import Foresight
    from kvflow.sglang_plugin.metrics import EngineMetrics
    from kvflow.sglang_plugin.reporting import Reporting
    from kvflow.sglang_plugin.schedule import StatusAwareScheduling
    from kvflow.sglang_plugin.timelines import Timelines

__all__ = ["PluginRuntime"]

logger = logging.getLogger(__name__)

BACKEND = "kvflow"
TICK_S = 1.0
NAP_S = 0.0005
REPLAN_MS = 20
MIN_TIMED_PREFILL_TOKENS = 64
POLLIN = 1
"""``zmq.POLLIN``, which SGLang's idle sleeper polls for."""
_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_SLEEPER = "sglang.srt.managers.scheduler_components.idle_sleeper.IdleSleeper"
_RECEIVER = "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver"


class PluginRuntime:
    """State of the plugin in one process of SGLang.

    In a process that has no KVFlow cache (the launcher, the detokenizer, a scheduler that was
    started without ``--radix-cache-backend kvflow``) its hooks do nothing.
    """

    def __init__(self, settings: PluginSettings) -> None:
        self._settings = settings
        self._cache: KVFlowRadixCache | None = None
        self._foresight: Foresight | None = None
        self._schedule: StatusAwareScheduling | None = None
        self._scheduler: Any = None
        self._channel: ServiceChannel | None = None
        self._pp_rank = 0
        self._tick_s = 0.0
        self._rates = Rates()
        self._timelines: Timelines | None = None
        self._reporting: Reporting | None = None
        self._polled_s = 0.0
        self._prefills: deque[tuple[float, int]] = deque(maxlen=8)
        self._polled_fd: int | None = None

    def install(self) -> None:
        """Register the cache, the tree core and the hooks.

        Raises:
            UnsupportedEngineError: this SGLang is not in the compatibility table.
        """
        check_version()
        from sglang.srt.mem_cache.registry import register_radix_cache_backend
        from sglang.srt.mem_cache.unified_cache.tree_core_registry import (
            register_tree_core_backend,
        )
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        register_radix_cache_backend(BACKEND, self.create_cache)
        register_tree_core_backend(BACKEND, _create_tree_core)
        HookRegistry.register(f"{_RECEIVER}._pull_raw_reqs", self.add_messages, HookType.AFTER)
        HookRegistry.register(
            f"{_SCHEDULER}.process_input_requests", self.take_messages, HookType.AROUND
        )
        HookRegistry.register(
            f"{_SCHEDULER}._get_new_batch_prefill_raw", self.form_batch, HookType.AROUND
        )
        HookRegistry.register(f"{_SCHEDULER}.process_batch_result", self.batch_done, HookType.AFTER)
        HookRegistry.register(f"{_SCHEDULER}.run_batch", self.before_run, HookType.BEFORE)
        HookRegistry.register(f"{_SCHEDULER}.flush_cache", self.before_flush, HookType.BEFORE)
        HookRegistry.register(f"{_SCHEDULER}.on_idle", self.after_idle, HookType.AFTER)
        HookRegistry.register(f"{_SLEEPER}.maybe_sleep", self.sleep, HookType.AROUND)

    def create_cache(self, ctx: Any) -> Any:
        """Factory behind ``--radix-cache-backend kvflow``."""
        from sglang.srt.mem_cache import registry
        from sglang.srt.mem_cache.unified_cache.components import ComponentType

        from kvflow.sglang_plugin.cache import KVFlowRadixCache
        from kvflow.sglang_plugin.foresight import Foresight
        from kvflow.sglang_plugin.metrics import NoMetrics, prometheus_metrics
        from kvflow.sglang_plugin.reporting import Reporting
        from kvflow.sglang_plugin.schedule import StatusAwareScheduling
        from kvflow.sglang_plugin.timelines import Timelines
        from kvflow.sglang_plugin.tree import KVFlowFullComponent

        params = ctx.params
        if params.enable_session_radix_cache:
            raise ValueError(
                "--radix-cache-backend kvflow does not go with --enable-session-radix-cache: "
                "both order eviction. Leave one of them out."
            )
        params.component_registry_override = {
            **(params.component_registry_override or {}),
            ComponentType.FULL: KVFlowFullComponent,
        }
        select_tree_core(params, BACKEND)
        cache = _build(registry, ctx, KVFlowRadixCache)
        metrics: EngineMetrics = NoMetrics()
        if params.enable_metrics and ctx.tp_rank == 0:
            metrics = prometheus_metrics(served_model_name(ctx.server_args))
        if ctx.tp_rank == 0 and params.pp_rank == 0:
            model = served_model_name(ctx.server_args)
            self._reporting = Reporting.of(self._settings, metrics, model)
            metrics = metrics if self._reporting is None else self._reporting.tally
        cache.report_to(metrics)
        if cache.cache_controller is not None:
            complete_fences(cache.cache_controller, ctx.tp_worker.model_runner.forward_stream)
        self._pp_rank = params.pp_rank
        self._cache = cache
        cache.kvflow_load = self._settings.load
        cache.kvflow_weights.order_by(self._settings.order)
        self._schedule = StatusAwareScheduling(cache, self._settings.admission_overcommit)
        if ctx.tp_rank == 0 and params.pp_rank == 0:
            self._timelines = self._schedule.timelines = Timelines.of(self._settings)
            cache.kvflow_timelines = self._timelines
        obstacle = prefetch_obstacle(ctx.server_args, cache)
        if obstacle is not None and self._settings.prefetch:
            logger.info("KVFlow: nothing is prefetched: %s", obstacle)
        if obstacle is None and params.pp_rank == 0:
            self._foresight = Foresight(
                cache, self._settings.prefetch_max_tokens, plans=self._settings.prefetch
            )
        return cache

    def add_messages(self, recv_reqs: list[Any] | None, *args: Any, **kwargs: Any) -> Any:
        """After the first rank pulled its requests: add what the service said.

        Ranks that pull nothing get None and leave it so; they receive the broadcast.
        """
        if recv_reqs is None or self._cache is None or self._pp_rank != 0:
            return None
        if self._channel is None and self._settings.service_url is not None:
            self._channel = ServiceChannel(self._settings.service_url, self._settings)
            self._channel.start()
        self._poll_timelines()
        if self._reporting is not None:
            self._reporting.poll(self._cache, self._scheduler)
        messages = self._channel.take() if self._channel is not None else []
        if self._needs_tick():
            self._tick_s = time.monotonic()
            if self._foresight is not None:
                self._rates = self._foresight.rates
            messages.append(Tick(self._tick_s, self._rates))
        if self._foresight is not None and self._scheduler is not None:
            try:
                messages += self._foresight.messages(self._scheduler.waiting_queue, recv_reqs)
            except Exception:
                logger.exception("KVFlow: nothing is planned in this step; the engine goes on")
        return [*messages, *recv_reqs] if messages else None

    def _poll_timelines(self) -> None:
        now_s = time.monotonic()
        if self._timelines is not None and now_s - self._polled_s >= TICK_S:
            self._polled_s = now_s
            self._timelines.poll(now_s)

    def _needs_tick(self) -> bool:
        cache, schedule = self._cache, self._schedule
        if schedule is not None and schedule.needs_clock:
            return True
        if cache is None or not (cache.kvflow_weights.needs_ticks or self._foresight):
            return False
        if time.monotonic() - self._tick_s < TICK_S:
            return False
        if self._foresight is None:
            return True
        return cache.kvflow_weights.needs_ticks or self._foresight.rates != self._rates

    def take_messages(self, original: Any, scheduler: Any, recv_reqs: list[Any]) -> Any:
        """On every rank, before the requests are dispatched: apply the messages among them."""
        cache = self._cache
        self._scheduler = scheduler
        if cache is not None:
            cache.kvflow_now_s = None
        if cache is None or not recv_reqs:
            return original(scheduler, recv_reqs)
        requests = []
        for item in recv_reqs:
            if isinstance(item, ControlMessage):
                self._guarded(cache.apply_control, item)
                continue
            requests.append(item)
            for request in getattr(item, "batch", None) or (item,):
                sampling_params = getattr(request, "sampling_params", None)
                custom_params = getattr(sampling_params, "custom_params", None)
                if self._timelines is not None:
                    self._timelines.arrived(request, custom_params)
                if self._reporting is not None:
                    self._reporting.arrived(request)
                if custom_params:
                    self._guarded(cache.apply_request_hints, custom_params)
                    salt = getattr(request, "cache_salt", None) or None
                    self._guarded(cache.called, custom_params, salt)
        return original(scheduler, requests)

    def form_batch(self, original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        """On every rank, when a batch of new requests is formed."""
        if self._schedule is None:
            return original(scheduler, *args, **kwargs)
        result = self._schedule.form_batch(original, scheduler, *args, **kwargs)
        batch = result[0]
        if batch is not None:
            waits = batch.hicache_consumer_index >= 0
            self._prefills.append(
                (time.monotonic(), 0 if waits else int(batch.extend_num_tokens or 0))
            )
            if self._timelines is not None:
                self._timelines.batch_formed(batch, overlapped=waits)
        return result

    def batch_done(self, result: Any, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """After a batch: how long a prefill took is worth knowing. Returns None: no change."""
        if self._timelines is not None:
            self._timelines.batch_done(batch)
        if self._reporting is not None and batch.forward_mode.is_extend():
            self._reporting.prefilled(batch)
        if batch.forward_mode.is_extend() and self._prefills:
            formed_s, tokens = self._prefills.popleft()
            if self._foresight is not None and tokens >= MIN_TIMED_PREFILL_TOKENS:
                self._foresight.prefilled(tokens, time.monotonic() - formed_s)

    def before_run(self, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
        """A batch that decodes has waited for its loads when it was prefilled.

        SGLang leaves the index of that wait on the batch; the events behind it are those of a
        later copy by now, which is none of the batch's business.
        """
        if self._cache is not None and batch.forward_mode.is_decode():
            batch.hicache_consumer_index = -1

    def before_flush(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """SGLang refuses to flush while copies are under way; ours are not worth that."""
        if self._cache is not None and self._cache.kvflow_transfers.busy:
            self._cache.kvflow_transfers.drain()

    def after_idle(self, result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        """With copies under way SGLang's idle loop does not sleep; nap, so as not to spin."""
        if self._cache is not None and self._cache.kvflow_transfers.busy:
            time.sleep(NAP_S)

    def sleep(self, original: Any, sleeper: Any) -> Any:
        """With ``--sleep-on-idle``: wake up for messages, and when there is something to plan."""
        if self._cache is None or self._pp_rank != 0 or not hasattr(sleeper, "poller"):
            return original(sleeper)
        if self._channel is not None and self._polled_fd is None:
            self._polled_fd = self._channel.wake_fd
            sleeper.poller.register(self._polled_fd, POLLIN)
        if self._reporting is not None and self._reporting.gathering:
            return None
        if self._foresight is not None and self._foresight.pending:
            if not self._cache.kvflow_changed:
                sleeper.poller.poll(REPLAN_MS)
            return None
        return original(sleeper)

    @staticmethod
    def _guarded(apply: Any, *values: object) -> None:
        """Hints are advisory: an error of ours is logged and never reaches the engine."""
        try:
            apply(*values)
        except Exception:
            logger.exception("KVFlow: a message could not be applied; the engine goes on")


def _create_tree_core(params: Any, components: Any) -> Any:
    from kvflow.sglang_plugin.tree import KVFlowTreeCore

    return KVFlowTreeCore(params, components)


def _build(registry: Any, ctx: Any, cache_class: type[KVFlowRadixCache]) -> KVFlowRadixCache:
    """Let SGLang assemble the cache, components and HiCache included, from our class."""
    create = getattr(registry, "create_unified_radix_cache", None)
    cache: KVFlowRadixCache
    if create is not None:
        cache = create(ctx, cache_class=cache_class)
        return cache
    # Up to 0.5.20 the class is no parameter: it is looked up by name when the cache is built.
    from sglang.srt.mem_cache import unified_radix_cache

    stock = unified_radix_cache.UnifiedRadixCache
    unified_radix_cache.UnifiedRadixCache = cache_class
    try:
        cache = registry._create_unified_radix_cache(ctx, ctx.server_args, ctx.params)
    finally:
        unified_radix_cache.UnifiedRadixCache = stock
    return cache


def register() -> None:
    """Entry point ``sglang.srt.plugins``: called once in each process of SGLang."""
    PluginRuntime(PluginSettings.from_env(os.environ)).install()
