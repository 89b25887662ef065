"""Messages from the broker, applied to the workflows as requests over HTTP would be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from kvflow.errors import (
    InvalidInputError,
    KVFlowError,
    RateLimitedError,
    StepNotRunningError,
    WorkflowNotFoundError,
)
from kvflow.server.identity import Identity
from kvflow.server.limits import Limits
from kvflow.server.mqtt.bodies import (
    MalformedPayloadError,
    read_envelope,
    read_events,
    read_spec,
)
from kvflow.server.mqtt.duplicates import Remembered, redelivery_key
from kvflow.server.mqtt.early import EarlyMessages
from kvflow.server.mqtt.metrics import MqttMetrics
from kvflow.server.mqtt.outbox import Outbox
from kvflow.server.mqtt.refusals import PayloadTooLargeError, problem_document
from kvflow.server.mqtt.topics import Address, Topics
from kvflow.server.store import StoreUnavailableError
from kvflow.server.workflows import EventRefusedError, Workflows

__all__ = ["Delivery", "Inbound"]

MAX_EARLY: Final = 1_000
PATIENCE_S: Final = 30.0

logger = logging.getLogger("kvflow.server.mqtt")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the broker gave it; ``again``: it says it gave it before."""

    topic: str
    payload: bytes
    mid: int
    qos: int = 1
    retained: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class _Message:
    """A delivery that could be read."""

    topic: str
    address: Address
    body: Any
    message_id: str | None

    @property
    def workflow(self) -> tuple[str, str]:
        return (self.address.client_id, self.address.workflow_id)


