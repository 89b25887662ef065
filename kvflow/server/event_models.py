"""The wire format of ``/v1/events``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

__all__ = ["EventsEnd", "ServiceEvent"]


class ServiceEvent(BaseModel):
    """One thing that happened; the event's name is its kind."""

    seq: int = Field(description="Grows by one with every event of a response, of whatever name.")
    kind: str
    at_unix_s: float = Field(description="When, in seconds since 1970.")
    data: dict[str, Any] = Field(description="The particulars, by kind.")


class EventsEnd(BaseModel):
    """The last event of a response, named ``dropped`` or ``end``."""

    seq: int
    reason: str = Field(description="Why nothing follows, and what to do.")
