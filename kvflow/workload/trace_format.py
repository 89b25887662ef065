"""The lines of a trace file: a header, then one line per workflow. JSON, UTF-8."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvflow.protocol import DEFAULT_CLIENT_ID, AgentSpec, EdgeSpec, Identifier

__all__ = ["TRACE_FORMAT", "GraphLine", "TraceCall", "TraceHeader", "TraceWorkflow"]

TRACE_FORMAT: Final = "kvflow-trace"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Key = Annotated[str, Field(min_length=1)]
PieceLine = tuple[Key, Annotated[int, Field(ge=1)]]
"""``[key, tokens]``."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TraceHeader(_Line):
    """The first line."""

    format: Literal["kvflow-trace"]
    version: Literal[1]
    name: str = "trace"
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Workflows at once; none where each begins at its ``arrival_s``."""
    warm_up_calls: Annotated[int, Field(ge=0)] = 0


class GraphLine(_Line):
    """What was declared, as in the body of ``POST /v1/workflows``."""

    agents: list[AgentSpec]
    edges: list[EdgeSpec] = []
    entry: list[Identifier]


class TraceCall(_Line):
    agent_id: Identifier
    after: tuple[Annotated[int, Field(ge=0)], ...] = ()
    pause_s: Seconds = 0.0
    prompt: Annotated[tuple[PieceLine, ...], Field(min_length=1)]
    fixed_pieces: Annotated[int, Field(ge=0)] = 0
    answer: PieceLine
    measured: dict[str, Any] = {}
    """What the call took where it was recorded. For people; a replay does not read it."""

    @model_validator(mode="after")
    def _fixed_pieces_are_there(self) -> Self:
        if self.fixed_pieces > len(self.prompt):
            raise ValueError(
                f"fixed_pieces is {self.fixed_pieces}, and the prompt has {len(self.prompt)} pieces"
            )
        return self


class TraceWorkflow(_Line):
    """Every other line."""

    workflow_id: Identifier
    client_id: Identifier = DEFAULT_CLIENT_ID
    arrival_s: Seconds | None = None
    graph: GraphLine | None = None
    calls: Annotated[tuple[TraceCall, ...], Field(min_length=1)]
