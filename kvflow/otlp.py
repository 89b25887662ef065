"""Spans sent to a collector, for the parts of KVFlow that are processes of their own.

OpenTelemetry is optional (``pip install 'kvflow[otel]'``) and imported only when it is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["SWITCH", "otlp_provider", "switched_on"]

SWITCH: Final = "KVFLOW_OTEL"
_ON: Final = frozenset({"1", "true", "yes", "on"})


def switched_on(env: Mapping[str, str]) -> bool:
    """Whether ``KVFLOW_OTEL`` is set. An endpoint alone does not switch spans on: it is often set
    for a whole cluster."""
    return env.get(SWITCH, "").strip().lower() in _ON


def otlp_provider(service_name: str, instance_id: str) -> TracerProvider:
    """A tracer provider that sends spans over OTLP/HTTP in a thread of its own.

    Endpoint, headers, sampler, batch sizes and resource come from OpenTelemetry's own ``OTEL_*``
    variables of the process, which go before the arguments. While a collector is away spans are
    dropped once the queue is full; nobody waits.

    Raises:
        ImportError: a package is missing.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({"service.name": service_name, "service.instance.id": instance_id})
    # Without the hook at exit: it would keep a dying process waiting for a collector that is away.
    provider = TracerProvider(
        resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
