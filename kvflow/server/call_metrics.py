"""The Prometheus metrics of calls that pass through the front door."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["CallMetrics"]

_ADDED_BUCKETS: Final = (2.5e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 1.0)
_FIRST_BYTE_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class CallMetrics:
    """Names end in their unit, counters in ``_total``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "kvflow_front_door_calls_total",
            "Calls passed to the engine, by route and outcome: finished, failed (an error status, "
            "no answer, or an answer that broke off) or cancelled (the client hung up).",
            ["route", "outcome"],
            registry=registry,
        )
        self.running = Gauge(
            "kvflow_front_door_calls_running",
            "Calls that the engine is answering now.",
            registry=registry,
        )
        self.preparing_seconds = Histogram(
            "kvflow_front_door_preparing_seconds",
            "From the call's last byte to its first byte to the engine.",
            buckets=_ADDED_BUCKETS,
            registry=registry,
        )
        self.first_byte_seconds = Histogram(
            "kvflow_front_door_first_byte_seconds",
            "From the call to the first byte of the engine's answer, by route. Of a streamed "
            "generation: time to first token.",
            ["route"],
            buckets=_FIRST_BYTE_BUCKETS,
            registry=registry,
        )
        self.events = Counter(
            "kvflow_front_door_events_total",
            "Step events made of calls, by outcome: applied, refused, failed or dropped.",
            ["outcome"],
            registry=registry,
        )
