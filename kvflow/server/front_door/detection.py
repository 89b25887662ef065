"""Which kind of engine is behind an address, found by asking it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import httpx2

from kvflow.server.front_door.adapters import EngineTraits

__all__ = ["ask_engine"]

_PLUGIN_BACKEND: Final = "kvflow"


async def ask_engine(client: httpx2.AsyncClient) -> EngineTraits:
    """What the engine says of itself.

    SGLang and vLLM name themselves as the owner of their models. SGLang also tells its settings.
    vLLM does not, so whether it schedules by priority is not known, and it is sent none.

    Raises:
        httpx2.RequestError: it does not answer.
    """
    models = await _json(client, "/v1/models")
    data = models.get("data")
    owners = {
        model.get("owned_by")
        for model in (data if isinstance(data, list) else [])
        if isinstance(model, Mapping) and isinstance(model.get("owned_by"), str)
    }
    if "vllm" in owners:
        return EngineTraits("vllm")
    if "sglang" not in owners:
        return EngineTraits("unknown")
    settings = await _json(client, "/server_info") or await _json(client, "/get_server_info")
    return sglang_traits(settings)


def sglang_traits(settings: Mapping[str, Any]) -> EngineTraits:
    """From SGLang's ``/server_info``; a field that is not there counts as not set."""
    kind = settings.get("radix_cache_backend") == _PLUGIN_BACKEND
    order: Any = "none"
    if settings.get("enable_priority_scheduling"):
        lower_first = settings.get("schedule_low_priority_values_first")
        order = "lower_first" if lower_first else "higher_first"
    return EngineTraits("kvflow" if kind else "sglang", order)


async def _json(client: httpx2.AsyncClient, path: str) -> Mapping[str, Any]:
    answer = await client.get(path)
    if answer.status_code != 200:
        return {}
    try:
        parsed = answer.json()
    except ValueError:
        return {}
    return parsed if isinstance(parsed, Mapping) else {}