class Inbound:
    """Applies messages. ``handle`` never raises; messages of one workflow come one at a time.

    Args:
        identity_of: who a client is, by the id in the topic.
        limits: what a client may do, as over HTTP; what is too fast waits, with the broker.
        wait_s: how long a message may wait for one that it builds on.
        max_payload_bytes: longer ones are refused.
    """

    def __init__(
        self,
        workflows: Workflows,
        topics: Topics,
        outbox: Outbox,
        metrics: MqttMetrics,
        *,
        clock: Callable[[], float],
        identity_of: Callable[[str], Identity],
        limits: Limits,
        wait_s: float,
        max_payload_bytes: int,
    ) -> None:
        self._workflows = workflows
        self._topics = topics
        self._outbox = outbox
        self._metrics = metrics
        self._clock = clock
        self._identity_of = identity_of
        self._limits = limits
        self._wait_s = wait_s
        self._max_payload_bytes = max_payload_bytes
        self._applied_ids = Remembered()
        self._deliveries = Remembered()
        self._early: EarlyMessages[_Message] = EarlyMessages(wait_s, MAX_EARLY)

    async def handle(self, delivery: Delivery) -> None:
        """Apply one message, keep it for a moment, or answer why not.

        On return it may be acknowledged to the broker.
        """
        seen = redelivery_key(delivery.mid, delivery.topic, delivery.payload)
        address = self._topics.address(delivery.topic)
        if delivery.again and seen in self._deliveries:
            self._count(address, "duplicate")
            return
        message = await self._read(delivery, address)
        if message is not None:
            await self._handle(message)
        self._deliveries.add(seen)

    async def _handle(self, message: _Message) -> None:
        if message.message_id and (message.address, message.message_id) in self._applied_ids:
            self._count(message.address, "duplicate")
        elif await self._try(message):
            await self._try_early(message.workflow)
        else:
            self._early.hold(message.workflow, message, self._clock())
            self._count(message.address, "held")

    async def give_up_overdue(self) -> None:
        """A last try for messages that have waited long enough. To be called now and then."""
        for message in self._early.overdue(self._clock()):
            await self._try(message, last=True)

    async def give_up_overdue_forever(self) -> None:
        """The task that does so."""
        while True:
            await asyncio.sleep(self._wait_s / 4)
            await self.give_up_overdue()

    async def _read(self, delivery: Delivery, address: Address | None) -> _Message | None:
        """The message, or ``None`` if it was refused or is to be ignored."""
        topic = delivery.topic
        if delivery.retained:
            # The broker would give it out again at every connection, long after its time.
            self._count(address, "ignored")
            logger.warning("ignoring a retained message on %r: publish without retain", topic)
            return None
        try:
            if address is None:
                raise InvalidInputError(
                    ["topic"],
                    "client and workflow must start with a letter or digit and go on with "
                    "letters, digits and . _ : @ -, at most 256 characters each",
                )
            if len(delivery.payload) > self._max_payload_bytes:
                raise PayloadTooLargeError(self._max_payload_bytes)
            envelope = read_envelope(delivery.payload)
        except (InvalidInputError, MalformedPayloadError, PayloadTooLargeError) as error:
            await self._refuse(topic, address, None, error)
            return None
        return _Message(topic, address, envelope.body, envelope.message_id)

    async def _try(self, message: _Message, *, last: bool = False) -> bool:
        """Apply a message or refuse it. False: neither, as it may fit later."""
        try:
            await self._apply_patiently(message)
        except (KVFlowError, ValidationError) as error:
            if not last and _may_come_right(error, message):
                return False
            await self._refuse(message.topic, message.address, message.message_id, error)
        except Exception as error:
            logger.exception("a message on %r could not be applied", message.topic)
            await self._refuse(message.topic, message.address, message.message_id, error)
        else:
            if message.message_id:
                self._applied_ids.add((message.address, message.message_id))
            self._count(message.address, "applied")
        return True

    async def _try_early(self, workflow: tuple[str, str]) -> None:
        """The workflow has changed: what waited for that may fit now, and let more fit."""
        progress = True
        while progress:
            progress = False
            still_early = []
            for message, until_s in self._early.take(workflow):
                if await self._try(message):
                    progress = True
                else:
                    still_early.append((message, until_s))
            self._early.put_back(workflow, still_early)

    async def _apply_patiently(self, message: _Message) -> None:
        """Wait while the client is too fast or the store is away: meanwhile the broker keeps what
        comes after. A sender over MQTT could not be told to try again."""
        left_s = PATIENCE_S
        while True:
            try:
                await self._apply(message)
            except (RateLimitedError, StoreUnavailableError) as error:
                wait_s = min(1.0, left_s)
                if isinstance(error, RateLimitedError):
                    wait_s = min(max(error.wait_s, 0.01), left_s)
                if wait_s <= 0:
                    raise
                left_s -= wait_s
                await asyncio.sleep(wait_s)
            else:
                return

    async def _apply(self, message: _Message) -> None:
        address, body = message.address, message.body
        who = self._identity_of(address.client_id)
        namespace = who.namespace
        if address.command == "create":
            spec = await read_spec(body, address.client_id, address.workflow_id)
            await self._workflows.create(
                spec, namespace=namespace, most=self._limits.max_workflows(who)
            )
        elif address.command == "close":
            await self._close(address, namespace, body)
        else:
            events, is_list = await read_events(body)
            await self._check_owner(address, namespace)
            self._limits.events(who, len(events))
            try:
                await self._workflows.apply(address.workflow_id, events, namespace=namespace)
            except EventRefusedError as refused:
                if is_list:
                    raise
                # Its index would point into a list that the sender did not send.
                raise refused.cause from refused

    async def _close(self, address: Address, namespace: str, body: Any) -> None:
        if body != {}:
            raise InvalidInputError([], "close takes nothing but a message_id")
        try:
            await self._check_owner(address, namespace)
            await self._workflows.delete(address.workflow_id, namespace=namespace)
        except WorkflowNotFoundError:
            # Closed before, or expired: what the sender wants is so.
            return

    async def _check_owner(self, address: Address, namespace: str) -> None:
        """Where the service has no keys the broker may: its rules for topics name clients, so
        nobody gets at another client's workflow by its id."""
        record = await self._workflows.get(address.workflow_id, namespace=namespace)
        if record.client_id != address.client_id:
            raise WorkflowNotFoundError(address.workflow_id)

    async def _refuse(
        self, topic: str, address: Address | None, message_id: str | None, error: Exception
    ) -> None:
        self._count(address, "refused")
        client_id = address.client_id if address else self._topics.client_of(topic)
        if client_id is None:
            logger.warning("refusing a message on %r: %s", topic[:300], error)
            return
        document = await problem_document(error, topic=topic, message_id=message_id)
        self._outbox.send(self._topics.errors(client_id), document)

    def _count(self, address: Address | None, outcome: str) -> None:
        self._metrics.received.labels(address.command if address else "other", outcome).inc()


def _may_come_right(error: Exception, message: _Message) -> bool:
    """Whether what is missing may be on its way.

    Not for a finish that nothing tells from a repeated one: kept, it would end the next start.
    """
    cause = error.cause if isinstance(error, EventRefusedError) else error
    if isinstance(cause, StepNotRunningError):
        return cause.step_id is not None or message.message_id is not None
    return isinstance(cause, WorkflowNotFoundError)
