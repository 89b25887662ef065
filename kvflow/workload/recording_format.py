"""The lines of what ``kvflow serve --record`` writes: a header, then what happened, in order. JSON.

A service that starts with a file that is there goes on in it, with a header of its own.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from kvflow.protocol import AgentSpec, EdgeSpec, Identifier, StepEvent

__all__ = [
    "RECORDING_FORMAT",
    "RecordedClose",
    "RecordedEvents",
    "RecordedWorkflow",
    "RecordingHeader",
    "RecordingLine",
    "recording_line",
]

RECORDING_FORMAT: Final = "kvflow-recording"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RecordingHeader(_Line):
    """A service has begun to record. ``at_s`` of the lines below counts from here."""

    type: Literal["header"] = "header"
    format: Literal["kvflow-recording"] = RECORDING_FORMAT
    version: Literal[1] = 1
    started_unix_s: float


class RecordedWorkflow(_Line):
    """A workflow was created."""

    type: Literal["workflow"] = "workflow"
    at_s: Seconds
    workflow_id: Identifier
    client_id: Identifier
    name: str | None = None
    agents: list[AgentSpec]
    edges: list[EdgeSpec] = []
    entry: list[Identifier]


class RecordedEvents(_Line):
    """Events were applied, in this order; duplicates are left out."""

    type: Literal["events"] = "events"
    at_s: Seconds
    workflow_id: Identifier
    events: list[StepEvent]


class RecordedClose(_Line):
    """A workflow was deleted, or has expired."""

    type: Literal["closed"] = "closed"
    at_s: Seconds
    workflow_id: Identifier
    reason: str


RecordingLine = RecordingHeader | RecordedWorkflow | RecordedEvents | RecordedClose

recording_line: Final[TypeAdapter[RecordingLine]] = TypeAdapter(
    Annotated[RecordingLine, Field(discriminator="type")]
)
"""Reads any of the lines."""
