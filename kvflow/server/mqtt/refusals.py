"""Why a message was refused, as the problem document that HTTP would have answered."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from kvflow.errors import KVFlowError
from kvflow.server.mqtt.bodies import MalformedPayloadError
from kvflow.server.problems import problem_for, problem_for_status

__all__ = ["PayloadTooLargeError", "problem_document"]


class PayloadTooLargeError(Exception):
    """The payload is longer than a request's body may be."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the payload must be at most {max_bytes} bytes (KVFLOW_MAX_BODY_BYTES)")


async def problem_document(error: Exception, *, topic: str, message_id: str | None) -> bytes:
    """The problem as JSON, with ``topic`` and ``message_id`` of the message beside it."""
    members: dict[str, Any] = {"topic": topic, "message_id": message_id}
    match error:
        case MalformedPayloadError():
            problem = problem_for_status(400, str(error))
        case PayloadTooLargeError():
            problem = problem_for_status(413, str(error))
        case KVFlowError() | ValidationError():
            problem = await problem_for(error, topic)
        case _:
            problem = problem_for_status(500, "an internal error; the service's log has it")
    # ASCII, as what is quoted from a message may be text that UTF-8 cannot encode.
    return json.dumps({**problem.model_dump(), **members}).encode("ascii")
