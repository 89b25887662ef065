"""What the plugin reads from the environment of the engine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kvflow.errors import InvalidInputError

__all__ = ["PluginSettings"]

DEFAULT_SERVICE_URL = "http://127.0.0.1:8100"
_OFF = ("", "off", "none")


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """Settings of the plugin, from ``KVFLOW_*`` variables.

    Attributes:
        service_url: ``KVFLOW_SERVICE_URL``; None (set it to ``off``) for in-band values only.
        api_key: ``KVFLOW_API_KEY``, sent as bearer token.
        lease_s: ``KVFLOW_LEASE_S``; the service's own value if unset.
        engine_id: ``KVFLOW_ENGINE_ID``; host name if unset.
    """

    service_url: str | None = DEFAULT_SERVICE_URL
    api_key: str | None = field(default=None, repr=False)
    lease_s: float | None = None
    engine_id: str = "engine"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> PluginSettings:
        """Read and check the variables.

        Raises:
            InvalidInputError: names the variable, what is wrong, and what would be right.
        """
        url = env.get("KVFLOW_SERVICE_URL", DEFAULT_SERVICE_URL).strip().rstrip("/")
        service_url = None if url.lower() in _OFF else url
        if service_url is not None and (
            urlsplit(service_url).scheme not in ("http", "https")
            or not urlsplit(service_url).hostname
        ):
            raise InvalidInputError(
                ["KVFLOW_SERVICE_URL"],
                f"{url!r} is not an http(s) URL; give e.g. {DEFAULT_SERVICE_URL}, or 'off'",
            )
        return cls(
            service_url=service_url,
            api_key=env.get("KVFLOW_API_KEY") or None,
            lease_s=_seconds(env.get("KVFLOW_LEASE_S")),
            engine_id=env.get("KVFLOW_ENGINE_ID") or socket.gethostname(),
        )


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidInputError(
            ["KVFLOW_LEASE_S"], f"{text!r} is not a positive number of seconds; give e.g. 10"
        )
    return value
