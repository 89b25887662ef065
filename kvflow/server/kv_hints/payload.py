"""What an action's payload says, in the words of those who send such payloads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvflow.server.kv_hints.envelope import ActionStatus

__all__ = ["Payload", "RefusedError", "read_payload"]

_MAX_AGENTS: Final = 1_000
# Names that others give to the same thing, with the seconds in one of their units.
_TTL_NAMES: Final = {"ttl_s": 1.0, "ttl_seconds": 1.0, "duration": 1.0, "ttl_ms": 0.001}
# Parts of a prefix, which we keep as a whole.
_PART_NAMES: Final = ("directives", "block_hashes", "start", "end", "token_range")


class RefusedError(Exception):
    """The action cannot be done; ``status`` and the reason for the answer."""

    def __init__(self, status: ActionStatus, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload understood.

    Attributes:
        agent_ids: ``None``: all agents of the workflow.
        ttl_s: ``None``: not said.
        priority: of a retain; ``None``: not said.
        names_parts: it addresses parts of a prefix.
    """

    workflow_id: str | None
    agent_ids: tuple[str, ...] | None
    session_id: str | None
    ttl_s: float | None
    priority: float | None
    names_parts: bool


def read_payload(payload: Mapping[str, Any]) -> Payload:
    """Take what is known; other fields are ignored, as the protocol goes on growing.

    Raises:
        RefusedError: a field that is known has a value that means nothing.
    """
    directives = _directives(payload.get("directives"))
    ttls = [
        _number(holder, name) * unit
        for holder in (payload, *directives)
        for name, unit in _TTL_NAMES.items()
        if holder.get(name) is not None
    ]
    priorities = [
        _number(holder, "priority")
        for holder in (payload, *directives)
        if holder.get("priority") is not None
    ]
    return Payload(
        workflow_id=_text(payload, "workflow_id"),
        agent_ids=_agents(payload),
        session_id=_text(payload, "session_id"),
        ttl_s=max(ttls, default=None),
        priority=max(priorities, default=None),
        names_parts=any(payload.get(name) is not None for name in _PART_NAMES),
    )


def _agents(payload: Mapping[str, Any]) -> tuple[str, ...] | None:
    one, several = _text(payload, "agent_id"), payload.get("agent_ids")
    if several is None:
        return None if one is None else (one,)
    if (
        not isinstance(several, list)
        or not all(isinstance(agent_id, str) for agent_id in several)
        or not 1 <= len(several) <= _MAX_AGENTS
    ):
        raise RefusedError("rejected", f"agent_ids must be a list of 1 to {_MAX_AGENTS} strings")
    return tuple(dict.fromkeys(several if one is None else [one, *several]))


def _directives(value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise RefusedError("rejected", "directives must be a list of objects")
    return value


def _text(payload: Mapping[str, Any], name: str) -> str | None:
    value = payload.get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise RefusedError("rejected", f"{name} must be a string that is not empty")
    return value


def _number(payload: Mapping[str, Any], name: str) -> float:
    value = payload[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("rejected", f"{name} must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= 0):
        raise RefusedError("rejected", f"{name} must be finite and not negative")
    return number
