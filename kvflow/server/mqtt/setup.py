"""The bridge put together, where a broker is set."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

from kvflow.errors import EnvironmentProblemError
from kvflow.server.event_bus import EventBus
from kvflow.server.identity import Identity
from kvflow.server.limits import Limits
from kvflow.server.metrics import ServiceMetrics
from kvflow.server.mqtt.broker import broker_of
from kvflow.server.settings import ServiceSettings
from kvflow.server.stream import EngineStreams
from kvflow.server.workflows import Workflows

__all__ = ["Bridge", "mqtt_bridge"]


class Bridge(Protocol):
    """Runs beside the service; nothing in it fails the service."""

    async def run(self) -> None:
        """Until ``stop``."""

    def stop(self) -> None:
        """Let ``run`` end, in at most some seconds."""


def mqtt_bridge(
    settings: ServiceSettings,
    *,
    workflows: Workflows,
    streams: EngineStreams,
    bus: EventBus,
    metrics: ServiceMetrics,
    clock: Callable[[], float],
    identity_of: Callable[[str], Identity],
    limits: Limits,
) -> Bridge | None:
    """The bridge to ``settings.mqtt_url``, not running yet; ``None`` without one.

    Args:
        identity_of: who a client is, by the id that a topic names.

    Raises:
        EnvironmentProblemError: the MQTT client is not installed, or a certificate not readable.
    """
    if settings.mqtt_url is None:
        return None
    if find_spec("aiomqtt") is None:
        raise EnvironmentProblemError(
            "KVFLOW_MQTT_URL is set, but the MQTT client is not installed",
            "pip install 'kvflow[mqtt]', or unset KVFLOW_MQTT_URL",
        )
    from kvflow.server.mqtt.bridge import MqttBridge
    from kvflow.server.mqtt.inbound import Inbound
    from kvflow.server.mqtt.metrics import MqttMetrics
    from kvflow.server.mqtt.news import News
    from kvflow.server.mqtt.outbox import Outbox
    from kvflow.server.mqtt.topics import Topics

    counted = MqttMetrics(metrics.registry)
    topics = Topics(settings.mqtt_prefix)
    outbox = Outbox(counted)
    inbound = Inbound(
        workflows,
        topics,
        outbox,
        counted,
        clock=clock,
        identity_of=identity_of,
        limits=limits,
        wait_s=settings.mqtt_reorder_wait_s,
        max_payload_bytes=settings.max_body_bytes,
    )
    news = News(streams, bus, topics, outbox)
    return MqttBridge(
        broker=broker_of(settings),
        topics=topics,
        inbound=inbound,
        outbox=outbox,
        news=news,
        metrics=counted,
    )
