"""The connection to the broker: made, kept, made anew. The service never waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from typing import Final

import aiomqtt

from kvflow import __version__
from kvflow.server.mqtt.acknowledging import Acknowledging
from kvflow.server.mqtt.broker import Broker
from kvflow.server.mqtt.inbound import Delivery, Inbound
from kvflow.server.mqtt.lanes import Lanes
from kvflow.server.mqtt.leftovers import Leftovers
from kvflow.server.mqtt.metrics import MqttMetrics
from kvflow.server.mqtt.news import News
from kvflow.server.mqtt.outbox import Outbox, Outgoing
from kvflow.server.mqtt.topics import Topics

__all__ = ["MqttBridge"]

BACKOFF_S: Final = (0.2, 10.0)
AT_ONCE: Final = 32
GOODBYE_S: Final = 2.0

logger = logging.getLogger("kvflow.server.mqtt")


class MqttBridge:
    """Runs beside the HTTP service until ``stop``. Whatever the broker does, it only logs."""

    def __init__(
        self,
        *,
        broker: Broker,
        topics: Topics,
        inbound: Inbound,
        outbox: Outbox,
        news: News,
        metrics: MqttMetrics,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._inbound = inbound
        self._outbox = outbox
        self._news = news
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._complained: str | None = None
        self._connections = 0
        self._started_unix_s = time.time()
        outbox.keep(topics.service_status, self._online)

    def stop(self) -> None:
        """Say goodbye to the broker and let ``run`` end, in at most some seconds."""
        self._stopping.set()

    async def run(self) -> None:
        """Connect and keep connected until ``stop``."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self._news.follow_bus(), name="kvflow-mqtt-news"),
                tasks.create_task(
                    self._inbound.give_up_overdue_forever(), name="kvflow-mqtt-early"
                ),
            ]
            await self._keep_connected()
            for helper in helpers:
                helper.cancel()

    async def _keep_connected(self) -> None:
        delay_s = BACKOFF_S[0]
        while not self._stopping.is_set():
            before = self._connections
            try:
                await self._connect_once()
            except* (aiomqtt.MqttError, OSError) as errors:
                self._complain(_first(errors))
            except* Exception:
                logger.exception("MQTT: unexpected error; connecting anew")
            if self._connections > before:
                delay_s = BACKOFF_S[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s * random.uniform(0.5, 1.0)):
                    await self._stopping.wait()
            delay_s = min(delay_s * 2, BACKOFF_S[1])

    async def _connect_once(self) -> None:
        """One connection, until it breaks (an error) or the service stops."""
        client = self._client()
        acknowledging = Acknowledging(client)
        leftovers = Leftovers(self._topics, self._outbox)

        async def apply(delivery: Delivery) -> None:
            await self._inbound.handle(delivery)
            acknowledging.done(delivery)

        lanes = Lanes(apply)

        async def receive() -> None:
            async for message in client.messages:
                if leftovers.is_one(message):
                    continue
                delivery = acknowledging.arrived(message)
                lanes.put(self._lane(delivery.topic), delivery)

        async with client:
            self._connected()
            try:
                async with asyncio.TaskGroup() as tasks:
                    lanes.start(tasks)
                    tasks.create_task(receive(), name="kvflow-mqtt-receive")
                    tasks.create_task(self._publish_forever(client), name="kvflow-mqtt-publish")
                    for topic in self._topics.all_commands:
                        await client.subscribe(topic, qos=1)
                    tasks.create_task(leftovers.look(client), name="kvflow-mqtt-leftovers")
                    await self._stopping.wait()
                    raise _StoppingError
            except* _StoppingError:
                await self._say_goodbye(client)
            finally:
                self._metrics.connected.set(0)
                self._outbox.disconnect()

    def _client(self) -> aiomqtt.Client:
        broker = self._broker
        client = aiomqtt.Client(
            broker.host,
            broker.port,
            username=broker.username,
            password=broker.password,
            tls_context=broker.tls,
            identifier=broker.session,
            # The broker keeps what is sent to us while we are away.
            clean_session=False,
            will=aiomqtt.Will(self._topics.service_status, self._offline(), qos=1, retain=True),
            keepalive=broker.keepalive_s,
            timeout=broker.timeout_s,
            logger=logging.getLogger("kvflow.server.mqtt.client"),
        )
        client.pending_calls_threshold = 2 * AT_ONCE
        return client

    async def _publish_forever(self, client: aiomqtt.Client) -> None:
        while True:
            await self._publish(client, await self._outbox.take(AT_ONCE))

    async def _publish(self, client: aiomqtt.Client, messages: list[Outgoing]) -> None:
        """Side by side, as each waits for the broker's answer. A batch has no topic's state twice,
        so what comes later under a topic is sent later."""
        async with asyncio.TaskGroup() as tasks:
            for one in messages:
                tasks.create_task(client.publish(one.topic, one.payload, qos=1, retain=one.retain))
        for one in messages:
            self._metrics.published.labels(one.kind, "sent").inc()

    async def _say_goodbye(self, client: aiomqtt.Client) -> None:
        """What is left to say, and that we go: after a proper goodbye there is no last will."""
        with contextlib.suppress(aiomqtt.MqttError, TimeoutError, ExceptionGroup):
            async with asyncio.timeout(GOODBYE_S):
                while left := self._outbox.take_now(AT_ONCE):
                    await self._publish(client, left)
                await client.publish(
                    self._topics.service_status, self._offline(), qos=1, retain=True
                )

    def _connected(self) -> None:
        self._metrics.connected.set(1)
        self._metrics.connections.inc()
        self._connections += 1
        self._outbox.connect()
        self._complained = None
        logger.info("MQTT: connected to %s", self._broker.address)

    def _complain(self, error: BaseException) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._complained:
            self._complained = reason
            logger.warning(
                "MQTT: no connection to %s (%s); the service goes on without and tries again",
                self._broker.address,
                reason,
            )

    def _lane(self, topic: str) -> str:
        address = self._topics.address(topic)
        return f"{address.client_id}/{address.workflow_id}" if address else topic

    def _online(self) -> bytes:
        return json.dumps(
            {
                "status": "online",
                "version": __version__,
                "since_unix_s": self._started_unix_s,
            }
        ).encode()

    def _offline(self) -> bytes:
        return json.dumps({"status": "offline", "version": __version__}).encode()


class _StoppingError(Exception):
    """The service stops: ends the tasks of a connection."""


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
