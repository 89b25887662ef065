"""Payloads of messages to the service: the bodies of the REST API, with an optional id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from kvflow.errors import InvalidInputError
from kvflow.protocol import Identifier, StepEvent, WorkflowSpec
from kvflow.server.bodies import EventsBody
from kvflow.server.long_bodies import checked_events, checked_graph

__all__ = ["Envelope", "MalformedPayloadError", "read_envelope", "read_events", "read_spec"]

_EVENTS: Final = TypeAdapter[StepEvent | list[StepEvent]](EventsBody)
_IDENTIFIER: Final = TypeAdapter[str](Identifier)


class MalformedPayloadError(Exception):
    """The payload is not JSON."""


class Envelope:
    """A payload with its ``message_id`` taken out."""

    __slots__ = ("body", "message_id")

    def __init__(self, body: Any, message_id: str | None) -> None:
        self.body = body
        self.message_id = message_id


def read_envelope(payload: bytes) -> Envelope:
    """Take a payload apart. An empty one is an empty object.

    Raises:
        MalformedPayloadError: it is not JSON.
        InvalidInputError: ``message_id`` is no identifier.
    """
    try:
        body = from_json(payload) if payload.strip() else {}
    except ValueError as error:
        raise MalformedPayloadError(f"the payload is not JSON: {error}") from error
    if not isinstance(body, dict) or "message_id" not in body:
        return Envelope(body, None)
    try:
        message_id = _IDENTIFIER.validate_python(body.pop("message_id"), strict=True)
    except ValidationError as error:
        raise InvalidInputError(
            ["message_id"],
            "must start with a letter or digit and go on with letters, digits and . _ : @ -, at "
            "most 256 characters",
        ) from error
    return Envelope(body, message_id)


async def read_events(body: Any) -> tuple[Sequence[StepEvent], bool]:
    """The events, and whether they were a list: ``{"events": [...]}`` is the same as ``[...]``.

    Raises:
        ValidationError: pydantic's, as for the REST API.
    """
    if isinstance(body, dict) and set(body) == {"events"}:
        body = body["events"]
    await checked_events(body)
    read = _EVENTS.validate_python(body)
    return (read, True) if isinstance(read, list) else ([read], False)


async def read_spec(body: Any, client_id: str, workflow_id: str) -> WorkflowSpec:
    """The workflow; its ids are those of the topic, and need not be said again.

    Raises:
        ValidationError: pydantic's, as for the REST API.
        InvalidInputError: the body names another client or workflow than the topic.
    """
    ids = {"client_id": client_id, "workflow_id": workflow_id}
    if isinstance(body, dict):
        for name, value in ids.items():
            if body.get(name, value) != value:
                raise InvalidInputError(
                    [name], f"is {body[name]!r}, but the topic says {value!r}; leave it out"
                )
        body = {**body, **ids}
    await checked_graph(body)
    return WorkflowSpec.model_validate(body)
