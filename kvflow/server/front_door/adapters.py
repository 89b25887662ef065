"""One call's body as this engine wants it: without what it does not know, with what it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from kvflow.protocol import CUSTOM_PARAMS_KEY, STEPS_PARAMS_KEY
from kvflow.server.front_door.account import Account
from kvflow.server.front_door.call_hints import CallHints
from kvflow.server.front_door.priority import PriorityOrder, priority_for
from kvflow.server.trace_requests import trace_headers

__all__ = ["EngineKind", "EngineTraits", "Owner", "body_for_engine", "parse_body"]

EngineKind = Literal["kvflow", "sglang", "vllm", "unknown"]
"""``kvflow`` is SGLang with the plugin. ``unknown`` gets nothing it was not sent by the client."""

_HINT_FIELDS: Final = ("agent_hints", "nvext", "kv_hints")
_OUR_PARAMS: Final = frozenset({CUSTOM_PARAMS_KEY, STEPS_PARAMS_KEY})
_CUSTOM_PARAMS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
_GENERATIONS: Final = _CUSTOM_PARAMS | {"/v1/responses"}
_JSON_SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What is known of the engine.

    Attributes:
        priority: how it orders waiting requests by their ``priority``.
    """

    kind: EngineKind = "unknown"
    priority: PriorityOrder = "none"


@dataclass(frozen=True, slots=True)
class Owner:
    """The agent a call belongs to, by the names the engine's plugin knows."""

    client_id: str
    workflow_id: str
    agent_id: str


def parse_body(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in ``raw``, or ``None``: then the engine is left to say what is wrong.

    O(bytes), about 1 ms for a megabyte.
    """
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def body_for_engine(
    raw: bytes,
    body: Mapping[str, Any] | None,
    *,
    path: str,
    hints: CallHints,
    owner: Owner | None,
    cache_salt: str | None,
    traits: EngineTraits,
    account: Account,
) -> bytes:
    """The body to send; what was put into it is noted in ``account``.

    The client's bytes are kept as they are where that is possible: if nothing is to be taken out,
    what is added goes to their end.

    Args:
        body: what ``parse_body`` made of ``raw``.
        path: the engine's route.
        owner: goes into the request if the engine has the plugin.
        cache_salt: replaces the client's own, so that it shares no cache with other clients.
    """
    if body is None:
        account.ignore("body", "is not a JSON object, so it went to the engine as it is")
        return raw
    changes = _Changes(body, path, traits, account)
    changes.identify(hints, owner)
    changes.prioritise(hints)
    changes.salt(cache_salt)
    return changes.applied_to(raw)


class _Changes:
    """Fields to be taken out of a body and fields to be put into it."""

    def __init__(
        self, body: Mapping[str, Any], path: str, traits: EngineTraits, account: Account
    ) -> None:
        self._body = body
        self._path = path
        self._traits = traits
        self._account = account
        self._added: dict[str, Any] = {}
        self._dropped = {name for name in _HINT_FIELDS if name in body}

    def identify(self, hints: CallHints, owner: Owner | None) -> None:
        """Name the agent to the plugin, and take the name out for others."""
        given = self._body.get("custom_params")
        if given is not None and not isinstance(given, Mapping):
            return  # The engine is going to refuse it, and to say why.
        given = given or {}
        if self._traits.kind == "kvflow" and owner is not None and self._path in _CUSTOM_PARAMS:
            self._stamp(given, hints, owner)
            return
        rest = {name: value for name, value in given.items() if name not in _OUR_PARAMS}
        if len(rest) < len(given):
            if rest:
                self._added["custom_params"] = rest
            else:
                self._dropped.add("custom_params")
        if owner is not None:
            reason = f"an engine of the kind {self._traits.kind} has no use for it"
            if self._traits.kind == "kvflow":
                reason = f"{self._path} of this engine takes no custom_params"
            self._account.ignore("identity", reason)

    def prioritise(self, hints: CallHints) -> None:
        """Write the priority as the engine counts."""
        if hints.priority is None or self._path not in _GENERATIONS:
            return
        if self._body.get("priority") is not None:
            self._account.ignore("priority", "the request has the engine's own field priority")
            return
        value = priority_for(self._traits.priority, hints.priority)
        if value is None:
            self._account.ignore("priority", "this engine is not known to schedule by priority")
            return
        self._added["priority"] = value
        self._account.sent["priority"] = value

    def salt(self, cache_salt: str | None) -> None:
        """Keep the client's prefixes apart, by its own salt or by ours."""
        if cache_salt is None and "cache_salt" not in self._body:
            nvext = self._body.get("nvext")
            given = nvext.get("cache_salt") if isinstance(nvext, Mapping) else None
            if isinstance(given, str):
                cache_salt = given
            elif given is not None:
                self._account.ignore("nvext.cache_salt", "must be a string")
        if cache_salt is not None and self._path in _GENERATIONS:
            self._added["cache_salt"] = cache_salt

    def applied_to(self, raw: bytes) -> bytes:
        """The body's bytes with the changes. ``raw`` is an object's JSON."""
        added, dropped, body = self._added, self._dropped, self._body
        if not added and not dropped:
            return raw
        if dropped or not body or any(name in body for name in added):
            kept = {name: value for name, value in body.items() if name not in dropped}
            return json.dumps(kept | added).encode("ascii")
        return raw.rstrip(_JSON_SPACE)[:-1] + b"," + json.dumps(added).encode("ascii")[1:]

    def _stamp(self, given: Mapping[str, Any], hints: CallHints, owner: Owner) -> None:
        theirs = given.get(CUSTOM_PARAMS_KEY)
        fields = dict(theirs) if isinstance(theirs, Mapping) else {}
        for ours_alone in ("steps_reported", "step_id"):
            fields.pop(ours_alone, None)
        fields |= {
            "workflow_id": owner.workflow_id,
            "agent_id": owner.agent_id,
            "client_id": owner.client_id,
        }
        if hints.fixed_prefix_tokens is not None:
            fields["fixed_prefix_tokens"] = hints.fixed_prefix_tokens
        if (traceparent := trace_headers().get("traceparent")) is not None:
            fields["traceparent"] = traceparent
        self._added["custom_params"] = {**given, CUSTOM_PARAMS_KEY: fields}
        self._account.sent["custom_params"] = CUSTOM_PARAMS_KEY
