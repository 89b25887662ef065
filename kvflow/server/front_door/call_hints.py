"""What a call says about itself: which agent of which workflow it is, and what it hopes for.

Four dialects, the first that names a field decides about it:

1. ours: ``custom_params.kvflow`` in the body, as the SDK sends it, and ``X-KVFlow-...`` headers;
2. ``agent_hints`` at the top level of the body, as proposed for SGLang;
3. ``nvext.agent_hints``, as Dynamo takes them;
4. Dynamo's session headers: the session is the agent, the root of its tree the workflow.

A hint that cannot be used is ignored and said to be; a call never fails for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvflow.protocol import CUSTOM_PARAMS_KEY, STEPS_PARAMS_KEY
from kvflow.server.front_door.account import Account
from kvflow.server.front_door.priority import MAX_PRIORITY
from kvflow.server.front_door.sessions import SessionTree

__all__ = ["CallHints", "read_hints"]

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,255}\Z")
_NOT_AN_IDENTIFIER: Final = "must be 1 to 256 letters, digits and . _ : @ -"
_MAX_TOKENS: Final = 10_000_000

_HEADERS: Final = {
    "workflow_id": "x-kvflow-workflow-id",
    "agent_id": "x-kvflow-agent-id",
    "client_id": "x-kvflow-client-id",
    "step_id": "x-kvflow-step-id",
}
_IDENTITY: Final = frozenset(_HEADERS)
_PRIORITY_HEADER: Final = "x-dynamo-request-priority"
_SESSION_HEADER: Final = "x-dynamo-session-id"
_PARENT_HEADER: Final = "x-dynamo-parent-session-id"
_FINAL_HEADER: Final = "x-dynamo-session-final"

# In custom_params.kvflow, for the plugin or read below.
_OURS_BESIDES: Final = frozenset({"steps_reported", "traceparent", "ttl_s", "version"})

# Hints that others have defined and that say nothing to us, with the reason.
_NO_USE: Final = {
    "strict_priority": "there is no router's queue here; use priority",
    "osl": "the engine measures output lengths itself",
    "speculative_prefill": "agents that run next are prefetched from their workflow's graph",
    "reuse_hint": "reuse follows from the workflow's graph; cache_ttl_ms keeps a prefix longer",
    "parent_step_id": "the order of steps follows from the workflow's graph",
}


@dataclass(frozen=True, slots=True)
class CallHints:
    """What was understood. ``None``: not said, or not usable.

    Attributes:
        step_id: names the run of the agent that the call belongs to.
        steps_reported: the caller reports this run's steps itself.
        in_band: the call brings its workflow's steps-to-execution.
        priority: ours, see ``kvflow.server.front_door.priority``.
        retain_s: how long the agent's prefix is to be kept after the call.
        tool_s: how long the tool that the agent calls next is going to take.
        kv_hints: an envelope of KV hints, unchecked.
    """

    workflow_id: str | None = None
    agent_id: str | None = None
    client_id: str | None = None
    step_id: str | None = None
    steps_reported: bool = False
    in_band: bool = False
    fixed_prefix_tokens: int | None = None
    priority: int | None = None
    retain_s: float | None = None
    tool_s: float | None = None
    session_id: str | None = None
    parent_session_id: str | None = None
    session_final: bool = False
    kv_hints: object = None


def read_hints(
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None,
    namespace: str,
    sessions: SessionTree,
    account: Account,
) -> CallHints:
    """The hints of one call. Never raises; O(hints).

    Args:
        headers: with names in lower case.
        body: the request's JSON object; ``None`` if it has none.
    """
    found = _Found(account)
    body = body or {}
    params = body.get("custom_params")
    ours = _object(params, CUSTOM_PARAMS_KEY, "custom_params.kvflow", account)
    found.take(ours, "custom_params.kvflow")
    found.take({field: headers.get(name) for field, name in _HEADERS.items()}, "headers")
    if _PRIORITY_HEADER in headers:
        found.take({"priority": _integer(headers[_PRIORITY_HEADER])}, "headers")
    found.take(_object(body, "agent_hints", "agent_hints", account), "agent_hints")
    nvext = _object(body, "nvext", "nvext", account)
    found.take(_object(nvext, "agent_hints", "nvext.agent_hints", account), "nvext.agent_hints")
    session = _identifier(headers.get(_SESSION_HEADER), _SESSION_HEADER, account)
    parent = _identifier(headers.get(_PARENT_HEADER), _PARENT_HEADER, account)
    if session is not None:
        root = sessions.place(namespace, session, parent)
        found.take({"workflow_id": root, "agent_id": session}, "session headers")
    elif parent is not None:
        account.ignore(_PARENT_HEADER, f"needs {_SESSION_HEADER} beside it")
    values = found.values
    if ("workflow_id" in values) != ("agent_id" in values):
        given, absent = sorted(("workflow_id", "agent_id"), key=lambda name: name not in values)
        account.ignore(given, f"needs {absent} beside it")
        del account.used[given], values[given]
    return CallHints(
        **values,
        steps_reported=ours.get("steps_reported") is True,
        in_band=isinstance(params, Mapping) and STEPS_PARAMS_KEY in params,
        session_id=session,
        parent_session_id=parent,
        session_final=headers.get(_FINAL_HEADER, "").strip().lower() == "true",
        kv_hints=body.get("kv_hints"),
    )


class _Found:
    """Values by field of ``CallHints``, and the account of where they came from."""

    def __init__(self, account: Account) -> None:
        self.values: dict[str, Any] = {}
        self._account = account

    def take(self, hints: Mapping[str, Any], source: str) -> None:
        """Take what these say and no earlier ones have said."""
        for name, value in hints.items():
            if value is None:
                continue
            if name in _NO_USE:
                self._account.ignore(f"{source}.{name}", _NO_USE[name])
                continue
            field, usable = _read(name, value)
            if field is None and name not in _OURS_BESIDES:
                self._account.ignore(f"{source}.{name}", "is not a hint that is known here")
            if field is None or field in self.values:
                continue
            if usable is None:
                self._account.ignore(f"{source}.{name}", _EXPECTED[name])
            else:
                self.values[field] = usable
                self._account.used[field] = source


_EXPECTED: Final = {
    **dict.fromkeys(_IDENTITY, _NOT_AN_IDENTIFIER),
    "fixed_prefix_tokens": f"must be an integer from 0 to {_MAX_TOKENS}",
    "priority": f"must be an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}",
    "cache_ttl_ms": "must be a number of milliseconds, more than 0",
    "expected_tool_duration_ms": "must be a number of milliseconds, more than 0",
}
_MILLISECONDS: Final = {"cache_ttl_ms": "retain_s", "expected_tool_duration_ms": "tool_s"}


def _read(name: str, value: Any) -> tuple[str | None, Any]:
    """``(field of CallHints or None, its value or None where it is unusable)``."""
    if name in _IDENTITY:
        return name, value if isinstance(value, str) and _IDENTIFIER.match(value) else None
    if name in _MILLISECONDS:
        return _MILLISECONDS[name], _seconds(value)
    if name == "fixed_prefix_tokens":
        return name, value if _is_integer(value) and 0 <= value <= _MAX_TOKENS else None
    if name == "priority":
        return name, value if _is_integer(value) and abs(value) <= MAX_PRIORITY else None
    return None, None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(text: str) -> int | str:
    try:
        return int(text[:20])
    except ValueError:
        return text


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = value / 1000
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _object(holder: object, key: str, name: str, account: Account) -> Mapping[str, Any]:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        account.ignore(name, "must be an object")
        return {}
    return value


def _identifier(value: str | None, name: str, account: Account) -> str | None:
    if value is None:
        return None
    if not _IDENTIFIER.match(value):
        account.ignore(name, _NOT_AN_IDENTIFIER)
        return None
    return value
