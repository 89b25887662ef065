"""KVFlow's metrics on the engine's own ``/metrics``."""

from __future__ import annotations

from typing import Literal, Protocol

from kvflow.eviction import NodeKind
from kvflow.prefetch import LoadChoice

__all__ = [
    "AgentClass",
    "Copy",
    "EngineMetrics",
    "NoMetrics",
    "Outcome",
    "StallCause",
    "Tier",
    "prometheus_metrics",
]

Tier = Literal["device", "host"]
AgentClass = Literal["predicted", "unpredicted", "none"]
"""Requests by what was known when they came: ``predicted`` if a live workflow gave their agent
finite steps, ``unpredicted`` if they named an agent but no workflow expected it, ``none`` if they
named no agent."""

Copy = Literal["load", "fetch"]
"""``load``: host to device; ``fetch``: storage to host."""
Outcome = Literal["used", "wasted", "cancelled", "late"]
"""What became of prefetched tokens. ``used``: a request read them on the device; ``wasted``: they
were evicted unread; ``cancelled``: given up before they came; ``late``: still on their way when
they were read, so the copy was only partly hidden (they count as used, too)."""
StallCause = Literal["wait", "load", "recompute"]
"""``wait``: passed over in the waiting queue; ``load``: copies that a request was behind;
``recompute``: prefix of a predicted agent that was computed anew (estimated)."""


class EngineMetrics(Protocol):
    """What the plugin reports. Called on the scheduler thread only."""

    def evicted(self, tier: Tier, kind: NodeKind, tokens: int) -> None: ...
    def served(self, agent_class: AgentClass, query_tokens: int, hit_tokens: int) -> None: ...
    def found(self, device_tokens: int, host_tokens: int, storage_tokens: int) -> None: ...
    def decided(self, tier: Tier, seconds: float) -> None: ...
    def state(self, updates_applied: int, lease_held: bool, live_workflows: int) -> None: ...
    def prefetched(self, copy: Copy, tokens: int, kv_bytes: int) -> None: ...
    def prefetch_outcome(self, outcome: Outcome, tokens: int) -> None: ...
    def load_chosen(self, choice: LoadChoice, tokens: int) -> None: ...
    def stalled(self, cause: StallCause, seconds: float) -> None: ...
    def predictions(self, hits: int, misses: int) -> None: ...


class NoMetrics:
    """For ranks that report nothing, and engines without ``--enable-metrics``."""

    def evicted(self, tier: Tier, kind: NodeKind, tokens: int) -> None:
        """Report nothing."""

    def served(self, agent_class: AgentClass, query_tokens: int, hit_tokens: int) -> None:
        """Report nothing."""

    def found(self, device_tokens: int, host_tokens: int, storage_tokens: int) -> None:
        """Report nothing."""

    def decided(self, tier: Tier, seconds: float) -> None:
        """Report nothing."""

    def state(self, updates_applied: int, lease_held: bool, live_workflows: int) -> None:
        """Report nothing."""

    def prefetched(self, copy: Copy, tokens: int, kv_bytes: int) -> None:
        """Report nothing."""

    def prefetch_outcome(self, outcome: Outcome, tokens: int) -> None:
        """Report nothing."""

    def load_chosen(self, choice: LoadChoice, tokens: int) -> None:
        """Report nothing."""

    def stalled(self, cause: StallCause, seconds: float) -> None:
        """Report nothing."""

    def predictions(self, hits: int, misses: int) -> None:
        """Report nothing."""


