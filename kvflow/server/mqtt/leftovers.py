"""Retained messages of what is no more: a service that starts anew finds those of its last life."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiomqtt

from kvflow.server.mqtt.outbox import Outbox
from kvflow.server.mqtt.topics import Topics

__all__ = ["Leftovers"]

_QUIET_S: Final = 1.0
_LONGEST_S: Final = 60.0

logger = logging.getLogger("kvflow.server.mqtt")


class Leftovers:
    """Looks, after each connect, at what the broker retains, and clears what has no state.

    The broker gives out what it retains upon a subscription, which ends when no more comes.
    """

    def __init__(self, topics: Topics, outbox: Outbox) -> None:
        self._topics = topics
        self._outbox = outbox
        self._heard = asyncio.Event()
        self.cleared = 0

    def is_one(self, message: aiomqtt.Message) -> bool:
        """Whether the message is of the topics that are looked at; if it is a leftover, clear it.

        To be asked of every message, as they come on the same connection as all others.
        """
        topic = message.topic.value
        if self._topics.is_command(topic):
            return False
        # Without the flag it is what this service publishes right now.
        if message.retain:
            self._heard.set()
            if topic not in self._outbox:
                self.cleared += 1
                self._outbox.clear(topic)
        return True

    async def look(self, client: aiomqtt.Client) -> None:
        """Subscribe, wait until the broker has told all it has, and unsubscribe."""
        for topic in self._topics.all_retained:
            await client.subscribe(topic, qos=0)
        try:
            async with asyncio.timeout(_LONGEST_S):
                while True:
                    self._heard.clear()
                    async with asyncio.timeout(_QUIET_S):
                        await self._heard.wait()
        except TimeoutError:
            pass
        for topic in self._topics.all_retained:
            await client.unsubscribe(topic)
        if self.cleared:
            logger.info("cleared %d retained messages of a former run", self.cleared)
            self.cleared = 0
