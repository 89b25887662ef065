"""The wire format of ``/v1/overview``, which the dashboard is drawn from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from kvflow.protocol import EngineSummary, RecentFigures, WorkflowView

__all__ = [
    "AgentPlacement",
    "EngineRow",
    "HistoryPoint",
    "Overview",
    "PlacementOnEngine",
    "WorkflowPicture",
    "WorkflowRow",
    "WorkflowRows",
]

Place = Literal["device", "host", "storage", "gone", "unknown"]


class HistoryPoint(RecentFigures):
    """What all reporting engines together counted in one stretch of time."""

    ago_s: float = Field(description="How long ago the stretch ended; negative: it has not yet.")


class EngineRow(BaseModel):
    """An engine that is connected, reports, or did until ten minutes ago."""

    engine_id: str
    state: Literal["live", "silent", "lost"] = Field(
        description="live: on the stream or its report's lease holds; silent: on the stream "
        "without reports; lost: neither."
    )
    connected_for_s: float | None = Field(description="null: not on the stream.")
    pending: int | None
    report: EngineSummary | None


class Overview(BaseModel):
    """``GET /v1/overview``."""

    version: str
    live_workflows: int
    engines_total: int = Field(description="Engines that match the search.")
    engines: list[EngineRow]
    recent: RecentFigures = Field(description="The last minute, over all engines.")
    slot_s: float = Field(description="How long each of the points is: 10, 30 or 60 seconds.")
    history: list[HistoryPoint] = Field(description="The last hour, oldest first; may have gaps.")


class WorkflowRow(BaseModel):
    """A live workflow in a few words."""

    namespace: str
    workflow_id: str
    client_id: str
    name: str | None
    agents: int
    running: list[str] = Field(description="Agents that run now, five at most.")
    running_count: int
    next: list[str] = Field(description="Agents one step away, five at most.")
    steps_started: int
    mispredictions: int
    idle_s: float = Field(description="Time since the last event.")
    expires_in_s: float


class WorkflowRows(BaseModel):
    """``GET /v1/overview/workflows``."""

    workflows: list[WorkflowRow]
    next_page: str | None


class PlacementOnEngine(BaseModel):
    """Tokens of a fixed prefix in one engine, each in the nearest tier that has it."""

    engine_id: str
    tokens: int
    device_tokens: int
    host_tokens: int
    storage_tokens: int


class AgentPlacement(BaseModel):
    """Where an agent's fixed prefix is: on the engines that know it, the nearest first."""

    agent_id: str
    place: Place = Field(
        description="Where most of it is on the first of the engines; unknown: no engine has "
        "reported it."
    )
    engines: list[PlacementOnEngine] = Field(description="Four at most.")
    engine_count: int


class WorkflowPicture(BaseModel):
    """``GET /v1/overview/workflows/{workflow_id}``."""

    namespace: str
    workflow: WorkflowView
    placements: list[AgentPlacement]