class _PrometheusMetrics:
    def __init__(self, model_name: str) -> None:
        # Imported late: SGLang sets PROMETHEUS_MULTIPROC_DIR before its first metric.
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["model_name", *labels])

        self._model = model_name
        self._evicted = counter(
            "kvflow_evicted_tokens_total",
            "Tokens evicted, by tier and kind of node.",
            "tier",
            "kind",
        )
        self._requests = counter(
            "kvflow_requests_total", "Finished requests, by agent class.", "agent_class"
        )
        self._queried = counter(
            "kvflow_query_tokens_total", "Prompt tokens of requests, by agent class.", "agent_class"
        )
        self._hit = counter(
            "kvflow_hit_tokens_total",
            "Prompt tokens found in cache, by agent class.",
            "agent_class",
        )
        self._updates = counter("kvflow_updates_applied_total", "Workflow updates applied.")
        self._lease = Gauge(
            "kvflow_lease_held",
            "1 while the KVFlow service is heard from, else 0 (then the engine is plain LRU).",
            ["model_name"],
            multiprocess_mode="mostrecent",
        )
        self._live = Gauge(
            "kvflow_live_workflows",
            "Workflows that weigh on eviction now.",
            ["model_name"],
            multiprocess_mode="mostrecent",
        )
        self._decision = Histogram(
            "kvflow_eviction_decision_seconds",
            "Time to choose one victim.",
            ["model_name", "tier"],
            buckets=(5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1),
        )
        self._prefetched = counter(
            "kvflow_prefetched_tokens_total",
            "Tokens copied ahead of need: load is host to device, fetch is storage to host.",
            "copy",
        )
        self._prefetched_bytes = counter(
            "kvflow_prefetched_bytes_total", "The same in bytes of KV.", "copy"
        )
        self._outcomes = counter(
            "kvflow_prefetch_outcome_tokens_total",
            "What became of prefetched tokens: used, wasted, cancelled; late ones are used too.",
            "outcome",
        )
        self._chosen = counter(
            "kvflow_load_choice_tokens_total",
            "Tokens that requests found in host memory, by what was faster: load or recompute.",
            "choice",
        )
        self._stalls = counter(
            "kvflow_stall_seconds_total",
            "Time that requests lost: wait (passed over), load (their own copies), recompute "
            "(estimated, of predicted agents' prefixes).",
            "cause",
        )
        self._predictions = counter(
            "kvflow_predictions_total", "Agents that ran, by whether they were predicted.", "result"
        )
        for copy in ("load", "fetch"):
            self._prefetched.labels(model_name, copy)
            self._prefetched_bytes.labels(model_name, copy)
        for outcome in ("used", "wasted", "cancelled", "late"):
            self._outcomes.labels(model_name, outcome)
        for choice in ("load", "recompute"):
            self._chosen.labels(model_name, choice)
        for cause in ("wait", "load", "recompute"):
            self._stalls.labels(model_name, cause)
        for result in ("hit", "miss"):
            self._predictions.labels(model_name, result)
        self._predictions_seen = (0, 0)
        self._updates_seen = 0
        for kind in ("prefix", "history", "suffix", "unknown"):
            for tier in ("device", "host"):
                self._evicted.labels(model_name, tier, kind)
        self.state(0, False, 0)

    def evicted(self, tier: Tier, kind: NodeKind, tokens: int) -> None:
        self._evicted.labels(self._model, tier, kind).inc(tokens)

    def served(self, agent_class: AgentClass, query_tokens: int, hit_tokens: int) -> None:
        self._requests.labels(self._model, agent_class).inc()
        self._queried.labels(self._model, agent_class).inc(query_tokens)
        self._hit.labels(self._model, agent_class).inc(hit_tokens)

    def found(self, device_tokens: int, host_tokens: int, storage_tokens: int) -> None:
        """SGLang has it: ``sglang:cached_tokens_total``, by ``cache_source``."""

    def decided(self, tier: Tier, seconds: float) -> None:
        self._decision.labels(self._model, tier).observe(seconds)

    def state(self, updates_applied: int, lease_held: bool, live_workflows: int) -> None:
        self._updates.labels(self._model).inc(updates_applied - self._updates_seen)
        self._updates_seen = updates_applied
        self._lease.labels(self._model).set(lease_held)
        self._live.labels(self._model).set(live_workflows)

    def prefetched(self, copy: Copy, tokens: int, kv_bytes: int) -> None:
        self._prefetched.labels(self._model, copy).inc(tokens)
        self._prefetched_bytes.labels(self._model, copy).inc(kv_bytes)

    def prefetch_outcome(self, outcome: Outcome, tokens: int) -> None:
        self._outcomes.labels(self._model, outcome).inc(tokens)

    def load_chosen(self, choice: LoadChoice, tokens: int) -> None:
        self._chosen.labels(self._model, choice).inc(tokens)

    def stalled(self, cause: StallCause, seconds: float) -> None:
        self._stalls.labels(self._model, cause).inc(max(0.0, seconds))

    def predictions(self, hits: int, misses: int) -> None:
        seen_hits, seen_misses = self._predictions_seen
        self._predictions.labels(self._model, "hit").inc(hits - seen_hits)
        self._predictions.labels(self._model, "miss").inc(misses - seen_misses)
        self._predictions_seen = (hits, misses)


def prometheus_metrics(model_name: str) -> EngineMetrics:
    """Metrics in the process's default registry, where SGLang's own are."""
    return _PrometheusMetrics(model_name)
