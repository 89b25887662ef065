"""What is counted of MQTT. The names exist only where a broker is set."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

__all__ = ["MqttMetrics"]


class MqttMetrics:
    """In the service's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connected = Gauge(
            "kvflow_mqtt_connected", "1 while connected to the MQTT broker.", registry=registry
        )
        self.connections = Counter(
            "kvflow_mqtt_connections_total",
            "Connections made to the MQTT broker; each after the first is a reconnect.",
            registry=registry,
        )
        self.received = Counter(
            "kvflow_mqtt_received_total",
            "Messages from the broker, by command (create, events, close or other) and outcome: "
            "applied, duplicate, held (came early, counted again when that is over), refused or "
            "ignored (retained by mistake).",
            ["command", "outcome"],
            registry=registry,
        )
        self.published = Counter(
            "kvflow_mqtt_published_total",
            "Messages to the broker, by kind (state or notice) and outcome: sent or dropped. "
            "States are never dropped: what a state was while the broker was away, nobody needs.",
            ["kind", "outcome"],
            registry=registry,
        )
