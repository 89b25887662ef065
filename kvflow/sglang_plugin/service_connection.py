"""What the plugin's connections to the service have in common."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from kvflow.sglang_plugin.settings import PluginSettings

__all__ = ["key_headers", "log_no_requests", "uses_proxies"]


def key_headers(settings: PluginSettings) -> dict[str, str]:
    """The service's key as headers; none without a key."""
    if not settings.api_key:
        return {}
    return {"Authorization": f"Bearer {settings.api_key}"}


def uses_proxies(url: str) -> bool:
    """Whether the environment's proxies are for this address: not for one on this machine."""
    host = urlsplit(url).hostname or ""
    return not (host in ("localhost", "::1") or host.startswith("127."))


def log_no_requests() -> None:
    """Keep the HTTP client from a line in the engine's log for every report.

    SGLang does the same with the clients that it uses. A level that somebody chose stays.
    """
    client = logging.getLogger("httpx2")
    if client.level == logging.NOTSET:
        client.setLevel(logging.WARNING)
