"""The ``kv_hints`` envelope, as vLLM, SGLang and Dynamo have it, and our answer to one."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ActionAnswer", "ActionStatus", "KVHintAction", "KVHintsAnswer", "KVHintsEnvelope"]

PROTOCOL_VERSION: Final = "0.1"
MAX_ACTIONS: Final = 64

ActionStatus = Literal["accepted", "clipped", "deferred", "rejected", "missing"]

_Name = Annotated[str, Field(min_length=1, max_length=512)]


class KVHintAction(BaseModel):
    """One action. What its payload must hold depends on its type, and is said in the answer."""

    model_config = ConfigDict(extra="ignore")

    action_id: _Name
    action_type: _Name = Field(
        description="Share, Prefetch, Demote, Pin or Retain; also as kv.share and so on."
    )
    action_version: Annotated[str, Field(max_length=64)]
    payload: dict[str, Any] = {}


class KVHintsEnvelope(BaseModel):
    """Body of ``POST /v1/kv_hints``, and of the field ``kv_hints`` of a call."""

    model_config = ConfigDict(extra="ignore")

    protocol_version: Annotated[str, Field(max_length=64)] = Field(
        description="0.1. Not insisted on: every action has a version of its own."
    )
    message_id: _Name
    actions: Annotated[list[KVHintAction], Field(max_length=MAX_ACTIONS)] = []


class ActionAnswer(BaseModel):
    """What became of one action."""

    action_id: str
    action_type: str
    status: ActionStatus = Field(
        description="accepted: as asked. clipped: in part, see reason. deferred: not now, but it "
        "was kept. rejected: not at all. missing: there is no such workflow, agent or session."
    )
    reason: str | None = Field(default=None, description="In words; null if accepted.")
    workflow_id: str | None = None
    agent_ids: list[str] = []
    expires_in_s: float | None = Field(
        default=None, description="After this long it is as if the action had never been."
    )


class KVHintsAnswer(BaseModel):
    """Answer to ``POST /v1/kv_hints``: one for each action, in their order."""

    protocol_version: str = PROTOCOL_VERSION
    message_id: str
    actions: list[ActionAnswer]
