"""Reports as an engine makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BOUNDS_S = [0.1, 0.2, 0.4, 0.8]


def placed(
    agent_id: str, tokens: int, device: int = 0, host: int = 0, storage: int = 0, **more: Any
) -> dict[str, Any]:
    """Where one agent's prefix is."""
    return {
        "client_id": "default",
        "agent_id": agent_id,
        "tokens": tokens,
        "device_tokens": device,
        "host_tokens": host,
        "storage_tokens": storage,
        **more,
    }


def report(
    number: int = 1,
    *,
    run_id: str = "run-1",
    agents: Sequence[Mapping[str, Any]] = (),
    totals: Mapping[str, int] | None = None,
    counts: Sequence[int] = (0, 0, 0, 0, 0),
    **more: Any,
) -> dict[str, Any]:
    """The body of ``POST /v1/engines/{engine_id}/report``."""
    return {
        "run_id": run_id,
        "number": number,
        "interval_s": 2.0,
        "uptime_s": 2.0 * number,
        "model": "tiny",
        "engine_version": "sglang 0.5.23",
        "plugin_version": "0.1.0",
        "running_requests": 1,
        "device": {"size_tokens": 1000, "used_tokens": 400},
        "totals": dict(totals or {}),
        "first_token": {"bounds_s": BOUNDS_S, "counts": list(counts)},
        "agents": list(agents),
        "agents_known": len(agents),
        **more,
    }
