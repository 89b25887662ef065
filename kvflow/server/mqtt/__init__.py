"""Events in and plans out over an MQTT broker, beside HTTP (``KVFLOW_MQTT_URL``)."""

from kvflow.server.mqtt.setup import mqtt_bridge

__all__ = ["mqtt_bridge"]
