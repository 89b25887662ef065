"""Acknowledging messages only once they are applied.

With QoS 1 the broker keeps a message until the receiver acknowledges it. Paho does so as soon as it
has read the message, which a crash of the service would then lose. So acknowledging is set to
manual here; aiomqtt has no interface for it, and the paho client inside it is asked directly.
"""

from __future__ import annotations

from typing import Any

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage

from kvflow.server.mqtt.inbound import Delivery

__all__ = ["Acknowledging"]


class Acknowledging:
    """One connection's messages that are not acknowledged yet. To be made before it connects.

    MQTT wants acknowledgements in the order of the messages (MQTT-4.6.0-2), in whichever order they
    are dealt with.
    """

    def __init__(self, client: aiomqtt.Client) -> None:
        self._paho = client._client
        self._paho.manual_ack_set(True)
        self._again: set[int] = set()
        self._pending: dict[int, bool] = {}
        on_message = self._paho.on_message

        def note_redelivery(paho: PahoClient, userdata: Any, message: MQTTMessage) -> None:
            # aiomqtt's own message type does not have it.
            if message.dup:
                self._again.add(message.mid)
            if on_message is not None:
                on_message(paho, userdata, message)

        self._paho.on_message = note_redelivery

    def arrived(self, message: aiomqtt.Message) -> Delivery:
        """Take note of a message, in the order of arrival."""
        again = message.mid in self._again
        self._again.discard(message.mid)
        if message.qos > 0:
            self._pending[message.mid] = False
        payload = message.payload
        return Delivery(
            topic=message.topic.value,
            payload=payload if isinstance(payload, bytes) else str(payload).encode(),
            mid=message.mid,
            qos=message.qos,
            retained=bool(message.retain),
            again=again,
        )

    def done(self, delivery: Delivery) -> None:
        """A message is dealt with; it is acknowledged once all before it are."""
        if delivery.qos == 0:
            return
        self._pending[delivery.mid] = True
        for mid, dealt_with in list(self._pending.items()):
            if not dealt_with:
                return
            del self._pending[mid]
            self._paho.ack(mid, 1)
